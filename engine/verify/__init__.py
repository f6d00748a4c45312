"""Verification of a store against the model that wrote it."""
