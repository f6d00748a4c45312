"""The methods that select neurons for a query: NA-ICA and its baselines; nothing here loads a model or the compiler."""

from __future__ import annotations

from typing import Final

METHODS: Final = ("naica", "without-ica", "with-common", "kn", "activation", "random")
ALIASES: Final = {"qrnca": "naica"}
"""Other names of methods."""
