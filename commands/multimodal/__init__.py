"""`actstore multimodal`."""
