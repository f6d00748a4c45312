"""Blocks that are filled on a GPU: packed there, compacted, and copied to the host while the model runs on."""
