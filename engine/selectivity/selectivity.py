"""Selectivity: neurons that fire for the tokens of one label and hardly for those of others (LAPE, DAPE), from a store alone.

A neuron fires on a token where its gate is above zero. How often it does so for every label is in the statistics of a capture,
or, where only tokens of one modality are counted, read from the stored signs block by block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from actstore.engine.selectivity.baselines import (
    select_at_random,
    select_by_probability,
    select_by_value,
    select_by_variation,
)
from actstore.engine.selectivity.entropy import Selection, select_neurons
from actstore.engine.selectivity.firing import COUNTABLE, FIRING_SITES, Firing, count_firing
from actstore.engine.selectivity.methods import METHODS
from actstore.engine.workers.scan import HERE
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from actstore.engine.workers.executor import Executor
    from actstore.store.model.root import Root
    from actstore.store.reader import Capture

MIN_TOKENS: Final = 1000
"""With fewer tokens, the standard error of a label's probabilities exceeds 0.016 (at p = 0.5): a warning."""


@dataclass(frozen=True)
class SelectivitySettings(Typed):
    """When a neuron is selective. The defaults are those of Tang et al."""

    by: str
    """The label column."""
    site: str | None = None
    """A key of `FIRING_SITES`. None: the gate in gated layers, the activation in plain ones, which have no other gate."""
    modality: str | None = None
    """A key of `COUNTABLE`: count only these tokens. None counts every token but special ones."""
    share: float = 0.01
    """The share of all neurons to select."""
    activation_quantile: float = 0.95
    """A neuron belongs to the labels for which it fires more often than this quantile of all probabilities."""
    method: str = "lape"
    """A key of `METHODS`."""
    seed: int = 0
    """Random seed of the method `random`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "lave" and self.modality is not None:
            raise InvalidInputError("The method 'lave' takes the mean over all tokens. Leave `modality` out.")
        for name, value, known in (
            ("site", self.site, FIRING_SITES),
            ("modality", self.modality, COUNTABLE),
            ("method", self.method, METHODS),
        ):
            if value is not None and value not in known:
                raise InvalidInputError(f"Expected `{name}` to be one of {', '.join(known)}, found {value!r}.")
        if not 0 < self.share <= 1:
            raise InvalidInputError(
                f"Expected `share`, a share of all neurons, above 0 and at most 1, found {self.share}."
            )
        if not 0 < self.activation_quantile <= 1:
            raise InvalidInputError(
                f"Expected `activation_quantile` above 0 and at most 1, found {self.activation_quantile}."
            )


@dataclass(frozen=True)
class Selectivity:
    """The label-selective neurons of a capture, and the counts they are selected from."""

    settings: SelectivitySettings
    firing: Firing
    selection: Selection
    empty_labels: tuple[str, ...] = ()
    """Labels without a counted token; they are left out of the other fields."""

    @cached_property
    def neurons(self) -> dict[str, NDArray[np.int64]]:
        """Label → its neurons, the most selective first."""
        selection = self.selection
        return {label: selection.neurons[selection.members[:, i]] for i, label in enumerate(self.firing.labels)}

    @property
    def warnings(self) -> list[str]:
        """One sentence for each reason to doubt the result."""
        warnings = [f"Label {label!r} has no token to count, and is left out." for label in self.empty_labels]
        warnings += [
            f"Label {label!r} has {n:,} tokens; fewer than {MIN_TOKENS:,} make its probabilities uncertain."
            for label, n in zip(self.firing.labels, self.firing.n_tokens.tolist(), strict=True)
            if n < MIN_TOKENS
        ]
        selection = self.selection
        if len(selection.neurons) < selection.n_requested and self.settings.method != "random":
            warnings.append(
                f"Only {selection.n_candidates:,} neurons fire above the threshold for any label, fewer than the "
                f"{selection.n_requested:,} of `share`: all of them are selected. Lower `activation_quantile` for more."
            )
        return warnings


def find_selectivity(
    capture: Capture,
    settings: SelectivitySettings,
    executor: Executor = HERE,
    tuned: Mapping[str, Root] | None = None,
) -> Selectivity:
    """The neurons of a capture that are selective for values of the label column `settings.by`.

    Where blocks are read, for `settings.modality` and the method `lave`, the workers of `executor` divide them. tuned: label
    → a store of the model tuned on its text, for the method `pv`.

    `InvalidInputError` where the capture is not complete, lacks the column or a second value of it, or has neither signs nor
    values of the site.

    >>> find_selectivity(store.capture(), SelectivitySettings(by="language")).neurons["fr"]
    """
    firing = count_firing(capture, settings.by, site=settings.site, modality=settings.modality, executor=executor)
    occurs = firing.n_tokens > 0
    occurring = Firing(
        tuple(label for label, is_used in zip(firing.labels, occurs, strict=True) if is_used),
        firing.n_tokens[occurs],
        firing.positives[:, occurs],
        firing.layers,
    )
    if len(occurring.labels) < 2:
        kind = f"{settings.modality} tokens" if settings.modality else "tokens"
        raise InvalidInputError(
            f"Selectivity compares at least two values of a label, and capture {capture.record.name!r} has {kind} for "
            f"{', '.join(map(repr, occurring.labels)) or 'none'} of {settings.by!r} only. Capture a corpus with more, or "
            "name another label in `by`."
        )
    selection = _select(capture, occurring, settings, executor, tuned or {})
    empty = tuple(label for label, is_used in zip(firing.labels, occurs, strict=True) if not is_used)
    return Selectivity(settings, occurring, selection, empty)


def _select(
    capture: Capture, firing: Firing, settings: SelectivitySettings, executor: Executor, tuned: Mapping[str, Root]
) -> Selection:
    """The selection by the method of the settings."""
    share, quantile, probabilities = settings.share, settings.activation_quantile, firing.probabilities
    if settings.method == "lap":
        return select_by_probability(probabilities, share)
    if settings.method == "lave":
        return select_by_value(capture, settings.by, firing.labels, settings.site, share, quantile, executor)
    if settings.method == "pv":
        return select_by_variation(capture.store, tuned, firing.labels, [*firing.layers], share, quantile)
    selection = select_neurons(probabilities, share, quantile)
    return selection if settings.method == "lape" else select_at_random(selection, settings.seed)
