"""`actstore edit`."""
