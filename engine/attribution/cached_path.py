"""The cached path: last-position integrated gradients from one prefill, for causal decoders.

In a causal model a change at the last position does not change any earlier keys and values. So the prompt is read once, and
then only its last token runs, many times: as one *sequence* of rows at the same position, each of which attends to the
prompt's keys and values and, of the rows, only to itself. Row 0 is the clean token; before a patched layer's block the
sequence grows by one copy of row 0 per step, so that nothing below a patched layer is computed for its rows. Rows are positions
of one window rather than windows of a batch, so that all of them share the prompt's keys and values in place: no copies in the
forward pass, no gradients of copies in the backward pass.

Whether this holds for a model is not known by its name but measured: row 0 and every row that ends at ā must give the logits
of the prefill, and earlier keys and values must not change with the last token. `CannotCacheError` says what did not hold.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from actstore.engine.models.cache import cache_argument, cache_arguments
from actstore.engine.models.patching import (
    PatchPoint,
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
    from actstore.engine.models.patching import Arguments, Hook

PROBE_TOKENS: Final = 8
"""Length of the window on which a model is shown to be causal."""


class CannotCacheError(Exception):
    """The cached path does not hold for this model or prompt; the full path is needed."""


class FrozenLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves its class hooks untyped
    """Keys and values of the prompt's earlier tokens. New ones are appended for the pass, and not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The stored keys and values with the new ones appended."""
        # [window, head, key, d_head]. Nothing is stored: every pass over the last token begins with the same prompt.
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


def cached_sums(
    model: LoadedModel, ids: Tensor, target: int, places: Sequence[PatchPoint], n_steps: int, max_rows: int
) -> Sums:
    """P, ā and the summed gradients of every place at the last position of `ids` [1, position].

    A pass holds at most `max_rows` rows beside the clean one. Raises `CannotCacheError` where the path does not hold.
    """
    if ids.shape[1] < 2:
        raise CannotCacheError("a prompt of one token has no earlier keys and values")
    check_causal(model, ids)
    with torch.no_grad():
        logits, keys_and_values = prefill(model, ids)
    frozen = freeze(keys_and_values)
    sums = Sums(float(log_probability(logits, target).exp()), {}, {}, {})
    for chunk in split_rows(places, n_steps, max_rows):
        growing = GrowingPass(model, chunk, ids.shape[1] - 1)
        row_logits = growing.run(ids[:, -1:], frozen)
        # Row 0 is clean, and a row that ends at ā has its own activations put back: both must repeat the prefill. A model
        # whose cache, mask or positions work otherwise is found out here, in every pass, and not by its name.
        unpatched = torch.cat([row_logits[:1], *(row_logits[rows][-1:] for rows in growing.ends)])
        if (difference := relative_difference(unpatched, logits)) > tolerance(model.dtype):
            raise CannotCacheError(f"logits over cached keys and values are off by {difference:.1e}, relative")
        sums.activations.update(growing.activations)
        sums.add(chunk, growing.leaves, log_probability(row_logits[1:], target))
    return sums


def freeze(keys_and_values: Sequence[tuple[Tensor, Tensor]]) -> Cache:
    """The cache of a prompt without its last token, which runs anew in every pass."""
    return Cache(layers=[FrozenLayer(keys[..., :-1, :], values[..., :-1, :]) for keys, values in keys_and_values])


def relative_difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference of logits relative to the largest distance from their mean; infinite where one is NaN."""
    expected = expected.detach().float()
    scale = (expected - expected.mean()).abs().max()
    return float(((logits.detach().float() - expected).abs().max() / scale).nan_to_num(nan=torch.inf))


def prefill(model: LoadedModel, ids: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The logits [window, vocabulary] of the last position, and every layer's keys and values.

    Every layer keeps those of all tokens: a sliding window is applied by the layer's mask, not by dropping keys.
    """
    if cache_argument(model.model) is None:
        raise CannotCacheError("its forward takes no keys and values of earlier tokens")
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    n_positions = ids.shape[1]
    with hooked(model.model, head_hook(model, n_positions - 1, n_positions)):
        output = model.model(input_ids=ids, **cache_arguments(model.model, cache))
    layers = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    complete = [
        (k, v) for k, v in layers if k is not None and v is not None and k.shape[-2] == v.shape[-2] == n_positions
    ]
    if not layers or len(complete) < len(layers):
        raise CannotCacheError("not every layer keeps one key per token")
    return at_position(output.logits, len(ids), n_positions - 1, n_positions, ""), complete


_causal: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether each model was shown to be causal; weak, so that a model is not kept in memory by having been asked."""


def check_causal(model: LoadedModel, ids: Tensor) -> None:
    """Raise unless keys and values of earlier tokens do not change with the last token; checked once per model."""
    if model.model not in _causal:
        window = ids[:, -PROBE_TOKENS:].repeat(2, 1)
        window[1, -1] = (window[0, -1] + 1) % (model.spec.n_vocabulary or 2)
        with torch.no_grad():
            _, keys_and_values = prefill(model, window)
        limit, earlier = tolerance(model.dtype), [tensor[..., :-1, :] for pair in keys_and_values for tensor in pair]
        _causal[model.model] = all(bool(((a - b).abs().max() <= limit * a.abs().max()).item()) for a, b in earlier)
    if not _causal[model.model]:
        raise CannotCacheError("earlier tokens see the last one")


@dataclass
class _BlockArguments:
    """The arguments of one call of a block, read and written by name or position, however the model passes them."""

    names: list[str]
    positional: list[Any]
    by_name: dict[str, Any]

    def _index(self, name: str | int | None) -> int:
        return self.names.index(name) if isinstance(name, str) else name or 0

    def read(self, name: str | int | None) -> Any:
        """The value of an argument; None where it was not passed."""
        index = self._index(name)
        return self.positional[index] if index < len(self.positional) else self.by_name.get(self.names[index])

    def write(self, name: str | int | None, value: Tensor) -> None:
        """Replace an argument, in the way it was passed."""
        index = self._index(name)
        if index < len(self.positional):
            self.positional[index] = value
        else:
            self.by_name[self.names[index]] = value


@dataclass
class GrowingPass:
    """One pass over the last token in which rows join block by block.

    The sequence of a block is [clean row, rows of the first layer, rows of the second layer, …] of the layers at or below it.
    """

    model: LoadedModel
    chunk: Sequence[Rows]
    n_cached: int  # earlier tokens, whose keys and values are cached
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
        return [positions for rows, positions in zip(self.chunk, self._slices, strict=True) if rows.ends]

    def run(self, last_token: Tensor, frozen: Cache) -> Tensor:
        """The logits [row, vocabulary]."""
        n_rows = self._slices[-1].stop
        with hooked(self.model.model, {**self._block_hooks(), **self._patch_hooks()}):
            output = self.model.model(input_ids=last_token, **cache_arguments(self.model.model, frozen))
        logits = as_rows(output.logits)
        if len(logits) != n_rows or len(self._leaves) != len(self.chunk):
            raise CannotCacheError(f"the pass returned {len(logits)} rows of logits instead of {n_rows}")
        return logits

    def _block_hooks(self) -> dict[str, Hook]:
        """Before each block the rows of its layers join; from the first block with rows on, masks separate them."""
        by_module: dict[str, dict[int, int]] = {}
        text_blocks = {self.model.layer(layer).position for layer in self.model.spec.part_layers("language")}
        for number in sorted(text_blocks):
            block = self.model.architecture.blocks[number]
            by_module.setdefault(block.module, {})[block.run] = number
        return {path: self._grow(path, numbers) for path, numbers in by_module.items()}

    def _grow(self, path: str, numbers: dict[int, int]) -> Hook:
        block = self.model.architecture.blocks[min(numbers.values())]
        names = list(inspect.signature(self.model.model.get_submodule(path).forward).parameters)
        stream = block.hook_points["resid.pre"].index if "resid.pre" in block.hook_points else 0
        if "attention_mask" not in names:
            raise CannotCacheError(f"{path} takes no attention_mask")

        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
            arguments = _BlockArguments(names, list(args), kwargs)
            hidden = arguments.read(stream)  # [window, row, d_model]
            if joining := sum(len(rows) for rows in self.chunk if rows.point.block == numbers.get(run)):
                # Detached: the path of a row begins at its own layer, and gradients below it are not needed.
                hidden = torch.cat([hidden, hidden[:, :1].detach().expand(-1, joining, -1)], 1)
                arguments.write(stream, hidden)
            if hidden.shape[1] > 1:
                mask = self._mask(arguments.read("attention_mask"), hidden.shape[1], hidden.device)
                arguments.write("attention_mask", mask)
                # [head, 1, key]: ALiBi's bias of a row's own key is that of the last.
                if "alibi" in names and (bias := arguments.read("alibi")) is not None:
                    own = bias[..., -1:].expand(-1, -1, hidden.shape[1] - 1)
                    arguments.write("alibi", torch.cat([bias, own], -1))
            return tuple(arguments.positional), kwargs

        return hook

    def _mask(self, mask: Tensor | None, n_rows: int, device: torch.device) -> Tensor:
        """The mask [1, head or 1, row, key] in which every row attends as one token alone would, and to no other row."""
        if mask is None:
            mask = torch.ones((1, 1, 1, self.n_cached + 1), dtype=torch.bool, device=device)
        if mask.dim() != 4 or mask.shape[2:] != (1, self.n_cached + 1):
            raise CannotCacheError(
                f"an attention mask of shape {list(mask.shape)} has not one row and {self.n_cached + 1} keys"
            )
        # Keys are [earlier tokens, rows]. Earlier tokens are masked as for the clean token, and of the rows each attends
        # only to itself: the diagonal. Two rows that saw each other would mix their steps.
        masked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        diagonal = torch.eye(n_rows, dtype=torch.bool, device=device)
        others = mask.new_full((), masked)
        return torch.cat(
            [
                mask[..., : self.n_cached].expand(-1, -1, n_rows, -1),
                torch.where(diagonal, mask[..., self.n_cached :], others),
            ],
            -1,
        )

    def _patch_hooks(self) -> dict[str, Hook]:
        """Before each layer's output projection, its rows are replaced by the path from 0 to the clean row's ā."""
        by_module: dict[str, dict[int, int]] = {}
        for number, rows in enumerate(self.chunk):
            by_module.setdefault(rows.point.owner, {})[rows.point.run] = number
        return {path: self._patch(numbers) for path, numbers in by_module.items()}

    def _patch(self, numbers: dict[int, int]) -> Hook:
        def hook(run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
            if run not in numbers:
                return None
            rows, positions = self.chunk[numbers[run]], self._slices[numbers[run]]
            values = as_rows(args[0])  # [row, neuron]
            # ā is taken from row 0 of this very pass: no pass of its own, and the last step reproduces it exactly.
            leaf = rows.scaled(values[0])
            self._leaves[numbers[run]] = leaf
            self.activations[rows.point.layer] = values[0].detach().clone()
            patched = torch.cat([values[: positions.start], leaf.to(values.dtype), values[positions.stop :]])
            return (patched.reshape(args[0].shape), *args[1:]), kwargs

        return hook
