"""`actstore graphs`."""
