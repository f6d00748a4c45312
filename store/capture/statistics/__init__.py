"""Statistics of each neuron on disk: of a block, of a capture, and the table made of them."""
