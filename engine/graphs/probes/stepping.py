"""Runs a causal model one token at a time over many windows at once, with cached keys and values.

A prefix that several windows share is computed once, and each step passes the activations of its tokens to a sink. On a CPU,
most of the time of a step is the library's attention, which is made for many new tokens at once: where heads are narrow, a
kernel of our own for one new token replaces it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from actstore.engine.models import families
from actstore.engine.models.cache import cache_arguments, cache_of
from actstore.engine.models.sites import HookPoint, Sink, reading_sites
from actstore.kernels.decode_attention.api import decode_attention
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from actstore.engine.models.load import LoadedModel

NARROW: Final = 32
"""Maximum number of dimensions of a head for which our own attention is faster."""
ATTENTION: Final = "actstore_decode"
"""Name under which our attention is registered in transformers."""


class Steps:
    """Windows that grow token by token; at any time all have the same length."""

    def __init__(
        self, model: LoadedModel, n_positions: int = 0, sink: Sink | None = None, threads: int | None = None
    ) -> None:
        """Begin without windows, with memory for `n_positions` per window; more positions cost copies of keys and values.

        sink: called with `mlp.post` of the tokens of each step, as by `LoadedModel.forward`; `hook_points_of` must not be None.
        threads: number of threads of the attention. `step` raises `ModelError` for a model that does not cache keys and values.
        """
        self._model, self._sink, self._threads = model, sink, threads
        # The model's own cache, where ours does not fit; its class differs between models.
        self._cache: Any = _preallocated_cache(model, n_positions, threads)
        self._hook_points = hook_points_of(model) if sink is not None else None

    def step(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """The logits [window, vocabulary] after the next tokens of all windows.

        ids: [window, token] the next tokens. rows: [window] the earlier window that each continues; by default the same.
        """
        logits: Tensor = self._run(self._model.model, ids, rows).logits[:, -1]
        return logits

    def read(self, ids: Tensor, rows: Tensor | None = None) -> None:
        """Read the next tokens of all windows without computing logits, for the sink alone."""
        self._run(families.headless(self._model.model), ids, rows)

    def _run(self, module: PreTrainedModel, ids: Tensor, rows: Tensor | None) -> Any:
        """What the module returns: each architecture has a class of its own."""
        if rows is not None:
            self._cache.batch_select_indices(rows)
        arguments = families.arguments_for(module, ids, None)
        if "use_cache" not in arguments:
            raise self._no_cache_error()
        with torch.inference_mode(), ExitStack() as stack:
            if self._hook_points is not None and self._sink is not None:
                stack.enter_context(reading_sites(self._model.model, self._hook_points, self._sink))
            output = module(**arguments | cache_arguments(module, self._cache))
        self._cache = cache_of(output)
        if self._cache is None:
            raise self._no_cache_error()
        return output

    def _no_cache_error(self) -> ModelError:
        return ModelError(
            f"Expected {self._model.spec.name} to cache keys and values, which it does not. Capture more text "
            "instead of sampling it."
        )


def hook_points_of(model: LoadedModel) -> dict[HookPoint, list[tuple[int, str]]] | None:
    """The hook points of `mlp.post` of every layer that reads text: each the input of a module of its own.

    None where it is not for some layer, or where the rows that a module reads are not the tokens of the step.
    """
    layers = [model.spec.layers[layer] for layer in model.spec.part_layers("language")]
    modules = {spec.module for spec in layers if spec.expert is None and "[" not in spec.module}
    if len(modules) < len(layers) or model.spec.model_type in families.TOKEN_POSITIONS:
        return None
    return {HookPoint(spec.module, "input"): [(spec.layer, "mlp.post")] for spec in layers}


def keeps_everything(model: LoadedModel) -> bool:
    """Whether the model is causal and all layers cache keys and values of all tokens, so that windows can share a prefix."""
    if model.spec.kind != "causal" or not model.spec.causal:
        return False
    layers = DynamicCache(config=model.model.config.get_text_config(decoder=True)).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@contextmanager
def narrow_attention(model: LoadedModel) -> Iterator[None]:
    """Within the context, a model in float32 on a CPU uses our attention for one new token, where its heads are narrow."""
    before = model.model.config._attn_implementation
    fits = model.device.type == "cpu" and model.dtype == torch.float32 and before == "sdpa" and keeps_everything(model)
    if not fits or (_head_size(model) or NARROW + 1) > NARROW:
        yield
        return
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.model.set_attn_implementation(before)


def _head_size(model: LoadedModel) -> int | None:
    config = model.model.config.get_text_config(decoder=True)
    n_heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (n_heads and model.spec.d_model // n_heads)
    return size if isinstance(size, int) else None


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; it returns [window, position, head, dimension].

    Our kernel takes one new token, without a mask, over keys of our cache; everything else goes to the library.
    """
    storage: _Storage | None = getattr(key, "_actstore_storage", None)
    is_plain = attention_mask is None and all(kwargs.get(name) in (None, 0.0) for name in _UNUSUAL)
    if storage is None or query.shape[2] != 1 or not is_plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling") or 1 / math.sqrt(query.shape[-1])
    keys, values = storage.keys.numpy(), storage.values.numpy()
    # `key` has the positions that are filled; the storage, which the kernel reads without a copy, has more.
    attended = decode_attention(query[:, :, 0].numpy(), keys, values, key.shape[-2], scale, threads=storage.threads)
    return torch.from_numpy(attended)[:, None], None


_UNUSUAL: Final = ("softcap", "s_aux", "position_bias", "dropout")
"""Arguments of attention that change its scores, which our kernel does not implement."""


class _Storage(NamedTuple):
    """Keys and values of a layer, with memory for further positions."""

    keys: Tensor
    """[window, group, dimension, position]: positions last, so that the kernel reads them in sequence"""
    values: Tensor
    threads: int | None


def _preallocated_cache(model: LoadedModel, n_positions: int, threads: int | None) -> DynamicCache | None:
    """A cache with memory for `n_positions`; None, the model's own, where a layer does not have plain keys and values."""
    if not keeps_everything(model):
        return None
    default = DynamicCache(config=model.model.config.get_text_config(decoder=True))
    cache = DynamicCache()
    cache.layers = [_PreallocatedLayer(n_positions, threads) for _ in default.layers]
    return cache


class _PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves its class hooks untyped
    """Keys and values with memory for further positions: the library's own layer copies all of them at each token."""

    def __init__(self, n_positions: int, threads: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._n_positions, self._length, self._threads = n_positions, 0, threads
        self._storage: _Storage

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._storage = _Storage(self._empty(key_states), self._empty(value_states), self._threads)
        start, self._length = self._length, self._length + key_states.shape[-2]
        if self._length > self._storage.keys.shape[-1]:
            # More positions than were announced: all keys and values are copied into larger memory.
            self._resize(slice(None), start)
        for tensor, states in ((self._storage.keys, key_states), (self._storage.values, value_states)):
            tensor[..., start : self._length] = states.transpose(-1, -2)
        return self._expose()

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self._resize(indices, self._length)
            self._expose()

    def _empty(self, states: Tensor) -> Tensor:
        n_positions = max(self._n_positions, states.shape[2])
        return states.new_empty((*states.shape[:2], states.shape[3], n_positions))

    def _resize(self, rows: Tensor | slice, length: int) -> None:
        """Copy the first `length` positions of `rows` into new memory, with space for at least one position more."""
        resized = []
        for tensor in self._storage[:2]:
            # An index copies: of all positions only those that are filled.
            filled = tensor[rows][..., :length] if isinstance(rows, slice) else tensor[..., :length][rows]
            n_positions = max(self._n_positions, self._length, length + 1)
            resized.append(tensor.new_empty((len(filled), *tensor.shape[1:3], n_positions)))
            resized[-1][..., :length] = filled
        self._storage = _Storage(resized[0], resized[1], self._threads)

    def _expose(self) -> tuple[Tensor, Tensor]:
        """The filled keys and values, [window, group, position, dimension], as views of the storage."""
        tensors = (self._storage.keys, self._storage.values)
        keys, values = (tensor[..., : self._length].transpose(-1, -2) for tensor in tensors)
        # Attention is called with keys and values alone: the storage of which they are views is attached to the keys.
        keys._actstore_storage = self._storage  # type: ignore[attr-defined]
        self.keys, self.values = keys, values
        return keys, values
