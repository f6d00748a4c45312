"""Vocabulary top-k: the tokens that every neuron writes most, and least."""
