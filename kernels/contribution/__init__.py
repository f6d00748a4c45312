"""Contribution: what a neuron adds to the logit of a target token."""
