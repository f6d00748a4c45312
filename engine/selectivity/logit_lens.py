"""The logit lens: how undecided each layer's residual stream is about the next token, image and text tokens apart.

DAPE (Huo et al., EMNLP 2024) reads three stages of a multimodal model off these entropies. Needs a capture of `resid.post`
and the store's weights; no model, no transformers. Knows nothing about how the stream came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.store import layout
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import read_final_norm_parts, read_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.store.reader import Capture

SITE: Final = "resid.post"
_LOGITS_NBYTES: Final = 64 << 20
"""Logits held at once; they are never kept."""


@dataclass(frozen=True)
class Lens:
    """Mean entropies of the next-token distributions that the layers' residual streams stand for."""

    layers: tuple[int, ...]
    """The layers under which `resid.post` is captured: the first of each block."""
    modalities: tuple[str, ...]
    """Those that the capture has, special tokens and padding left out."""
    n_tokens: NDArray[np.int64]
    """Tokens looked at; shape [modality]."""
    entropies: NDArray[np.float64]
    """In nats; shape [layer, modality]."""


def look_through(
    capture: Capture,
    *,
    max_tokens: int | None = None,
    device: str = "auto",
    on_tokens: Callable[[int, int], None] = lambda done, total: None,
) -> Lens:
    """Entropy of `softmax(W_u · norm(h_l))`, the mean over the tokens of each modality, for every layer of `resid.post`.

    The norm is the model's final one, with its gain and bias; logits are scaled or capped as the model's configuration says;
    a bias of the unembedding (GPT-J, Phi) is left out. `max_tokens` of each modality are looked at, from the first block on.
    `InvalidInputError` where the capture has no values of `resid.post`, or the store's weights say too little.

    >>> look_through(store.capture("images")).entropies
    """
    record = capture.record
    if SITE not in record.sites or not record.encoding.keeps_every_value:
        raise InvalidInputError(
            f"The logit lens reads the residual stream, and capture {record.name!r} has no dense values of it (sites "
            f"{', '.join(record.sites)}, precision {record.precision}). Capture with --site {SITE}."
        )
    head = _Head(capture, _device(device))
    layers = tuple(record.layers(SITE))
    chosen = _choose_tokens(capture, max_tokens)
    kinds = [
        kind
        for kind in (layout.TEXT, layout.IMAGE, layout.GENERATED)
        if any((m == kind).any() for _, m in chosen.values())
    ]
    n_tokens = np.array([sum(int((m == kind).sum()) for _, m in chosen.values()) for kind in kinds], np.int64)
    sums, n_done = np.zeros((len(layers), len(kinds))), 0
    for block, (slots, modality) in chosen.items():
        for row, layer in enumerate(layers):
            stream = capture.block_values(layer, block, SITE, saturated=True)[:, slots].T
            entropies = head.entropies(np.ascontiguousarray(stream))
            sums[row] += [entropies[modality == kind].sum() for kind in kinds]
        n_done += len(slots)
        on_tokens(n_done, int(n_tokens.sum()))
    return Lens(layers, tuple(layout.MODALITIES[kind] for kind in kinds), n_tokens, sums / np.maximum(n_tokens, 1))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise InvalidInputError(
            f"Expected a device such as cpu, cuda or cuda:1, found {name!r}. Mend --device."
        ) from None


def _choose_tokens(capture: Capture, max_tokens: int | None) -> dict[int, tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Block → the places of its tokens to look at, and their modality."""
    room = {kind: max_tokens for kind in (layout.TEXT, layout.IMAGE, layout.GENERATED)}
    chosen = {}
    for block in capture.blocks:
        modality = capture.block_plan(block).modality
        parts = []
        for kind, left in room.items():
            parts.append(np.flatnonzero(modality == kind)[:left])
            room[kind] = None if left is None else left - len(parts[-1])
        slots = np.sort(np.concatenate(parts))
        if len(slots):
            chosen[block] = slots, modality[slots]
    return chosen


class _Head:
    """What turns a residual stream into logits, from the store's weights and its model's configuration."""

    def __init__(self, capture: Capture, device: torch.device) -> None:
        folder, model = capture.folder, capture.store.model
        self._device = device
        self._unembedding = read_weights(folder, "unembedding")["weight"].to(device).float()
        parts = read_final_norm_parts(folder)
        if parts and "centres" not in parts:
            raise InvalidInputError(
                f"{folder} does not say which kind of norm {model.name} has before its unembedding, as an earlier version "
                "wrote it. Capture into a new store."
            )
        self._norm = {name: tensor.to(device).float() for name, tensor in parts.items()}
        config: dict[str, Any] = model.config | (model.config.get("text_config") or {})
        self._cap = config.get("final_logit_softcapping")
        self._scale = float(config.get("logit_scale") or 1) / float(config.get("logits_scaling") or 1)

    def entropies(self, stream: NDArray[np.float32]) -> NDArray[np.float64]:
        """In nats, of every row of `stream` [token, d_model]."""
        size = max(1, _LOGITS_NBYTES // (4 * len(self._unembedding)))
        found = [self._entropies(torch.from_numpy(stream[i : i + size])) for i in range(0, len(stream), size)]
        return np.concatenate(found) if found else np.empty(0)

    def _entropies(self, stream: Tensor) -> NDArray[np.float64]:
        log_p = self.logits(stream).log_softmax(-1)
        # A logit of -inf has probability 0, and 0·ln 0 is 0.
        terms = log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)
        return -terms.sum(-1).double().cpu().numpy()

    def logits(self, stream: Tensor) -> Tensor:
        """[token, vocabulary]."""
        normed = stream.to(self._device).float()
        if self._norm:
            if self._norm["centres"]:
                normed = normed - normed.mean(-1, keepdim=True)
            normed = normed * torch.rsqrt(normed.square().mean(-1, keepdim=True) + self._norm["epsilon"])
            normed = normed * self._norm.get("weight", torch.ones(1)).to(normed) + self._norm.get(
                "bias", torch.zeros(1)
            ).to(normed)
        logits = normed @ self._unembedding.T * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)
