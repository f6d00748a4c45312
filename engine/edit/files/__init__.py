"""Edits in the files of a model's folder: rows of tensors, and files replaced or copied whole."""
