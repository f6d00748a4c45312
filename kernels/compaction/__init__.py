"""Blocks in which most values are those of one row: the others with their places, and back."""
