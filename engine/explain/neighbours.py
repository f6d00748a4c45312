"""Excerpts that are harder to tell apart: a neuron does not fire in them, but its nearest neurons by coactivation do."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from actstore.engine.coactivation.coactivation import find_coactivation
from actstore.engine.coactivation.settings import CoactivationSettings

if TYPE_CHECKING:
    from actstore.engine.explain.excerpts import Excerpt, ExcerptReader, Sample

N_NEIGHBOURS: Final = 5
"""Number of nearest neurons, by correlation, that give excerpts in turn."""


def with_nearest(reader: ExcerptReader, sample: Sample) -> Sample:
    """The sample with excerpts in which nearest neurons fire in place of random ones; what is missing stays random."""
    settings = CoactivationSettings(k=N_NEIGHBOURS, site=reader.site)
    found = find_coactivation(reader.capture, sample.layer, sample.neuron, settings)
    used = {excerpt.window for excerpt in (*sample.train, *sample.test)}
    lists: list[list[Excerpt]] = []
    for layer, neuron in found.index.pairs(found.nearest()):
        lists.append(
            [
                excerpt._replace(kind="nearest", peak=excerpt.start, quantile=-1)
                for excerpt in reader.firing(reader.activity(layer, neuron))
                if excerpt.window not in used and reader.is_silent(sample.activity, excerpt)
            ]
        )
    others: list[Excerpt] = []
    texts: set[bytes] = set()
    turns = (excerpt for turn in zip_longest(*lists) for excerpt in turn if excerpt is not None)
    n = len(sample.test)
    for excerpt in (*turns, *sample.others):
        text = reader.ids[excerpt.start : excerpt.stop].tobytes()
        if len(others) < n and text not in texts:
            texts.add(text)
            others.append(excerpt)
    return replace(sample, others=others)
