"""Substitutes of tokens from the captured text: the default, which needs no further model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.graphs.probes.plan import NO_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


class CorpusSubstitutes:
    """Substitutes of tokens: those between the same two tokens in the corpus, then those of the nearest embedding."""

    def __init__(
        self, windows: Iterator[NDArray[np.int32]], excluded: frozenset[int], embedding: NDArray[np.float32] | None
    ) -> None:
        """Count the pairs of tokens in `windows`; those of `excluded` are no substitutes. embedding: [token, d_model]."""
        left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for ids in windows:
            left.append(ids[:-1].astype(np.int64))
            right.append(ids[1:].astype(np.int64))
        # One sorted key per pair, so that the successors of a token are a range of keys.
        self._pairs, self._counts = np.unique(np.concatenate(left) << 32 | np.concatenate(right), return_counts=True)
        self._excluded = np.array(sorted(excluded), np.int64)
        if embedding is not None:
            norm = np.linalg.norm(embedding, axis=1, keepdims=True)
            embedding = (embedding / np.where(norm > 0, norm, 1)).astype(np.float32)
        self._embedding = embedding
        self._nearest: dict[int, NDArray[np.int64]] = {}
        self._cache: dict[tuple[int, int, int, int], list[int]] = {}

    def of(self, ids: NDArray[np.int32], position: int, k: int) -> list[int]:
        """The k likeliest substitutes of the token at `position`, likeliest first; ties go to the smaller id."""
        before = int(ids[position - 1]) if position > 0 else NO_TOKEN
        following = int(ids[position + 1]) if position + 1 < len(ids) else NO_TOKEN
        key = before, int(ids[position]), following, k
        if key not in self._cache:
            self._cache[key] = self._between(*key)
        return self._cache[key]

    def of_all(self, tokens: Sequence[tuple[NDArray[np.int32], int]], k: int) -> list[list[int]]:
        """The substitutes of several tokens, each a window and a position."""
        return [self.of(ids, position, k) for ids, position in tokens]

    def _between(self, before: int, original: int, following: int, k: int) -> list[int]:
        """The k substitutes of `original` between two tokens: by count after `before` times P(following | substitute)."""
        candidates, counts = self._after(before) if before != NO_TOKEN else (np.empty(0, np.int64),) * 2
        score = counts.astype(np.float64)
        if following != NO_TOKEN and len(candidates):
            score = score * self._likelihoods(candidates, following)
        is_usable = (score > 0) & (candidates != original) & ~np.isin(candidates, self._excluded)
        order = np.lexsort((candidates[is_usable], -score[is_usable]))
        substitutes: list[int] = candidates[is_usable][order[:k]].tolist()
        if len(substitutes) < k and self._embedding is not None and original < len(self._embedding):
            neighbours = [token for token in self._near(original, 2 * k).tolist() if token not in substitutes]
            substitutes += neighbours[: k - len(substitutes)]
        return substitutes

    def _after(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens that follow a token, and how often."""
        a, b = np.searchsorted(self._pairs, [token << 32, (token + 1) << 32])
        return self._pairs[a:b] & 0xFFFFFFFF, self._counts[a:b]

    def _likelihoods(self, tokens: NDArray[np.int64], following: int) -> NDArray[np.float64]:
        """P(following | token) for each of `tokens`."""
        starts, stops = np.searchsorted(self._pairs, tokens << 32), np.searchsorted(self._pairs, (tokens + 1) << 32)
        sums = np.concatenate([[0], np.cumsum(self._counts)])
        totals = sums[stops] - sums[starts]
        pairs = tokens << 32 | following
        index = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        counts = np.where(self._pairs[index] == pairs, self._counts[index], 0)
        likelihoods: NDArray[np.float64] = counts / np.maximum(totals, 1)
        return likelihoods

    def _near(self, token: int, k: int) -> NDArray[np.int64]:
        """The k tokens of the largest cosine of embeddings with a token's."""
        if token not in self._nearest:
            assert self._embedding is not None
            cosine = self._embedding @ self._embedding[token]
            cosine[token] = -np.inf
            cosine[self._excluded[self._excluded < len(cosine)]] = -np.inf
            order = np.argsort(-cosine, kind="stable")[:k]
            self._nearest[token] = order[np.isfinite(cosine[order])]
        return self._nearest[token]
