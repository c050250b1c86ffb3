"""Stable Diffusion: pictures from text."""
