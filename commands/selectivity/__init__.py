"""`actstore selectivity`."""
