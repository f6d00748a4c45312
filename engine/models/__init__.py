"""Models: Hugging Face transformers opened, understood by structure, watched and intervened in."""
