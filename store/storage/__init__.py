"""Where bytes are: keys read, written atomically, listed and locked. The only place that knows a path."""
