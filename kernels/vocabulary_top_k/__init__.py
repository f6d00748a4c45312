"""Vocabulary top-k: the tokens that every neuron promotes most, and suppresses most."""
