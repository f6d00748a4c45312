"""What a prompt's prediction becomes when chosen neurons are scaled at its last position, many choices in one pass.

A *variant* is a set of neurons and a factor: 0 suppresses them, 2 doubles them. In a causal model the last position's
activations leave all earlier keys and values as they are, so that the prompt is read once and each variant costs one token:
the rows of `cached_path`, that see the prompt's keys and values and of the rows only themselves, with an intervention on
each instead of a step of the path; they join before the first block that one of them changes. Where that does not hold
(measured, not known by name) every variant is a window of the full sequence. Knows nothing about stores, or about how neurons
are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from actstore.engine.attribution.cached_path import (
    CannotCacheError,
    _difference,
    _FrozenLayer,
    _GrowingPass,
    _prefill,
    _prove_causal,
)
from actstore.engine.models import families
from actstore.engine.models.intervene import intervened
from actstore.engine.models.patching import Rows, at_position, head_hook, hooked, places_of, tolerance
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.models.intervene import Change
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import Hook, Place


@dataclass(frozen=True)
class Variants:
    """Sets of neurons and what they are multiplied by, one behind the other."""

    offsets: NDArray[np.int64]
    """[variant + 1] entries `offsets[i]:offsets[i + 1]` are variant i's; a variant may have none."""
    neurons: NDArray[np.int64]
    """[entry] flat ids over the neurons of all layers of `LastPosition.layers`, each once in a variant."""
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
    """What the model predicts at the last position, for every variant and, as row 0, for the model as it is."""

    probabilities: NDArray[np.float32]
    """[1 + variant, option]: of the option's token, among the whole vocabulary."""
    tokens: NDArray[np.int64]
    """[1 + variant]: the most probable token of the whole vocabulary."""


class LastPosition:
    """A model that answers what its predictions would be with neurons scaled at the last position."""

    def __init__(
        self, model: LoadedModel, layers: Sequence[int] | None = None, *, max_rows: int = 160, path: str = "auto"
    ) -> None:
        """Take a model, whose weights stay as they are.

        layers: whose neurons flat ids count, ascending; all of the text stack unless given. max_rows: the memory bound, how
        many token rows run at once; more than some hundred only cost, as the rows' own attention grows with their square.
        path: "auto", "cached" or "full".
        """
        if path not in {"auto", "cached", "full"}:
            raise InvalidInputError(f"expected path to be one of auto, cached, full, found {path!r}")
        if max_rows < 1:
            raise InvalidInputError(f"expected max_rows to be at least 1, found {max_rows}")
        self._model, self._max_rows, self._path = model, max_rows, path
        self._places = places_of(model, layers)
        self._starts = np.cumsum([0, *(place.neurons for place in self._places)])
        self.layers = tuple(place.layer for place in self._places)
        self.n_neurons = int(self._starts[-1])
        self.fallback: str | None = "path 'full' was asked for" if path == "full" else None
        """Why the cached path was left, once it was; it is not tried again."""

    def predict(
        self, ids: Sequence[int] | NDArray[np.int32], variants: Variants, options: Sequence[int]
    ) -> Predictions:
        """The predictions after a prompt's ids [position], of `options` [option] as token ids.

        Raises `InvalidInputError` for neurons or options that the model does not have.
        """
        self._check(ids, variants, options)
        window = torch.as_tensor(np.asarray(ids, np.int64), device=self._model.device)[None]
        with torch.no_grad():
            if self.fallback is None and self._model.spec.kind == "causal":
                try:
                    return _predictions(self._cached(window, variants), options)
                except CannotCacheError as error:
                    self._fall_back(str(error))
                except (torch.OutOfMemoryError, MemoryError, InvalidInputError, Warning):
                    raise
                except Exception as error:  # whatever a model makes of a cache and a mask it was not written for
                    self._fall_back(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return _predictions(self._full(window, variants), options)

    def _fall_back(self, reason: str) -> None:
        if self._path == "cached":
            raise InvalidInputError(f"expected {self._model.spec.name} to suit the cached path, and {reason}")
        if "one token" not in reason:  # a matter of this prompt, not of the model
            self.fallback = reason

    def _check(self, ids: Sequence[int] | NDArray[np.int32], variants: Variants, options: Sequence[int]) -> None:
        size = self._model.spec.n_vocabulary or 0
        for name, values, end in (
            ("token ids", np.asarray(ids), size),
            ("options", np.asarray(options), size),
            ("neurons", variants.neurons, self.n_neurons),
        ):
            if name != "neurons" and not len(values):
                raise InvalidInputError(f"expected at least one of {name}, found none")
            if len(values) and (values.min() < 0 or values.max() >= end):
                raise InvalidInputError(
                    f"expected {name} from 0 to {end - 1} for {self._model.spec.name}, found {values.min()} to {values.max()}"
                )

    def _cached(self, ids: Tensor, variants: Variants) -> Tensor:
        """Logits [1 + variant, vocabulary] from one prefill."""
        if ids.shape[1] < 2:
            raise CannotCacheError("a prompt of one token has nothing to keep")
        _prove_causal(self._model, ids)
        logits, kept = _prefill(self._model, ids)
        frozen = Cache(layers=[_FrozenLayer(keys[..., :-1, :], values[..., :-1, :]) for keys, values in kept])
        found = logits.new_empty((1 + len(variants), logits.shape[-1]))
        found[0] = logits[0]
        first = self._first_places(variants)
        untouched = np.flatnonzero(first == len(self._places))
        found[1 + untouched] = logits[0]
        # By the first layer they change: what comes before it is not computed for a pass's rows.
        order = np.argsort(first, kind="stable")[: len(variants) - len(untouched)]
        for chunk in np.split(order, range(self._max_rows, len(order), self._max_rows)):
            if not len(chunk):
                continue
            # One row more, changed by nothing: were it to see the rows before it, it would not end as the clean one does.
            rows = Rows(self._places[first[chunk[0]]], 1, len(chunk) + 1, len(chunk) + 1)
            with intervened(self._model, self._changes(variants, chunk, rows_are="positions")):
                values = _JoiningPass(self._model, [rows], ids.shape[1] - 1).run(ids[:, -1:], frozen)
            if (difference := _difference(values[[0, -1]], logits)) > tolerance(self._model.dtype):
                raise CannotCacheError(f"logits over kept keys and values are off by {difference:.1e}, relative")
            found[torch.as_tensor(1 + chunk)] = values[1:-1]
        return found

    def _full(self, ids: Tensor, variants: Variants) -> Tensor:
        """Logits [1 + variant, vocabulary] from the full sequence, a window for each variant."""
        model, n_positions = self._model, ids.shape[1]
        chunks = [np.empty(0, np.int64)]  # the model as it is
        per_pass = max(1, self._max_rows // n_positions)
        chunks += [np.arange(i, min(i + per_pass, len(variants))) for i in range(0, len(variants), per_pass)]
        found = []
        for chunk in chunks:
            arguments = families.arguments_for(model.model, ids.expand(max(1, len(chunk)), -1), None)
            if hasattr(model.model.config, "use_cache"):
                arguments["use_cache"] = False
            changes = self._changes(variants, chunk, rows_are="windows")
            with intervened(model, changes), hooked(model.model, head_hook(model, n_positions - 1, n_positions)):
                logits = getattr(model.model(**arguments), "logits", None)
            if not isinstance(logits, Tensor):
                raise ModelError(
                    f"expected a model with a language-model head, and {model.spec.name} gives no logits; load it as the class"
                    " it was trained as"
                )
            last = at_position(logits, max(1, len(chunk)), n_positions - 1, n_positions, model.spec.model_type)
            found.append(last)
        return torch.cat(found)

    def _first_places(self, variants: Variants) -> NDArray[np.int64]:
        """For every variant, which of the places it changes first; their number where it changes none."""
        first = np.full(len(variants), len(self._places), np.int64)
        of_entry = np.searchsorted(self._starts, variants.neurons, side="right") - 1
        np.minimum.at(first, np.repeat(np.arange(len(variants)), np.diff(variants.offsets)), of_entry)
        return first

    def _changes(self, variants: Variants, chunk: NDArray[np.int64], *, rows_are: str) -> Mapping[int, Change]:
        """What happens to each layer's activations in a pass over the variants `chunk`."""
        found = {}
        for place, row, neuron, factor in self._entries(variants, chunk):
            at = torch.as_tensor(row), torch.as_tensor(neuron), torch.as_tensor(factor)
            found[place.layer] = _scale_rows(*at, positions=rows_are == "positions")
        return found

    def _entries(
        self, variants: Variants, chunk: NDArray[np.int64]
    ) -> Iterator[tuple[Place, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """For every layer that a chunk changes: rows, neurons of the layer and factors, an entry each."""
        sets = [variants.neurons[variants.offsets[i] : variants.offsets[i + 1]] for i in chunk]
        lengths = [len(neurons) for neurons in sets]
        rows = np.repeat(np.arange(len(sets)), lengths)
        neurons = np.concatenate([np.empty(0, np.int64), *sets])
        factors = np.repeat(variants.factors[chunk], lengths)
        for place, start, stop in zip(self._places, self._starts, self._starts[1:], strict=False):
            inside = (neurons >= start) & (neurons < stop)
            if inside.any():
                yield place, rows[inside], neurons[inside] - start, factors[inside]


class _JoiningPass(_GrowingPass):
    """A pass over the last token in which rows join as in a growing pass, and go on unpatched."""

    def _patch_hooks(self) -> dict[str, Hook]:
        self._leaves = dict.fromkeys(range(len(self.chunk)), torch.empty(0))
        return {}


def _scale_rows(rows: Tensor, neurons: Tensor, factors: Tensor, *, positions: bool) -> Change:
    """The change that multiplies single activations, an entry each of row, neuron and factor.

    Rows are the positions of one window, after the clean one; or else windows, changed at their last position. Sparse: a
    factor for every neuron of every row would be as large as the activations of all layers together.
    """

    def change(values: Tensor) -> Tensor:
        after = values.clone()
        where, neuron, by = rows.to(values.device), neurons.to(values.device), factors.to(values)
        if positions:
            after[0, 1 + where, neuron] *= by
        else:
            after[where, -1, neuron] *= by
        return after

    return change


def _predictions(logits: Tensor, options: Sequence[int]) -> Predictions:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = wide[:, torch.as_tensor(options, device=wide.device)] - wide.logsumexp(-1, keepdim=True)
    return Predictions(chosen.exp().float().cpu().numpy(), wide.argmax(-1).cpu().numpy())
