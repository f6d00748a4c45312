"""Cluster inverse: which neurons' attributions are particular to a query (NA-ICA)."""
