"""The cached path: last-position integrated gradients from one prefill, for causal decoders.

In a causal model a change at the last position leaves all earlier keys and values as they are. So the prompt is read once,
and then only its last token runs, many times over: as one *sequence* of rows at the same position, each of which sees the
prompt's keys and values and, of the rows, only itself. Row 0 is the clean token; before a patched layer's block the sequence
grows by one copy of row 0 for each step, so that nothing below a patched layer is computed for its rows. Rows as positions of
one window, not as windows of a batch, let all of them share the prompt's keys and values where they lie: no copies forward,
no gradients of copies backward.

Whether a model bears this is not known by its name but measured: row 0 and every row that ends at ā must give the logits of
the prefill, and earlier keys and values must not change with the last token. `CannotCacheError` says what did not hold.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from actstore.engine.models.cache import cache_argument, keeping
from actstore.engine.models.patching import (
    Place,
    Rows,
    Sums,
    at_position,
    head_hook,
    hooked,
    log_probability,
    split_rows,
    tolerance,
)
from actstore.engine.models.sites import as_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import Hook

PROBE_TOKENS = 8
"""Length of the window on which a model is proved causal."""


class CannotCacheError(Exception):
    """The cached path does not hold for this model or prompt; the full path does."""


class _FrozenLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves its class hooks untyped
    """Keys and values of the prompt's earlier tokens, that new ones are put behind and not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


def cached_sums(
    model: LoadedModel, ids: Tensor, target: int, places: Sequence[Place], n_steps: int, max_rows: int
) -> Sums:
    """P, ā and the summed gradients of every place at the last position of `ids` [1, position].

    A pass holds at most `max_rows` rows beside the clean one. Raises `CannotCacheError` where the path does not hold.
    """
    if ids.shape[1] < 2:
        raise CannotCacheError("a prompt of one token has nothing to keep")
    _prove_causal(model, ids)
    with torch.no_grad():
        logits, kept = _prefill(model, ids)
    frozen = Cache(layers=[_FrozenLayer(keys[..., :-1, :], values[..., :-1, :]) for keys, values in kept])
    sums = Sums(float(log_probability(logits, target).exp()), {}, {}, {})
    for chunk in split_rows(places, n_steps, max_rows):
        growing = _GrowingPass(model, chunk, ids.shape[1] - 1)
        found = growing.run(ids[:, -1:], frozen)
        unpatched = torch.cat([found[:1], *(found[rows][-1:] for rows in growing.ends)])
        if (difference := _difference(unpatched, logits)) > tolerance(model.dtype):
            raise CannotCacheError(f"logits over kept keys and values are off by {difference:.1e}, relative")
        sums.activations.update(growing.activations)
        sums.add(chunk, growing.leaves, log_probability(found[1:], target))
    return sums


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of logits relative to the largest distance from their mean; infinite where NaN is."""
    expected = expected.detach().float()
    scale = (expected - expected.mean()).abs().max()
    return float(((found.detach().float() - expected).abs().max() / scale).nan_to_num(nan=torch.inf))


def _prefill(model: LoadedModel, ids: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The logits [window, vocabulary] of the last position, and every layer's keys and values.

    They are those of all tokens: where a layer's window slides, that is left to its mask.
    """
    if cache_argument(model.model) is None:
        raise CannotCacheError("its forward takes no keys and values of earlier tokens")
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    n_positions = ids.shape[1]
    with hooked(model.model, head_hook(model, n_positions - 1, n_positions)):
        output = model.model(input_ids=ids, **keeping(model.model, cache))
    kept = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    whole = [(k, v) for k, v in kept if k is not None and v is not None and k.shape[-2] == v.shape[-2] == n_positions]
    if not kept or len(whole) < len(kept):
        raise CannotCacheError("not every layer keeps one key for each token")
    return at_position(output.logits, len(ids), n_positions - 1, n_positions, ""), whole


_causal: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _prove_causal(model: LoadedModel, ids: Tensor) -> None:
    """Raise unless keys and values of earlier tokens stay as they are when the last token changes; proved once a model."""
    if model.model not in _causal:
        window = ids[:, -PROBE_TOKENS:].repeat(2, 1)
        window[1, -1] = (window[0, -1] + 1) % (model.spec.n_vocabulary or 2)
        with torch.no_grad():
            _, kept = _prefill(model, window)
        limit, earlier = tolerance(model.dtype), [tensor[..., :-1, :] for pair in kept for tensor in pair]
        _causal[model.model] = all(bool(((a - b).abs().max() <= limit * a.abs().max()).item()) for a, b in earlier)
    if not _causal[model.model]:
        raise CannotCacheError("earlier tokens see the last one")


@dataclass
class _GrowingPass:
    """One pass over the last token in which rows join, block by block."""

    model: LoadedModel
    chunk: Sequence[Rows]
    n_kept: int  # tokens whose keys and values are kept
    activations: dict[int, Tensor] = field(default_factory=dict)
    _leaves: dict[int, Tensor] = field(default_factory=dict)  # by number in the chunk

    def __post_init__(self) -> None:
        self._slices: list[slice] = []
        first = 1
        for rows in self.chunk:
            self._slices.append(slice(first, first + len(rows)))
            first += len(rows)

    @property
    def leaves(self) -> list[Tensor]:
        """The patched rows [step, neuron] of each layer, after the pass."""
        return [self._leaves[number] for number in range(len(self.chunk))]

    @property
    def ends(self) -> list[slice]:
        """The rows of each layer whose last row is ā itself, counting from row 0, the clean one."""
        return [where for rows, where in zip(self.chunk, self._slices, strict=True) if rows.ends]

    def run(self, last_token: Tensor, frozen: Cache) -> Tensor:
        """The logits [row, vocabulary]."""
        n_rows = self._slices[-1].stop
        with hooked(self.model.model, {**self._block_hooks(), **self._patch_hooks()}):
            output = self.model.model(input_ids=last_token, **keeping(self.model.model, frozen))
        logits = as_rows(output.logits)
        if len(logits) != n_rows or len(self._leaves) != len(self.chunk):
            raise CannotCacheError(f"expected {n_rows} rows of logits, found {len(logits)}")
        return logits

    def _block_hooks(self) -> dict[str, Hook]:
        """Before each block, the rows of its layers join; from the first that joined, masks keep rows apart."""
        by_module: dict[str, dict[int, int]] = {}
        reading_text = {self.model._find(layer).position for layer in self.model.spec.part_layers("language")}
        for number in sorted(reading_text):
            block = self.model._architecture.blocks[number]
            by_module.setdefault(block.module, {})[block.run] = number
        return {path: self._grow(path, numbers) for path, numbers in by_module.items()}

    def _grow(self, path: str, numbers: dict[int, int]) -> Hook:
        block = self.model._architecture.blocks[min(numbers.values())]
        names = list(inspect.signature(self.model.model.get_submodule(path).forward).parameters)
        stream = block.taps["resid.pre"].index if "resid.pre" in block.taps else 0
        if "attention_mask" not in names:
            raise CannotCacheError(f"{path} takes no attention_mask")

        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given: list[Any] = list(args)

            def read(name: str | int | None) -> Any:
                place = names.index(name) if isinstance(name, str) else name or 0
                return given[place] if place < len(given) else kwargs.get(names[place])

            def write(name: str | int | None, value: Any) -> None:
                place = names.index(name) if isinstance(name, str) else name or 0
                if place < len(given):
                    given[place] = value
                else:
                    kwargs[names[place]] = value

            hidden = read(stream)
            if joining := sum(len(rows) for rows in self.chunk if rows.place.block == numbers.get(run)):
                # Detached: a row begins at its own layer.
                hidden = torch.cat([hidden, hidden[:, :1].detach().expand(-1, joining, -1)], 1)
                write(stream, hidden)
            if hidden.shape[1] > 1:
                write("attention_mask", self._mask(read("attention_mask"), hidden.shape[1], hidden.device))
                if (
                    "alibi" in names and (bias := read("alibi")) is not None
                ):  # [head, 1, key]: a row's own key is the last
                    write("alibi", torch.cat([bias, bias[..., -1:].expand(-1, -1, hidden.shape[1] - 1)], -1))
            return tuple(given), kwargs

        return hook

    def _mask(self, mask: Tensor | None, n_rows: int, device: torch.device) -> Tensor:
        """The mask [1, head or 1, row, key] in which every row sees what one token alone would, and no other row."""
        if mask is None:
            mask = torch.ones((1, 1, 1, self.n_kept + 1), dtype=torch.bool, device=device)
        if mask.dim() != 4 or mask.shape[2:] != (1, self.n_kept + 1):
            raise CannotCacheError(f"an attention mask {list(mask.shape)} is not of one row and {self.n_kept + 1} keys")
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        own = torch.eye(n_rows, dtype=torch.bool, device=device)
        others = mask.new_full((), hidden)
        return torch.cat(
            [
                mask[..., : self.n_kept].expand(-1, -1, n_rows, -1),
                torch.where(own, mask[..., self.n_kept :], others),
            ],
            -1,
        )

    def _patch_hooks(self) -> dict[str, Hook]:
        """Before each layer's output projection, its rows are replaced by the path from 0 to the clean row's ā."""
        by_module: dict[str, dict[int, int]] = {}
        for number, rows in enumerate(self.chunk):
            by_module.setdefault(rows.place.owner, {})[rows.place.run] = number
        return {path: self._patch(numbers) for path, numbers in by_module.items()}

    def _patch(self, numbers: dict[int, int]) -> Hook:
        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if run not in numbers:
                return None
            rows, where = self.chunk[numbers[run]], self._slices[numbers[run]]
            values = as_rows(args[0])
            leaf = rows.scaled(values[0])
            self._leaves[numbers[run]] = leaf
            self.activations[rows.place.layer] = values[0].detach().clone()
            patched = torch.cat([values[: where.start], leaf.to(values.dtype), values[where.stop :]])
            return (patched.reshape(args[0].shape), *args[1:]), kwargs

        return hook
