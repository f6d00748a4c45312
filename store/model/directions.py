"""What neurons write, as the unembedding reads it: write vectors, rows of the unembedding, and the final norm between them.

A neuron of activation `a` adds `a · (w · (γ ⊙ u)) / rms` to the logit of a token (Pan et al. 2024, arXiv 2311.07470, who leave
out γ and rms): w is its write vector, without its mean where the final norm centres; γ is the norm's gain, and u the row of the
unembedding that belongs to the token. Where a norm follows the feed-forward, w is what that makes of the write vector, but for
the norm's scale at the position (`store.capture.tokens.write_scale`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from actstore.store.model.weights import (
    FinalNorm,
    after_post_norm,
    final_norm_of,
    read_final_norm,
    read_post_norm,
    read_rows,
    read_weights,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from actstore.store.storage.folder import Folder

NO_NORM: Final = FinalNorm(None, 0.0, centres=False, is_there=False)
"""In place of the final norm where neither its gain nor its centring is wanted: the form of Pan et al."""


@dataclass(frozen=True)
class WriteDirections:
    """Write vectors and rows of the unembedding whose products are contributions to logits, of a store or of a model.

    In the dtype they are kept in, but float64, which no kernel takes: that is float32 here.
    """

    norm: FinalNorm
    _read_vectors: Callable[[int, Sequence[int] | None], Tensor]
    _read_unembedding: Callable[[Sequence[int] | None], Tensor]

    @classmethod
    def of_store(cls, folder: Folder, *, gain: bool = True) -> WriteDirections:
        """Those of a store, each read when it is asked for; without `gain`, as if there were no norm after them.

        What gives vectors and rows raises `NotFoundError` where the store does not keep them.
        """
        return cls(
            read_final_norm(folder) if gain else NO_NORM,
            lambda layer, neurons: _read_vectors(folder, layer, neurons, gain=gain),
            lambda tokens: _read_unembedding(folder, tokens),
        )

    @classmethod
    def of_model(
        cls,
        write_vectors: Callable[[int], Tensor],
        unembedding: Tensor,
        final_norm: dict[str, Tensor],
        post_norm: Callable[[int], dict[str, Tensor]] = lambda layer: {},
    ) -> WriteDirections:
        """Those of a model in memory, on the device that they are on; `post_norm` as `LoadedModel` has it."""

        def vectors(layer: int, neurons: Sequence[int] | None) -> Tensor:
            matrix = write_vectors(layer)
            return after_post_norm(matrix if neurons is None else matrix[list(neurons)], post_norm(layer))

        return cls(
            final_norm_of(final_norm),
            vectors,
            lambda tokens: unembedding if tokens is None else unembedding[list(tokens)],
        )

    @property
    def gain(self) -> Tensor | None:
        """The gain γ of the final norm [d_model] in float32; None where it is 1."""
        return self.norm.gain

    def vectors(self, layer: int, neurons: Sequence[int] | None = None) -> Tensor:
        """The write vectors of a layer, or of some of its neurons, as far as they reach the unembedding [neuron, d_model]."""
        return _supported(self.norm.centred(self._read_vectors(layer, neurons)))

    def unembedding(self, tokens: Sequence[int] | None = None) -> Tensor:
        """The rows of the unembedding of some tokens, in their order, or of all tokens [token, d_model]; without the gain.

        IndexError for a token that has no row.
        """
        return _supported(self._read_unembedding(tokens))

    def targets(self, tokens: Sequence[int] | None = None) -> Tensor:
        """`γ ⊙ u` [token, d_model] of some tokens, or of all, in float32."""
        rows = self.unembedding(tokens).float()
        return rows if self.gain is None else rows * self.gain.to(rows.device)


def _read_vectors(folder: Folder, layer: int, neurons: Sequence[int] | None, *, gain: bool) -> Tensor:
    part = f"layer-{layer}"
    if neurons is None:
        tensors = read_weights(folder, part)
        return after_post_norm(tensors["write_vectors"], tensors if gain else {})
    return after_post_norm(
        read_rows(folder, part, "write_vectors", neurons), read_post_norm(folder, layer) if gain else {}
    )


def _read_unembedding(folder: Folder, tokens: Sequence[int] | None) -> Tensor:
    if tokens is None:
        return read_weights(folder, "unembedding")["weight"]
    return read_rows(folder, "unembedding", "weight", tokens)


def _supported(matrix: Tensor) -> Tensor:
    """A matrix in a dtype that the kernels take."""
    return matrix.float() if matrix.element_size() == 8 else matrix
