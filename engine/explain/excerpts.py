"""The excerpts of a capture that a neuron is explained from, and those that test the explanation.

An excerpt is some consecutive tokens of one window. Of every window in which the neuron fires, the excerpt around its largest
activation is one with firing; excerpts with the same tokens count once. By their largest activations they are divided into
quantiles; each quantile gives as many to explain from and to test with as the others, at random. Excerpts without firing are of
other windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.engine.graphs.contexts import check_captures
from actstore.engine.graphs.split import Windows
from actstore.store.capture.overflow import saturate
from actstore.store.capture.saturation import saturated_maxima

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.explain.settings import ExplainSettings
    from actstore.store.reader import Capture


class Excerpt(NamedTuple):
    """Some consecutive tokens of a window."""

    kind: str
    """One of `store.explanations.record.KINDS`."""
    window: int
    """Its index in `Windows`."""
    start: int
    """The first token, in the order of `Capture.activations`."""
    stop: int
    peak: int
    """The token with the largest activation; `start` where the neuron does not fire."""
    quantile: int
    """0 for the strongest; −1 without firing."""


@dataclass(frozen=True)
class Activity:
    """One neuron over all committed tokens."""

    maximum: float
    """The largest finite activation over the capture; 0 where the neuron never fires."""
    shares: NDArray[np.float32]
    """[token] its activations, as shares of the maximum."""
    fires: NDArray[np.bool_]
    """[token] whether it is text, and the share reaches that of the settings."""


@dataclass(frozen=True)
class Sample:
    """What a neuron is explained and tested with."""

    layer: int
    neuron: int
    activity: Activity
    train: list[Excerpt]
    """With firing, the strongest first: for the explainer."""
    test: list[Excerpt]
    """With firing, none of which the explainer sees."""
    others: list[Excerpt]
    """Without firing."""


class ExcerptReader:
    """Chooses excerpts for the neurons of one capture; may be used by several threads."""

    def __init__(self, capture: Capture, settings: ExplainSettings, site: str) -> None:
        """`InvalidInputError` as by `check_captures`: all positions of a capture of text must be there."""
        check_captures([capture])
        self.capture, self.settings, self.site = capture, settings, site
        self.windows = Windows([capture])
        self.ids: NDArray[np.int32] = capture.tokens()["id"].to_numpy()
        """[token]"""
        has_text = np.add.reduceat(np.append(self.windows.text, False), self.windows.start[:-1]) > 0
        first_copy = self.windows.first_copy == np.arange(len(self.windows))
        self._usable: NDArray[np.int64] = np.flatnonzero(has_text & first_copy)
        """The windows that hold text, each sequence of tokens once."""

    def activity(self, layer: int, neuron: int) -> Activity:
        """What one neuron does; its activations are read once."""
        values = self.capture.activations(layer, neuron, self.site)
        overflows = self.capture.has_overflow(layer, self.site)
        values = saturate(values[None], overflows[neuron : neuron + 1])[0]
        largest = float(saturated_maxima(self.capture, layer, self.site)[neuron])
        maximum = largest if 0 < largest < np.inf else 0.0
        shares: NDArray[np.float32] = (values / np.float32(maximum or 1)).astype(np.float32, copy=False)
        fires = self.windows.text & np.isfinite(shares) & (shares >= np.float32(self.settings.share))
        return Activity(maximum, shares, fires if maximum else np.zeros_like(fires))

    def sample(self, layer: int, neuron: int) -> Sample:
        """The excerpts of one neuron; the same for the same settings."""
        activity = self.activity(layer, neuron)
        rng = np.random.default_rng([self.settings.seed, layer, neuron])
        firing = self.firing(activity)
        train, test = self._divide(firing, rng)
        used = {excerpt.window for excerpt in (*train, *test)}
        others = list(self._silent(activity, used, len(test), rng))
        return Sample(layer, neuron, activity, train, test, others)

    def firing(self, activity: Activity) -> list[Excerpt]:
        """The excerpt around the largest activation of every window with firing, the strongest first, each text once."""
        shares = np.where(activity.fires, activity.shares, -np.inf)
        maxima = np.maximum.reduceat(shares, self.windows.start[:-1])[self._usable]
        order = np.argsort(-maxima, kind="stable")
        found, texts = [], set()
        for window in self._usable[order[np.isfinite(maxima[order])]].tolist():
            first, last = self.windows.start[window : window + 2].tolist()
            peak = first + int(np.argmax(shares[first:last]))
            start, stop = self._around(first, last, peak)
            text = self.ids[start:stop].tobytes()
            if text not in texts:
                texts.add(text)
                found.append(Excerpt("exemplar", window, start, stop, peak, 0))
        return found

    def _around(self, first: int, last: int, peak: int) -> tuple[int, int]:
        """The excerpt of a window's tokens first…last with three quarters of its tokens before the peak, where there are."""
        context = self.settings.context
        start = min(max(first, peak - 3 * context // 4), max(first, last - context))
        return start, min(start + context, last)

    def _divide(self, firing: Sequence[Excerpt], rng: np.random.Generator) -> tuple[list[Excerpt], list[Excerpt]]:
        """Excerpts to explain from, and to test with: of each quantile as many, drawn at random.

        Where a quantile has too few for both, half of them test, rounded down.
        """
        settings = self.settings
        n_quantiles = max(1, min(settings.quantiles, len(firing) // 2))
        train: list[list[Excerpt]] = []
        test: list[list[Excerpt]] = []
        for quantile, part in enumerate(np.array_split(np.arange(len(firing)), n_quantiles)):
            drawn = [firing[i]._replace(quantile=quantile) for i in rng.permutation(part).tolist()]
            n_test = min(-(-settings.tests // n_quantiles), len(drawn) // 2)
            test.append(drawn[:n_test])
            train.append(drawn[n_test : n_test + -(-settings.exemplars // n_quantiles)])
        return _deal(train, settings.exemplars), _deal(test, settings.tests)

    def _silent(self, activity: Activity, used: set[int], n: int, rng: np.random.Generator) -> Iterator[Excerpt]:
        """At most n excerpts without firing, at random places of random windows that are not used."""
        texts: set[bytes] = set()
        for window in rng.permutation(self._usable).tolist() if n else ():
            if window in used:
                continue
            start = self._silent_start(activity, window, rng)
            if start is None:
                continue
            stop = min(start + self.settings.context, int(self.windows.start[window + 1]))
            if (text := self.ids[start:stop].tobytes()) in texts:
                continue
            texts.add(text)
            yield Excerpt("random", window, start, stop, start, -1)
            if len(texts) == n:
                return

    def _silent_start(self, activity: Activity, window: int, rng: np.random.Generator) -> int | None:
        """Where an excerpt of text without firing begins in a window; None where it has none."""
        first, last = self.windows.start[window : window + 2].tolist()
        size = min(self.settings.context, last - first)
        sums = [np.concatenate([[0], np.cumsum(flags[first:last])]) for flags in (activity.fires, self.windows.text)]
        n_fires, n_text = (counts[size:] - counts[:-size] for counts in sums)
        starts = np.flatnonzero((n_fires == 0) & (n_text > 0))
        return first + int(rng.choice(starts)) if len(starts) else None

    def is_silent(self, activity: Activity, excerpt: Excerpt) -> bool:
        """Whether the neuron fires nowhere in an excerpt."""
        return not activity.fires[excerpt.start : excerpt.stop].any()

    def positions(self, excerpt: Excerpt) -> tuple[int, int, int]:
        """The window's number in the capture, and the positions of the excerpt's first and last token in it."""
        windows = self.windows
        first, last = windows.position[[excerpt.start, excerpt.stop - 1]].tolist()
        return int(windows.number[excerpt.window]), first, last


def _deal(parts: Sequence[Sequence[Excerpt]], n: int) -> list[Excerpt]:
    """N of the excerpts, one of each part in turn; the strongest parts first, whatever the order they were taken in."""
    turns = [part[turn] for turn in range(max(map(len, parts), default=0)) for part in parts if turn < len(part)]
    return sorted(turns[:n], key=lambda excerpt: excerpt.quantile)
