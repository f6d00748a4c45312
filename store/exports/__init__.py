"""Activations out of a store, in the layouts of other tools."""
