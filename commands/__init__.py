"""The commands of the command line, one module or folder per command; `actstore.cli` puts them together."""
