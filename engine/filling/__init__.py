"""Filling captures that were planned elsewhere, of every kind that a store holds."""
