"""The public Python API of a store: every command as a method, under the same name and with the same parameters."""
