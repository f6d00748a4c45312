"""Zstandard frames of bytes without long repetitions, as activations are, several times as fast as the general encoder."""
