"""Token rows: blocks that are stored neuron by neuron, as rows of one token each, and their values as floats."""
