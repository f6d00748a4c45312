"""`actstore naica`."""
