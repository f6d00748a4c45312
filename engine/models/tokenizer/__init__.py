"""Tokenizers: text to token ids and back, and the bytes that each token stands for."""
