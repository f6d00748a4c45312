"""Probes: a model asked about exemplars of neurons that were shortened, masked or substituted (N2G)."""
