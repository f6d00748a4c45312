"""Neuron graphs on disk: records, nodes, tables, writer and readers."""
