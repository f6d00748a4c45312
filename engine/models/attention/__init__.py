"""Attention: which outputs of projections are queries, keys and values, found by following tensors and not by names."""
