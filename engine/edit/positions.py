"""The named positions of an intervention; importing them does not load torch."""

from __future__ import annotations

from typing import Final

NAMED: Final = {
    "all": "every position",
    "prompt": "the prompt's positions",
    "last": "the prompt's last position, which predicts the answer's first token",
    "generated": "the answer's positions",
    "predicting": "the prompt's last position and the answer's: those that predict the answer",
    "image": "the prompt's image positions",
}
