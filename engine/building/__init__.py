"""Captures made of arrays that people have, instead of a run of a model."""
