"""Coactivation: how the activations of chosen neurons go with those of all neurons."""
