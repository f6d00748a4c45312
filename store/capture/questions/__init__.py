"""Attributions of a capture of questions: their kinds, their blocks, the tables of answers."""
