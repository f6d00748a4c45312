"""Coactivation: which neurons fire together, by correlation and by the tokens that they have in common."""
