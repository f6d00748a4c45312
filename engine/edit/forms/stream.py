"""The residual stream before the final norm, from a store: what each position predicts, and by how much.

Needs a capture of `mlp.post` and of the last layer's `resid.post`, and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from actstore.engine.edit.words import answer_slots, has_answers
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.errors import InvalidInputError
from actstore.store.layout import SPECIAL
from actstore.store.model.directions import WriteDirections
from actstore.store.model.weights import read_post_norm, read_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.store.reader import Capture

LEAST_GAIN: Final = 1e-3
"""Of a norm after the feed-forward, relative to its largest: a write would have to be longer by as much."""
_TILE_BYTES = 1 << 27


@dataclass(frozen=True)
class BlockPredictions:
    """What the positions of one block predict."""

    block: int
    slots: NDArray[np.int64]
    """The positions, as columns of the block; special tokens are left out where the capture holds no answers."""
    document: NDArray[np.int64]
    top: NDArray[np.int64]
    """The token with the largest logit; shape of `slots`, as all fields below."""
    gap: NDArray[np.float32]
    """Its logit less that of the token `new` of `Stream.predictions`; of several tokens [position, token]."""
    inverse_rms: NDArray[np.float64]
    answers: NDArray[np.bool_]
    """Whether the position predicts a token of an answer, or of text where nothing is one."""


class Stream:
    """The last layer's output of a capture, and the head's weights."""

    def __init__(self, capture: Capture) -> None:
        """Read weights; `InvalidInputError` where the capture or the store lacks what is needed."""
        self.capture = capture
        record, model = capture.record, capture.store.model
        layers = record.layers("resid.post") if "resid.post" in record.sites else {}
        decoders = [layer for layer in model.layers if layer.stack not in ("vision", "projector")]
        last = decoders[-1].block
        final = next((layer.layer for layer in decoders if layer.block == last and layer.layer in layers), None)
        if final is None or "mlp.post" not in record.sites or not record.encoding.keeps_values:
            raise InvalidInputError(
                f"The least-norm form reads activations, the final norm's rms and logits from the store, and capture "
                f"{record.name!r} holds {', '.join(record.sites)} at precision {record.precision}. Capture again with "
                '`sites=("mlp.post", "resid.post")`, and values: '
                "the last layer's resid.post gives rms and logits exactly."
            )
        self.layer: int = final
        self.directions = WriteDirections.of_store(capture.folder)
        self.norm = self.directions.norm
        bias = read_weights(capture.folder, "final_norm").get("bias") if self.norm.is_there else None
        self._bias = None if bias is None else bias.float()
        self.unembedding: Tensor = self.directions.unembedding().float()
        self.gain = torch.ones(self.unembedding.shape[1]) if self.norm.gain is None else self.norm.gain
        self.has_answers = has_answers(capture)

    def direction(self, old: int, new: int, rivals: Sequence[int] = ()) -> Tensor:
        """The shortest write [d_model] that moves the difference of two logits by as much as `v = γ ⊙ (u_new − u_old)` does.

        Without rivals that is v itself, without its mean where the norm takes it away. With rivals, the shortest that lifts
        the new word above each of them as far as above the old.
        """
        differences = (self.gain * (self.unembedding[new] - self.unembedding[[old, *rivals]])).double()
        if self.norm.centres:
            differences = differences - differences.mean(1, keepdim=True)
        moved = differences[0].square().sum()
        if not rivals:
            return differences[0]
        shortest: Tensor = torch.linalg.pinv(differences) @ moved.expand(len(differences))
        return shortest

    def along(self, v: Tensor) -> Tensor:
        """What one unit of `v`, written to the stream, adds to each logit × rms [vocabulary]."""
        written = v - v.mean() if self.norm.centres else v
        return (self.unembedding @ (self.gain * written.float())).float()

    def written(self, layer: int, v: Tensor) -> Tensor:
        """What has to be added to write vectors of a layer for `v` [… , d_model] to be added to the stream, but for the scale.

        `InvalidInputError` where the norm after the layer lets no such vector through.
        """
        post_norm = read_post_norm(self.capture.folder, layer)
        if not post_norm:
            return v
        gain = post_norm["post_gain"].to(v)
        if post_norm["post_centres"] or float(gain.abs().min()) < LEAST_GAIN * float(gain.abs().max()):
            raise InvalidInputError(
                f"The norm after layer {layer} of {self.capture.store.model.name} keeps parts of a write from the residual "
                "stream, and the least-norm form cannot make up for them. Choose another `method`."
            )
        return v / gain

    def hidden(self, block: int, slots: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.float64]]:
        """What the head reads at slots of a block [token, d_model], and 1 / rms there [token].

        `InvalidInputError` where the stream is not finite: neither its rms nor its logits are known there.
        """
        stored = self.capture.block_values(self.layer, block, "resid.post")[:, slots]
        if not np.isfinite(stored).all():
            why = overflow_sentences(self.capture, ["resid.post"], "neither rms nor logits are known there")
            raise InvalidInputError(
                " ".join(["The least-norm form needs a finite residual stream, and the stored one is not.", *why])
            )
        stream = torch.from_numpy(stored.T.copy())
        if not self.norm.is_there:
            return stream, np.ones(len(slots))
        if self.norm.centres:
            stream = stream - stream.mean(1, keepdim=True)
        mean_square = stream.double().square().mean(1) + self.norm.epsilon
        inverse = mean_square.rsqrt()
        hidden = stream * inverse[:, None].float() * self.gain
        return hidden if self._bias is None else hidden + self._bias, np.asarray(inverse.numpy())

    def logits(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their logits [token, vocabulary]) of the result of `hidden`, tile by tile."""
        step = max(1, _TILE_BYTES // (4 * len(self.unembedding)))
        for first in range(0, len(hidden), step):
            rows = slice(first, min(first + step, len(hidden)))
            yield rows, hidden[rows] @ self.unembedding.T

    def predictions(self, new: int | Sequence[int], n_documents: int | None = None) -> list[BlockPredictions]:
        """What each position of the first `n_documents` documents predicts, and how far `new`, or each of it, is behind."""
        predictions = []
        width = () if isinstance(new, int) else (len(new),)
        for block in self.capture.blocks:
            plan = self.capture.block_plan(block)
            document = np.repeat(plan.windows["document"], plan.windows["n_slots"]).astype(np.int64)
            counted = np.ones(len(document), bool) if self.has_answers else plan.modality != SPECIAL
            if n_documents is not None:
                counted &= document < n_documents
            slots = np.flatnonzero(counted)
            if not len(slots):
                continue
            hidden, inverse = self.hidden(block, slots)
            top, gap = np.empty(len(slots), np.int64), np.empty((len(slots), *width), np.float32)
            for rows, logits in self.logits(hidden):
                best = logits.max(1)
                largest = best.values if isinstance(new, int) else best.values[:, None]
                top[rows], gap[rows] = best.indices.numpy(), (largest - logits[:, new]).numpy()
            answers = answer_slots(plan, has_answers=self.has_answers)[slots]
            predictions.append(BlockPredictions(block, slots, document[slots], top, gap, inverse, answers))
        return predictions
