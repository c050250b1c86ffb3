"""Whisper: speech to text, in a hundred languages. Every checkpoint of transformers' WhisperForConditionalGeneration,
and OpenAI's own files."""
