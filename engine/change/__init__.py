"""Change scores between two models, and activation patching between them."""
