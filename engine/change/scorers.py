"""The scorers of generated answers by name; nothing here loads a model."""

from __future__ import annotations

from typing import Final

SCORERS: Final = {
    "refusal": "whether the answer refuses, as models usually put it",
    "regex": "whether a regular expression matches the answer",
    "likelihood": "mean log probability of the answer under the other model",
}
"""Name → what it scores."""
