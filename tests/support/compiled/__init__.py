"""Compiles every Triton kernel for a GPU that need not be there, and looks at what was compiled: see `__main__`."""
