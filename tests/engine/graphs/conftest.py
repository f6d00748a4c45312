"""Neuron graphs planted path by path into a store without a capture."""

from planted_graph_fixtures import planted_model, planting, store

__all__ = ["planted_model", "planting", "store"]
