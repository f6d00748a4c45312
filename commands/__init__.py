"""The command line's larger families, a file each; `actstore.cli` puts them together."""
