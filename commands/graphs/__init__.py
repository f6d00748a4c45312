"""`actstore graph`."""
