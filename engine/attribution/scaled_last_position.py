"""The prediction after a prompt with sets of neurons scaled at its last position, many sets in one pass.

A *variant* is a set of neurons and a factor: 0 suppresses them, 2 doubles them. In a causal model the last position's
activations do not change any earlier keys and values, so that the prompt is read once and each variant costs one token: the
rows are those of `cached_path`, which attend to the prompt's keys and values and of the rows only to themselves, with an
intervention on each instead of a step of the path; they join before the first block that one of them changes. Where that does
not hold (measured, not known by name) every variant is a window of the full sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from actstore.engine.attribution.cached_path import (
    CannotCacheError,
    GrowingPass,
    check_causal,
    freeze,
    prefill,
    relative_difference,
)
from actstore.engine.attribution.full_path import PATHS
from actstore.engine.models import families
from actstore.engine.models.intervene import intervened
from actstore.engine.models.patching import Rows, at_position, head_hook, hooked, patch_points, tolerance
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.models.intervene import Change
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import Hook, PatchPoint


@dataclass(frozen=True)
class Variants:
    """Sets of neurons and the factors that they are multiplied by, concatenated."""

    offsets: NDArray[np.int64]
    """[variant + 1]; entries `offsets[i]:offsets[i + 1]` belong to variant i; a variant may have none."""
    neurons: NDArray[np.int64]
    """[entry] Flat ids over the neurons of all layers of `LastPosition.layers`, distinct within a variant."""
    factors: NDArray[np.float32]
    """[variant]"""

    def __len__(self) -> int:
        return len(self.factors)

    @classmethod
    def of(cls, sets: Sequence[NDArray[np.int64]], factors: Sequence[float]) -> Variants:
        """A variant for each pair of a set of neurons and a factor."""
        offsets = np.cumsum([0, *map(len, sets)])
        neurons = np.concatenate([np.empty(0, np.int64), *sets]).astype(np.int64, copy=False)
        return cls(offsets.astype(np.int64), neurons, np.asarray(factors, np.float32))


@dataclass(frozen=True)
class Predictions:
    """The predictions at the last position, of the unchanged model in row 0 and of every variant."""

    probabilities: NDArray[np.float32]
    """[1 + variant, option]; of the option's token, among the whole vocabulary."""
    tokens: NDArray[np.int64]
    """[1 + variant]; the most probable token of the whole vocabulary."""


class LastPosition:
    """A model, and its predictions with neurons scaled at the last position."""

    def __init__(
        self, model: LoadedModel, layers: Sequence[int] | None = None, *, max_rows: int = 160, path: str = "auto"
    ) -> None:
        """Take a model, whose weights are not changed.

        layers: the layers over whose neurons flat ids count, ascending; all of the text stack by default. max_rows: the memory
        bound, the number of token rows that run at once; more than a few hundred are slower, as the attention among rows grows
        with their square. path: "auto", "cached" or "full".
        """
        if path not in PATHS:
            raise InvalidInputError(f"Expected `path` to be one of {', '.join(PATHS)}, found {path!r}.")
        if max_rows < 1:
            raise InvalidInputError(f"Expected `max_rows` to be at least 1, found {max_rows}.")
        self._model, self._max_rows, self._path = model, max_rows, path
        self._places = patch_points(model, layers)
        self._starts = np.cumsum([0, *(place.neurons for place in self._places)])
        self.layers = tuple(place.layer for place in self._places)
        self.n_neurons = int(self._starts[-1])
        self.fallback: str | None = "path 'full' was requested" if path == "full" else None
        """Why the cached path was given up, once it was; it is not tried again."""

    def predict(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        variants: Variants,
        options: Sequence[int],
        *,
        position: int | None = None,
    ) -> Predictions:
        """The predictions at a position of the ids [position] of a prompt, for `options` [option] as token ids.

        position: the last by default; of a masked model that of the mask, where neurons are then scaled too. Raises
        `InvalidInputError` for neurons, options or a position that are not there.
        """
        self._check(ids, variants, options)
        at = len(ids) - 1 if position is None else position
        if not 0 <= at < len(ids):
            raise InvalidInputError(f"Expected `position` from 0 to {len(ids) - 1}, found {position}.")
        window = torch.as_tensor(np.asarray(ids, np.int64), device=self._model.device)[None]
        with torch.no_grad():
            if self.fallback is None and self._model.spec.kind == "causal" and at == len(ids) - 1:
                try:
                    return _predictions(self._cached(window, variants), options)
                except CannotCacheError as error:
                    self._fall_back(str(error))
                except (torch.OutOfMemoryError, MemoryError, InvalidInputError, Warning):
                    raise
                # Any error of a model in which a cache and a mask are used in a way it was not written for: the full path
                # uses neither. A genuine fault of the model is raised again there.
                except Exception as error:
                    self._fall_back(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return _predictions(self._full(window, variants, at), options)

    def _fall_back(self, reason: str) -> None:
        if self._path == "cached":
            raise InvalidInputError(
                f'The cached path does not hold for {self._model.spec.name}: {reason}. Set `path="auto"`.'
            )
        if "one token" not in reason:  # which is a property of this prompt, not of the model
            self.fallback = reason

    def _check(self, ids: Sequence[int] | NDArray[np.int32], variants: Variants, options: Sequence[int]) -> None:
        size = self._model.spec.n_vocabulary or 0
        for name, values, end in (
            ("token ids", np.asarray(ids), size),
            ("options", np.asarray(options), size),
            ("neurons", variants.neurons, self.n_neurons),
        ):
            if name != "neurons" and not len(values):
                raise InvalidInputError(f"Expected at least one of the {name}, found none.")
            if len(values) and (values.min() < 0 or values.max() >= end):
                raise InvalidInputError(
                    f"Expected {name} from 0 to {end - 1} for {self._model.spec.name}, found {values.min()} to {values.max()}."
                )

    def _cached(self, ids: Tensor, variants: Variants) -> Tensor:
        """Logits [1 + variant, vocabulary] from one prefill."""
        if ids.shape[1] < 2:
            raise CannotCacheError("a prompt of one token has no earlier keys and values")
        check_causal(self._model, ids)
        logits, keys_and_values = prefill(self._model, ids)
        frozen = freeze(keys_and_values)
        all_logits = logits.new_empty((1 + len(variants), logits.shape[-1]))
        all_logits[0] = logits[0]
        first = self._first_places(variants)
        empty = np.flatnonzero(first == len(self._places))
        all_logits[1 + empty] = logits[0]
        # In the order of the first layer that they change: the layers below it are not computed for the rows of a pass.
        order = np.argsort(first, kind="stable")[: len(variants) - len(empty)]
        for chunk in np.split(order, range(self._max_rows, len(order), self._max_rows)):
            if not len(chunk):
                continue
            # One more row, which nothing changes: if it attended to the rows before it, its logits would differ from the
            # clean ones. So every pass checks that its rows are separate.
            rows = Rows(self._places[first[chunk[0]]], 1, len(chunk) + 1, len(chunk) + 1)
            with intervened(self._model, self._changes(variants, chunk, rows_are="positions")):
                row_logits = _JoiningPass(self._model, [rows], ids.shape[1] - 1).run(ids[:, -1:], frozen)
            if (difference := relative_difference(row_logits[[0, -1]], logits)) > tolerance(self._model.dtype):
                raise CannotCacheError(f"logits over cached keys and values are off by {difference:.1e}, relative")
            all_logits[torch.as_tensor(1 + chunk)] = row_logits[1:-1]
        return all_logits

    def _full(self, ids: Tensor, variants: Variants, position: int) -> Tensor:
        """Logits [1 + variant, vocabulary] at a position from the full sequence, one window per variant."""
        model, n_positions = self._model, ids.shape[1]
        chunks = [np.empty(0, np.int64)]  # the unchanged model
        per_pass = max(1, self._max_rows // n_positions)
        chunks += [np.arange(i, min(i + per_pass, len(variants))) for i in range(0, len(variants), per_pass)]
        last_logits = []
        for chunk in chunks:
            arguments = families.arguments_for(model.model, ids.expand(max(1, len(chunk)), -1), None)
            if hasattr(model.model.config, "use_cache"):
                arguments["use_cache"] = False
            changes = self._changes(variants, chunk, rows_are="windows", position=position)
            with intervened(model, changes), hooked(model.model, head_hook(model, position, n_positions)):
                logits = getattr(model.model(**arguments), "logits", None)
            if not isinstance(logits, Tensor):
                raise ModelError(
                    f"{model.spec.name} returns no logits: expected a model with a language-model head. Load it as the "
                    "class it was trained as."
                )
            last = at_position(logits, max(1, len(chunk)), position, n_positions, model.spec.model_type)
            last_logits.append(last)
        return torch.cat(last_logits)

    def _first_places(self, variants: Variants) -> NDArray[np.int64]:
        """For every variant, the index of the first place that it changes; the number of places where it changes none."""
        first = np.full(len(variants), len(self._places), np.int64)
        of_entry = np.searchsorted(self._starts, variants.neurons, side="right") - 1
        np.minimum.at(first, np.repeat(np.arange(len(variants)), np.diff(variants.offsets)), of_entry)
        return first

    def _changes(
        self,
        variants: Variants,
        chunk: NDArray[np.int64],
        *,
        rows_are: Literal["positions", "windows"],
        position: int = -1,
    ) -> Mapping[int, Change]:
        """Layer → the change of its activations in a pass over the variants `chunk`."""
        changes = {}
        for place, row, neuron, factor in self._entries(variants, chunk):
            entries = torch.as_tensor(row), torch.as_tensor(neuron), torch.as_tensor(factor)
            changes[place.layer] = _scale_rows(*entries, rows_are=rows_are, position=position)
        return changes

    def _entries(
        self, variants: Variants, chunk: NDArray[np.int64]
    ) -> Iterator[tuple[PatchPoint, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """For every layer that a chunk changes: rows, neurons of the layer and factors, all of shape [entry]."""
        sets = [variants.neurons[variants.offsets[i] : variants.offsets[i + 1]] for i in chunk]
        lengths = [len(neurons) for neurons in sets]
        rows = np.repeat(np.arange(len(sets)), lengths)
        neurons = np.concatenate([np.empty(0, np.int64), *sets])
        factors = np.repeat(variants.factors[chunk], lengths)
        for place, start, stop in zip(self._places, self._starts, self._starts[1:], strict=False):
            inside = (neurons >= start) & (neurons < stop)
            if inside.any():
                yield place, rows[inside], neurons[inside] - start, factors[inside]


class _JoiningPass(GrowingPass):
    """A pass over the last token in which rows join as in a growing pass, and are not patched."""

    def _patch_hooks(self) -> dict[str, Hook]:
        # `run` expects a leaf per layer as proof that its hook ran; here the interventions change the rows instead.
        self._leaves = dict.fromkeys(range(len(self.chunk)), torch.empty(0))
        return {}


def _scale_rows(
    rows: Tensor, neurons: Tensor, factors: Tensor, *, rows_are: Literal["positions", "windows"], position: int
) -> Change:
    """The change that multiplies single activations, given by row, neuron and factor [entry].

    Rows are the positions of one window, after the clean one; or windows, changed at one position. Sparse: a factor
    for every neuron of every row would be as large as the activations of all layers together.
    """

    def change(values: Tensor) -> Tensor:
        after = values.clone()
        row, neuron, factor = rows.to(values.device), neurons.to(values.device), factors.to(values)
        if rows_are == "positions":
            after[0, 1 + row, neuron] *= factor
        else:
            after[row, position, neuron] *= factor
        return after

    return change


def _predictions(logits: Tensor, options: Sequence[int]) -> Predictions:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = wide[:, torch.as_tensor(options, device=wide.device)] - wide.logsumexp(-1, keepdim=True)
    return Predictions(log_p.exp().float().cpu().numpy(), wide.argmax(-1).cpu().numpy())
