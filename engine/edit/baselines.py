"""The baselines that an edit is compared with; nothing here loads a model."""

from __future__ import annotations

from typing import Final

BASELINES: Final = ("fine-tune", "random")
