"""The command line's commands, a file a family; `actstore.cli` puts them together."""
