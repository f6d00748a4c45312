"""Where scans of stored activations compute: on the CPU, or on a GPU to which blocks stream from the store."""
