"""Bundles: all files of a block in one object, with an index of them at its end."""
