"""Pack: token-major activations to neuron-major blocks, with their statistics, in one pass."""
