"""Capture: a model over a planned corpus, block by block, into a store."""
