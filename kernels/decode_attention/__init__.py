"""Attention of one new token per row over keys and values that are kept."""
