"""What other tools leave, read as a builder takes it: one module per layout."""
