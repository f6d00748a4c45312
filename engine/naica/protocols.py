"""The protocols of the evaluation of query-relevant neurons; nothing here loads a model."""

from __future__ import annotations

from typing import Final

PROTOCOLS: Final = ("query", "prompt", "label")
