"""The steps of a capture after its plan: filling its blocks, and finishing it."""
