"""Where bytes are: keys read, written atomically, listed and locked. Only this package knows paths."""
