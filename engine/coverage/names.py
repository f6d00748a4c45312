"""The coverage criteria by name; importing them does not load the compiler."""

from __future__ import annotations

from typing import Final

CRITERIA: Final = {
    "nc": "neurons whose value, min-max scaled within the layer per sample, ever exceeds t",
    "kmnc": "of the k equal sections of each neuron's range in the reference, those hit",
    "nbc": "corners beyond the range in the reference, two a neuron, reached",
    "snac": "neurons that ever exceed their range in the reference",
    "tknc": "neurons ever among their layer's k largest",
    "tknp": "distinct patterns: which neurons are the k largest of every layer; of the samples",
    "tfc": "vectors farther than a distance from every vector kept before, over the layers",
}
RANGED: Final = ("kmnc", "nbc", "snac")
"""Criteria that hold values against the ranges of a reference."""
