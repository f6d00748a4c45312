"""A causal model run a token at a time over many windows at once, on keys and values that are kept.

What comes after a beginning that several windows share is worked out once, and each step hands over the activations of its
tokens. Of what a step costs on a CPU, most is the library's attention, made for many new tokens at once: where heads are
narrow, a kernel for one takes its place. Knows nothing about what the tokens are.
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
"""Dimensions of a head up to which our own attention is faster."""
ATTENTION: Final = "actstore_decode"


class Steps:
    """Windows that grow token by token; all are as long at any time."""

    def __init__(
        self, model: LoadedModel, n_positions: int = 0, sink: Sink | None = None, threads: int | None = None
    ) -> None:
        """No window yet, and room for `n_positions` in each; for more, room is made as it is needed, at the cost of copies.

        sink: is handed `mlp.post` of the tokens of each step (`hook_points_of` must find it), as `LoadedModel.forward` says.
        threads: those of the attention. `ModelError` by `step` for a model that does not keep keys and values.
        """
        self._model, self._sink, self._threads = model, sink, threads
        self._cache = _roomy_cache(model, n_positions, threads)
        self._hook_points = hook_points_of(model) if sink is not None else None

    def step(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """The logits [window, vocabulary] behind the next tokens of all windows.

        ids: [window, token], their next tokens. rows: [window] which of the windows so far each goes on from; itself unless
        given.
        """
        logits: Tensor = self._run(self._model.model, ids, rows).logits[:, -1]
        return logits

    def read(self, ids: Tensor, rows: Tensor | None = None) -> None:
        """The same without logits: for the sink alone."""
        self._run(families.headless(self._model.model), ids, rows)

    def _run(self, module: PreTrainedModel, ids: Tensor, rows: Tensor | None) -> Any:
        if rows is not None:
            self._cache.batch_select_indices(rows)
        arguments = families.arguments_for(module, ids, None)
        if "use_cache" not in arguments:
            raise self._keeps_nothing()
        with torch.inference_mode(), ExitStack() as open_:
            if self._hook_points is not None and self._sink is not None:
                open_.enter_context(reading_sites(self._model.model, self._hook_points, self._sink))
            found = module(**arguments | cache_arguments(module, self._cache))
        self._cache = cache_of(found)
        if self._cache is None:
            raise self._keeps_nothing()
        return found

    def _keeps_nothing(self) -> ModelError:
        return ModelError(
            f"expected {self._model.spec.name} to keep keys and values from token to token, and it does not; capture more text "
            "instead of sampling it"
        )


def hook_points_of(model: LoadedModel) -> dict[HookPoint, list[tuple[int, str]]] | None:
    """Where `mlp.post` of every layer that reads text is the input of a module of its own; None where some layer's is not.

    Nor where a step's rows would not be its tokens.
    """
    layers = [model.spec.layers[layer] for layer in model.spec.part_layers("language")]
    modules = {spec.module for spec in layers if spec.expert is None and "[" not in spec.module}
    if len(modules) < len(layers) or model.spec.model_type in families.TOKEN_POSITIONS:
        return None
    return {HookPoint(spec.module, "input"): [(spec.layer, "mlp.post")] for spec in layers}


def keeps_everything(model: LoadedModel) -> bool:
    """Whether the model is causal and every layer keeps plain keys and values of all tokens, so that windows may be joined."""
    if model.spec.kind != "causal" or not model.spec.causal:
        return False
    layers = DynamicCache(config=model.model.config.get_text_config(decoder=True)).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@contextmanager
def narrow_attention(model: LoadedModel) -> Iterator[None]:
    """While open, the model's attention to one new token over roomy keys and values is our own, on a CPU in float32."""
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
    """The attention that transformers calls; [window, position, head, dimension]."""
    room: _Room | None = getattr(key, "_actstore_room", None)
    plain = attention_mask is None and all(kwargs.get(name) in (None, 0.0) for name in _UNUSUAL)
    if room is None or query.shape[2] != 1 or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling") or 1 / math.sqrt(query.shape[-1])
    keys, values = room.keys.numpy(), room.values.numpy()
    read = decode_attention(query[:, :, 0].numpy(), keys, values, key.shape[-2], scale, threads=room.threads)
    return torch.from_numpy(read)[:, None], None


_UNUSUAL: Final = ("softcap", "s_aux", "position_bias", "dropout")
"""Arguments of attention that change its scores."""


class _Room(NamedTuple):
    """Keys and values of a layer with room for those to come."""

    keys: Tensor
    """[window, group, dimension, position]"""
    values: Tensor
    threads: int | None


def _roomy_cache(model: LoadedModel, n_positions: int, threads: int | None) -> Any:
    """A cache with room for `n_positions` where every layer keeps plain keys and values; None, the model's own, elsewhere."""
    if not keeps_everything(model):
        return None
    default = DynamicCache(config=model.model.config.get_text_config(decoder=True))
    cache = DynamicCache()
    cache.layers = [_RoomyLayer(n_positions, threads) for _ in default.layers]
    return cache


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves its class hooks untyped
    """Keys and values with room for those to come, positions last: the library's own layer copies all of them at each token."""

    def __init__(self, n_positions: int, threads: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._n_positions, self._length, self._threads = n_positions, 0, threads
        self._room: _Room

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = _Room(self._empty(key_states), self._empty(value_states), self._threads)
        start, self._length = self._length, self._length + key_states.shape[-2]
        if self._length > self._room.keys.shape[-1]:
            self._choose(slice(None), start)
        for room, states in ((self._room.keys, key_states), (self._room.values, value_states)):
            room[..., start : self._length] = states.transpose(-1, -2)
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self._choose(indices, self._length)
            self._show()

    def _empty(self, states: Tensor) -> Tensor:
        n_positions = max(self._n_positions, states.shape[2])
        return states.new_empty((*states.shape[:2], states.shape[3], n_positions))

    def _choose(self, rows: Tensor | slice, length: int) -> None:
        """Leave only `rows`, whose first `length` positions are known, with room for at least one token more."""
        chosen = []
        for room in self._room[:2]:
            known = room[rows][..., :length] if isinstance(rows, slice) else room[..., :length][rows]
            n_positions = max(self._n_positions, self._length, length + 1)
            chosen.append(room.new_empty((len(known), *room.shape[1:3], n_positions)))
            chosen[-1][..., :length] = known
        self._room = _Room(chosen[0], chosen[1], self._threads)

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (room[..., : self._length].transpose(-1, -2) for room in (self._room.keys, self._room.values))
        # Attention is handed keys and values alone; what they are a view of goes with them.
        keys._actstore_room = self._room  # type: ignore[attr-defined]
        self.keys, self.values = keys, values
        return keys, values
