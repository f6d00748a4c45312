"""Contributions: how much each neuron adds to the logit of a token, from stored activations and weights."""
