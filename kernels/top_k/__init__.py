"""Top-k: the running k largest activations of every neuron."""
