"""The questions about an explanation, answered by the neuron's graph; and how much of the graph the explanation names.

The graph is built here, as `engine.graphs` builds those of an evaluation: without the windows that the questions are about, and
windows with the same tokens. It learns from all others, so it knows more of the neuron's tokens than the explainer was shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from actstore.engine.graphs.build import GraphSettings, grow
from actstore.engine.graphs.events import Events
from actstore.engine.graphs.samples import HeldOutWindows, find_evidence, join_contexts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.explain.excerpts import ExcerptReader, Sample
    from actstore.engine.explain.questions import OpenQuestion
    from actstore.engine.graphs.contexts import Contexts

MIN_FRAGMENT: Final = 3
"""Characters from which on a token with which a word of the explanation begins counts as named."""


class GraphAnswers(NamedTuple):
    """What a neuron's graph says."""

    detection: list[bool]
    fuzzing: list[bool]
    firings: dict[str, int]
    """Token → how often the neuron fires at it, in the windows that the graph learned from."""


class GraphAnswerer:
    """Builds graphs of single neurons of a capture, and asks them."""

    def __init__(self, reader: ExcerptReader) -> None:
        self._reader = reader
        self._settings = GraphSettings(share=reader.settings.share)
        self._contexts: Contexts | None = None

    def answer(
        self, sample: Sample, detection: Sequence[OpenQuestion], fuzzing: Sequence[OpenQuestion]
    ) -> GraphAnswers:
        """The answers of the neuron's graph.

        It fires in an excerpt where it does at any token of it; marked tokens are right where it fires at half of them or more.
        It reads the whole window up to each token, where a server is shown the excerpt alone.
        """
        windows, activity = self._reader.windows, sample.activity
        asked = np.unique([question.excerpt.window for question in (*detection, *fuzzing)]).astype(np.int64)
        contexts = self._sorted_contexts()
        learned = find_evidence(contexts, windows, activity.shares, activity.fires, windows.copies_of(asked))
        events = Events(
            np.array([0, len(learned.ranks)], np.int64),
            learned.ranks,
            learned.values,
            learned.silent,
            np.array([learned.rest]),
            np.array([activity.maximum], np.float32),
        )
        nodes = grow(contexts, events, self._settings, [learned.held_out], threads=1)
        held = HeldOutWindows(windows, asked)
        threshold = np.array([self._settings.threshold], np.float32)
        predicted = np.zeros(len(windows.text), np.bool_)
        predicted[held.tokens] = held.predict(nodes, threshold, 1)[0][0]
        is_root = nodes.depth == 0
        texts = [self._reader.capture.store.token_text(token) for token in nodes.token[is_root].tolist()]
        firings: dict[str, int] = {}
        for text, n in zip(texts, nodes.fires[is_root].tolist(), strict=True):
            firings[text] = firings.get(text, 0) + n
        return GraphAnswers(
            [bool(predicted[question.excerpt.start : question.excerpt.stop].any()) for question in detection],
            [_is_right(predicted, question) for question in fuzzing],
            firings,
        )

    def _sorted_contexts(self) -> Contexts:
        """The contexts of the whole capture, sorted once."""
        if self._contexts is None:
            self._contexts = join_contexts(self._reader.windows, max(1, self._settings.max_depth))
        return self._contexts


def _is_right(predicted: NDArray[np.bool_], question: OpenQuestion) -> bool:
    return bool(predicted[list(question.marked)].mean() >= 0.5)


def count_named(explanation: str, firings: Mapping[str, int]) -> tuple[int, int]:
    """Of the firings that a graph knows, those at tokens that an explanation names; and all.

    Case and outer spaces do not count. A token of letters and digits is named where it is a word of the explanation, or, from
    three characters on, the beginning of one; any other token where the explanation contains it.
    """
    text = explanation.casefold()
    words = set(re.findall(r"[^\W_]+", text))
    named = 0
    for token, n in firings.items():
        bare = token.strip().casefold()
        if bare.isalnum():
            is_named = bare in words or (len(bare) >= MIN_FRAGMENT and any(word.startswith(bare) for word in words))
        else:
            is_named = bool(bare) and bare in text
        named += n if is_named else 0
    return named, sum(firings.values())
