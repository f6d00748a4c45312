"""Tokens of a capture: the table of what they are, and blocks as rows of one token each."""
