"""Runs models: corpora, plans, capture."""
