"""The logit lens: the entropy of the next-token distribution at each layer's residual stream, by modality.

Huo et al. (EMNLP 2024) derive three stages of a multimodal model from these entropies. Needs a capture of `resid.post` and the
store's weights; no model, no transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from actstore.engine.devices.device import model_device
from actstore.store import layout
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import read_final_norm_parts, read_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.store.reader import Capture

SITE: Final = "resid.post"
_LOGITS_NBYTES: Final = 64 << 20
"""Bytes of logits in memory at a time."""


@dataclass(frozen=True)
class Lens:
    """Mean entropies of the next-token distributions at the layers' residual streams."""

    layers: tuple[int, ...]
    """The layers at which `resid.post` is captured: the first of each block."""
    modalities: tuple[str, ...]
    """The modalities of the capture, without special tokens and padding."""
    n_tokens: NDArray[np.int64]
    """Tokens read; shape [modality]."""
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
    a bias of the unembedding (GPT-J, Phi) is left out. At most `max_tokens` of each modality are read, from the first block on.
    `InvalidInputError` where the capture has no values of `resid.post`, or the store's weights are not sufficient.

    >>> look_through(store.capture("images")).entropies
    """
    check_stream(capture)
    head = LensHead(capture, model_device(device))
    layers = tuple(capture.record.layers(SITE))
    tokens = _select_tokens(capture, max_tokens)
    kinds = [
        kind
        for kind in (layout.TEXT, layout.IMAGE, layout.GENERATED)
        if any((m == kind).any() for _, m in tokens.values())
    ]
    n_tokens = np.array([sum(int((m == kind).sum()) for _, m in tokens.values()) for kind in kinds], np.int64)
    sums, n_done = np.zeros((len(layers), len(kinds))), 0
    for block, (slots, modality) in tokens.items():
        for row, layer in enumerate(layers):
            stream = capture.block_values(layer, block, SITE, saturated=True)[:, slots].T
            entropies = head.entropies(np.ascontiguousarray(stream))
            sums[row] += [entropies[modality == kind].sum() for kind in kinds]
        n_done += len(slots)
        on_tokens(n_done, int(n_tokens.sum()))
    return Lens(layers, tuple(layout.MODALITIES[kind] for kind in kinds), n_tokens, sums / np.maximum(n_tokens, 1))


def check_stream(capture: Capture) -> None:
    """Raise `InvalidInputError` unless a capture holds the values of the residual stream after blocks."""
    record = capture.record
    if SITE not in record.sites or not record.encoding.keeps_every_value:
        raise InvalidInputError(
            f"The logit lens reads the residual stream, and capture {record.name!r} has no dense values of it (sites "
            f"{', '.join(record.sites)}, precision {record.precision}). Capture with "
            f'`sites=("{SITE}",)`.'
        )


def _select_tokens(capture: Capture, max_tokens: int | None) -> dict[int, tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Block → the slots of its tokens to read, and their modality."""
    remaining = {kind: max_tokens for kind in (layout.TEXT, layout.IMAGE, layout.GENERATED)}
    tokens = {}
    for block in capture.blocks:
        modality = capture.block_plan(block).modality
        selected = []
        for kind, n in remaining.items():
            selected.append(np.flatnonzero(modality == kind)[:n])
            remaining[kind] = None if n is None else n - len(selected[-1])
        slots = np.sort(np.concatenate(selected))
        if len(slots):
            tokens[block] = slots, modality[slots]
    return tokens


class LensHead:
    """The final norm and unembedding, from the store's weights and its model's configuration."""

    def __init__(self, capture: Capture, device: torch.device) -> None:
        folder, model = capture.folder, capture.store.model
        self._device = device
        self._unembedding = read_weights(folder, "unembedding")["weight"].to(device).float()
        parts = read_final_norm_parts(folder)
        if parts and "centres" not in parts:
            raise InvalidInputError(
                f"{folder} was written by an earlier version, which did not record the kind of norm that {model.name} has "
                "before its unembedding. Capture into a new store."
            )
        self._norm = {name: tensor.to(device).float() for name, tensor in parts.items()}
        config: dict[str, Any] = model.config | (model.config.get("text_config") or {})
        self._cap = config.get("final_logit_softcapping")
        self._scale = float(config.get("logit_scale") or 1) / float(config.get("logits_scaling") or 1)

    def entropies(self, stream: NDArray[np.float32]) -> NDArray[np.float64]:
        """Entropy in nats of every row of `stream` [token, d_model]."""
        chunks = [entropies_of(log_p).double().cpu().numpy() for log_p in self.log_probabilities(stream)]
        return np.concatenate(chunks) if chunks else np.empty(0)

    def log_probabilities(self, stream: NDArray[np.float32]) -> Iterator[Tensor]:
        """The logarithms of the probabilities of all tokens [token, vocabulary], of a few rows of `stream` at a time."""
        size = max(1, _LOGITS_NBYTES // (4 * len(self._unembedding)))
        for first in range(0, len(stream), size):
            yield self.logits(torch.from_numpy(stream[first : first + size])).log_softmax(-1)

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


def entropies_of(log_p: Tensor) -> Tensor:
    """Entropies in nats [token] of distributions over the vocabulary [token, vocabulary]."""
    # A logit of -inf has probability 0, and 0·ln 0 is 0.
    return -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
