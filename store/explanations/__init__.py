"""Explanations of neurons in words, and how well they were scored: one small file each, written once."""
