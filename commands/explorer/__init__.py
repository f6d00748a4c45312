"""`actstore serve` and `actstore site`."""
