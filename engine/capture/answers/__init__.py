"""Prompts of text that a model answers before it is captured: the answers, and which of their positions are kept."""
