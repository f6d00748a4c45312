"""Captures of images: their plan, their batches, their runs."""
