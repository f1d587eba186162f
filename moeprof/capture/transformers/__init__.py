"""Capture from Hugging Face transformers: hooks on a model that the user's own code runs."""
