"""Stores as they are kept: `actstore repair`, `copy` and `reorder`."""
