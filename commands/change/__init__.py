"""`actstore change`."""
