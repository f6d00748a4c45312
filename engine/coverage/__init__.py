"""Coverage criteria of a corpus over neurons, and the linear-probe detector."""
