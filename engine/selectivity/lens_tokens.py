"""The logit lens as tables: the tokens that each layer's residual stream stands for, at one position or along a document.

What the model would predict if its head read the stream after a block (nostalgebraist 2020). Needs a capture of `resid.post`
and the store's weights, as the lens of entropies does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from actstore.engine.contributions.next_tokens import NextTokens, Place, find_slot
from actstore.engine.devices.device import model_device
from actstore.engine.selectivity.logit_lens import SITE, LensHead, check_stream, entropies_of
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.model.root import Root
    from actstore.store.reader import Capture


@dataclass(frozen=True)
class LensTokens:
    """The likeliest tokens of each layer at some positions."""

    layers: tuple[int, ...]
    """The layers at which `resid.post` is captured: the first of each block."""
    document: int
    windows: NDArray[np.int64]
    """Of each position; shape [position]."""
    positions: NDArray[np.int64]
    """In their windows; shape [position]."""
    read: NDArray[np.int64]
    """The token that the model read there; shape [position]."""
    following: NDArray[np.int64]
    """The token that comes next, -1 where none is known; shape [position]."""
    tokens: NDArray[np.int64]
    """Best first; shape [layer, position, k]."""
    probabilities: NDArray[np.float64]
    """Of `tokens`; shape [layer, position, k]."""
    of_following: NDArray[np.float64]
    """Probability of the token that comes next, NaN where none is known; shape [layer, position]."""
    entropies: NDArray[np.float64]
    """In nats; shape [layer, position]."""

    def table(self, store: Root) -> pa.Table:
        """One row per position, layer and rank; the columns of `store.selectivity.lens_tokens`."""
        n_layers, n_positions, k = self.tokens.shape
        # [position, layer, k], each flattened
        layer, position = (
            np.broadcast_to(index, (n_positions, n_layers, k)).reshape(-1)
            for index in (np.arange(n_layers)[None, :, None], np.arange(n_positions)[:, None, None])
        )
        tokens = self.tokens.transpose(1, 0, 2).reshape(-1)
        texts = {int(token): store.token_text(int(token)) for token in np.unique(tokens)}
        following = self.following[position]
        return pa.table(
            {
                "document": pa.array(np.full(len(tokens), self.document), pa.int32()),
                "window": pa.array(self.windows[position], pa.int32()),
                "position": pa.array(self.positions[position], pa.int32()),
                "read": pa.array(self.read[position], pa.int32()),
                "layer": pa.array(np.array(self.layers)[layer], pa.int32()),
                "rank": pa.array(np.tile(np.arange(1, k + 1), n_layers * n_positions), pa.int32()),
                "token": pa.array(tokens, pa.int32()),
                "text": pa.array([texts[int(token)] for token in tokens], pa.string()),
                "probability": self.probabilities.transpose(1, 0, 2).reshape(-1),
                "entropy": self.entropies[layer, position],
                "next": pa.array(following, pa.int32(), mask=following < 0),
                "next_probability": pa.array(self.of_following[layer, position], mask=following < 0),
            }
        )


def read_lens(
    capture: Capture,
    *,
    at: str | Place | None = None,
    document: int | None = None,
    k: int = 5,
    device: str = "auto",
) -> LensTokens:
    """The k likeliest tokens of `softmax(W_u · norm(h_l))` after every block, at one place or at every position of a document.

    Ties go to the smaller token id. The head is that of the lens of entropies. `InvalidInputError` unless either a place or a
    document is named, and where the capture does not hold the stream; `NotFoundError` for a place or document it does not hold.
    """
    if (at is None) == (document is None):
        raise InvalidInputError("The lens shows one position or one document: pass either `at` or `document`.")
    if k < 1:
        raise InvalidInputError(f"At least one token must be asked for, found {k}. Pass `k` of 1 or more.")
    check_stream(capture)
    if at is not None:
        slot = find_slot(capture, Place.parse(at) if isinstance(at, str) else Place(*at))
        slots, document = {slot.block: np.array([slot.offset])}, slot.document
    else:
        assert document is not None
        slots = _slots_of(capture, document)
    return _read(capture, document, slots, k, device)


def _slots_of(capture: Capture, document: int) -> dict[int, NDArray[np.int64]]:
    """Block → the slots of a document in it."""
    n_documents = capture.record.plan.n_documents
    if not 0 <= document < n_documents:
        raise NotFoundError(
            f"Capture {capture.record.name!r} has documents 0 to {n_documents - 1}, found document {document}."
        )
    slots = {}
    for block in capture.blocks:
        plan = capture.block_plan(block)
        of_document = np.flatnonzero(plan.windows["document"][plan.window_of_slot()] == document)
        if len(of_document):
            slots[block] = of_document
    if not slots:
        raise NotFoundError(f"Document {document} of capture {capture.record.name!r} has no stored token.")
    return slots


def _read(capture: Capture, document: int, slots: dict[int, NDArray[np.int64]], k: int, device: str) -> LensTokens:
    head, next_tokens = LensHead(capture, model_device(device)), NextTokens(capture)
    layers = tuple(capture.record.layers(SITE))
    of_blocks: list[Sequence[NDArray[Any]]] = []
    read: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in layers]
    for block, of_block in slots.items():
        plan = capture.block_plan(block)
        window, position = plan.windows["window"][plan.window_of_slot()[of_block]], plan.position[of_block]
        following = next_tokens.of_block(block)[of_block]
        starts = (plan.windows["input_start"] - plan.windows["input_start"][0])[plan.window_of_slot()[of_block]]
        of_blocks.append((window, position, plan.inputs[starts + position], following))
        for row, layer in enumerate(layers):
            stream = capture.block_values(layer, block, SITE, saturated=True)[:, of_block].T
            read[row].append(_likeliest(head, np.ascontiguousarray(stream), following, k))
    windows, positions, ids, following_ids = (
        np.concatenate(parts).astype(np.int64) for parts in zip(*of_blocks, strict=True)
    )
    tokens, probabilities, of_following, entropies = (
        np.stack([np.concatenate([block[i] for block in of_layer]) for of_layer in read]) for i in range(4)
    )
    return LensTokens(
        layers,
        document,
        windows,
        positions,
        ids,
        following_ids,
        tokens.astype(np.int64),
        probabilities,
        of_following,
        entropies,
    )


def _likeliest(
    head: LensHead, stream: NDArray[np.float32], following: NDArray[np.int64], k: int
) -> tuple[NDArray[Any], ...]:
    """Tokens and probabilities [token, k], the probability of what follows [token], entropies [token]."""
    parts: list[tuple[NDArray[Any], ...]] = []
    first = 0
    for log_p in head.log_probabilities(stream):
        p = log_p.exp()
        next_token = torch.from_numpy(following[first : first + len(p)]).to(p.device)
        # A stable sort, so that of tokens alike the smaller id comes first.
        best = p.sort(dim=1, descending=True, stable=True).indices[:, :k]
        of_next = p.gather(1, next_token.clamp_min(0)[:, None])[:, 0].double().masked_fill(next_token < 0, torch.nan)
        tensors = (best, p.gather(1, best).double(), of_next, entropies_of(log_p).double())
        parts.append(tuple(tensor.cpu().numpy() for tensor in tensors))
        first += len(p)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
