"""Whisper: speech becomes text. Every checkpoint of transformers' WhisperForConditionalGeneration, and OpenAI's own."""
