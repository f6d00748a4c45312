"""Editing: interventions on activations, rewrites of write vectors, and what an edit changed."""
