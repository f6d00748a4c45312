"""actstore: run the model once; ask forever."""
