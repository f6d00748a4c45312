"""What to ask a model about neurons' exemplars: requests of every neuron, each window of tokens asked for once.

Windows are those of the published method (Foote et al. 2023): suffixes that end soon after the token with the largest
activation, suffixes with one token masked, suffixes with one token substituted. Knows nothing about models or captures.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from actstore.store.arguments import Typed
from actstore.store.capture.requests import REQUESTS
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from actstore.store.model.root import Root

MASKS: Final = ("auto", "mask", "unk", "pad", "typical", "delete")
NO_TOKEN: Final = -1
SENTENCE_ENDS: Final = (b".", b"!", b"?", b"\n")


@dataclass(frozen=True)
class ProbeSettings(Typed):
    """What is asked of every neuron; the numbers are the published ones."""

    n_exemplars: int = 20
    """Windows with the neuron's largest activations; half of them, drawn by `seed`, are asked about, as `evaluate` does."""
    seed: int = 0
    share: float = 0.5
    """Part of its activation that a shortened, or changed, exemplar must keep; and of the neuron's maximum, to fire."""
    step: int = 5
    longest: int = 30
    """Suffixes of `step`, 2 · `step` … `longest` tokens are tried."""
    after: int = 5
    """Tokens of the same sentence that stay behind the pivot."""
    important: float = 0.8
    """Importance on the pivot from which a token is substituted; the pivot always is."""
    n_substitutes: int = 5
    mask: str = "auto"
    """What stands for a masked token: see `mask_token`."""
    substitutes_model: str | None = None
    """Folder or Hub id of a masked language model whose substitutes are taken; None takes the capture's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in MASKS:
            raise InvalidInputError(f"--mask is one of {', '.join(MASKS)}, found {self.mask!r}.")
        if self.n_exemplars < 2:
            raise InvalidInputError(f"--exemplars must be 2 or more, found {self.n_exemplars}.")
        if not 0 < self.step <= self.longest:
            raise InvalidInputError(
                f"Suffixes grow from {self.step} to {self.longest} tokens, which cannot be. Mend them."
            )
        if self.after < 0 or self.n_substitutes < 0 or not 0 < self.share < 1:
            raise InvalidInputError(
                "Tokens after the pivot and substitutes are 0 or more, a share lies between 0 and 1."
            )

    def lengths(self) -> range:
        """The lengths of suffixes that are tried."""
        return range(self.step, self.longest + 1, self.step)


class Subject(NamedTuple):
    """An exemplar of a neuron."""

    layer: int
    neuron: int
    exemplar: int
    ids: NDArray[np.int32]
    """[position] what the model read."""
    pivot: int
    n_special: int
    whole: float


class Arranged(NamedTuple):
    """Different windows in the order in which they run."""

    ids: NDArray[np.int32]
    """All windows, one after another."""
    lengths: NDArray[np.int64]
    """[window]"""
    blocks: NDArray[np.int64]
    """[window] the block of each, ascending."""


class Requests:
    """Who asks for which window; windows of the same tokens are one."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int32]] = []
        self._changes: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._subjects: list[tuple[float, ...]] = []

    def __len__(self) -> int:
        return sum(map(len, self._ids))

    def ask(self, subject: Subject, positions: ArrayLike = (NO_TOKEN,), tokens: ArrayLike = (NO_TOKEN,)) -> None:
        """Ask what the subject's neuron does over the subject's tokens, changed in one way after another.

        positions, tokens: [change] another token at a position, or without that position where the token is `NO_TOKEN`, which
        goes for all changes or for none. A position of `NO_TOKEN` changes nothing.
        """
        at, put = np.broadcast_arrays(np.atleast_1d(positions), np.atleast_1d(tokens))
        if not len(at):
            return
        ids = np.repeat(subject.ids[None], len(at), axis=0)
        if (changed := at != NO_TOKEN).any():
            if (put[changed] == NO_TOKEN).any():
                place = np.arange(ids.shape[1] - 1)
                ids = np.take_along_axis(ids, place + (place >= at[:, None]), axis=1)
            else:
                ids[np.flatnonzero(changed), at[changed]] = put[changed]
        self._ids.append(ids)
        self._changes.append((at, put))
        self._subjects.append(
            (subject.layer, subject.neuron, subject.exemplar, subject.pivot, subject.n_special, subject.whole)
        )

    def finish(self, block_slots: int) -> tuple[Arranged, pa.Table]:
        """The windows, in blocks of at most `block_slots` tokens, and the table of requests in the order of neurons.

        Windows that begin alike share a block; in it, windows of one length follow one another, so that they may run together
        without padding.
        """
        lengths = np.repeat([ids.shape[1] for ids in self._ids], [len(ids) for ids in self._ids])
        padded = np.zeros((len(lengths), lengths.max()), ">u4")
        first = 0
        for ids in self._ids:
            padded[first : first + len(ids), : ids.shape[1]] = ids.astype(np.int64) + 1
            first += len(ids)
        # Bytes, the largest first, sort as the tokens do.
        keys = padded.view(np.dtype((np.void, 4 * padded.shape[1])))[:, 0]
        _, asked, window = np.unique(keys, return_index=True, return_inverse=True)
        lengths = lengths[asked]
        blocks = _blocks(lengths, block_slots)
        order = np.lexsort((np.arange(len(asked)), lengths, blocks))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        tokens = padded[asked[order]].astype(np.int64)
        flat = (tokens[tokens > 0] - 1).astype(np.int32)
        return Arranged(flat, lengths[order], blocks[order]), self._table(place[window])

    def _table(self, window: NDArray[np.int64]) -> pa.Table:
        counts = [len(ids) for ids in self._ids]
        of_subject = np.repeat(np.array(self._subjects, np.float64), counts, axis=0).T
        columns: dict[str, NDArray[Any]] = dict(
            zip(("layer", "neuron", "exemplar", "pivot", "n_special", "whole"), of_subject, strict=True)
        )
        columns["position"], columns["token"] = (np.concatenate(part) for part in zip(*self._changes, strict=True))
        columns["window"] = window
        columns = {f.name: columns[f.name].astype(f.type.to_pandas_dtype()) for f in REQUESTS}
        rows = np.lexsort([columns[key] for key in ("token", "position", "exemplar", "neuron", "layer")])
        return pa.table({name: values[rows] for name, values in columns.items()}, schema=REQUESTS)


def _blocks(lengths: NDArray[np.int64], block_slots: int) -> NDArray[np.int64]:
    """The block of each window, in order, as many as fit in each."""
    ends, blocks, first = np.cumsum(lengths), np.empty(len(lengths), np.int64), 0
    for block in itertools.count():
        if first == len(lengths):
            return blocks
        before = int(ends[first - 1]) if first else 0
        stop = int(np.searchsorted(ends, before + block_slots, side="right"))
        blocks[first:stop], first = block, stop
    raise AssertionError("unreachable")


def shorten(
    subject: Subject, length: int, after: int, context: int | None, ends: Callable[[int], bool]
) -> Subject | None:
    """The subject with the `length` tokens that end at its pivot, special tokens before, and the rest of the sentence behind.

    None where a shorter suffix had all of them, or where the model's context has no room for it. `ends` says of a token
    whether a sentence ends in it.
    """
    n_text = subject.pivot + 1 - subject.n_special
    if n_text <= 0 or (context is not None and subject.n_special + min(length, n_text) > context):
        return None
    start = max(subject.n_special, subject.pivot + 1 - length)
    stop = subject.pivot + 1
    room = context if context is not None else len(subject.ids) + 1
    while (
        stop < len(subject.ids)
        and stop - subject.pivot <= after
        and subject.n_special + stop - start < room
        and not ends(int(subject.ids[stop - 1]))
    ):
        stop += 1
    ids = np.concatenate([subject.ids[: subject.n_special], subject.ids[start:stop]])
    return subject._replace(ids=ids, pivot=subject.n_special + subject.pivot - start)


def mask_token(known: Mapping[str, int], kind: str, typical: int) -> tuple[str, int]:
    """What stands for a masked token: its kind's name and its id, `NO_TOKEN` for deletion.

    known: "mask", "unk", "pad" → id, those that the tokenizer names. "auto" is the first of them, else `typical`, the capture's
    most frequent token, under that name: never an id that is some other tokenizer's. `InvalidInputError` where the tokenizer
    has none of the kind asked for.
    """
    if kind == "delete":
        return kind, NO_TOKEN
    if kind == "typical":
        return kind, typical
    for name in ("mask", "unk", "pad") if kind == "auto" else (kind,):
        if name in known:
            return name, known[name]
    if kind == "auto":
        return "typical", typical
    raise InvalidInputError(
        f"The tokenizer has no {kind} token to mask with; it has: {', '.join(known) or 'none'}. Choose another --mask."
    )


def sentence_ends(store: Root) -> Callable[[int], bool]:
    """Whether a sentence ends in a token; never, where the store knows no text."""
    if store.vocabulary is None:
        return lambda token: False
    ending = np.array(
        [any(end in content for end in SENTENCE_ENDS) for content in store.vocabulary["bytes"].to_pylist()]
    )
    return lambda token: token < len(ending) and bool(ending[token])


class Substitutes:
    """Tokens that may stand in another's place: those that occur between the same two tokens, then the nearest embeddings."""

    def __init__(
        self, windows: Iterator[NDArray[np.int32]], excluded: frozenset[int], embedding: NDArray[np.float32] | None
    ) -> None:
        """Learn what follows what from `windows`; tokens of `excluded` never stand in; `embedding` is [token, d_model]."""
        left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for ids in windows:
            left.append(ids[:-1].astype(np.int64))
            right.append(ids[1:].astype(np.int64))
        self._pairs, self._counts = np.unique(np.concatenate(left) << 32 | np.concatenate(right), return_counts=True)
        self._excluded = np.array(sorted(excluded), np.int64)
        if embedding is not None:
            norm = np.linalg.norm(embedding, axis=1, keepdims=True)
            embedding = (embedding / np.where(norm > 0, norm, 1)).astype(np.float32)
        self._embedding = embedding
        self._nearest: dict[int, NDArray[np.int64]] = {}
        self._known: dict[tuple[int, int, int, int], list[int]] = {}

    def of(self, ids: NDArray[np.int32], position: int, k: int) -> list[int]:
        """The k likeliest substitutes, best first; ties go to the smaller id."""
        before = int(ids[position - 1]) if position > 0 else NO_TOKEN
        following = int(ids[position + 1]) if position + 1 < len(ids) else NO_TOKEN
        key = before, int(ids[position]), following, k
        if key not in self._known:
            self._known[key] = self._between(*key)
        return self._known[key]

    def of_all(self, asked: Sequence[tuple[NDArray[np.int32], int]], k: int) -> list[list[int]]:
        """The same for several (window, position)."""
        return [self.of(ids, position, k) for ids, position in asked]

    def _between(self, before: int, original: int, following: int, k: int) -> list[int]:
        follows, counts = self._after(before) if before != NO_TOKEN else (np.empty(0, np.int64),) * 2
        score = counts.astype(np.float64)
        if following != NO_TOKEN and len(follows):
            score = score * self._likelihoods(follows, following)
        kept = (score > 0) & (follows != original) & ~np.isin(follows, self._excluded)
        order = np.lexsort((follows[kept], -score[kept]))
        chosen: list[int] = follows[kept][order[:k]].tolist()
        if len(chosen) < k and self._embedding is not None and original < len(self._embedding):
            chosen += [t for t in self._near(original, 2 * k).tolist() if t not in chosen][: k - len(chosen)]
        return chosen

    def _after(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        a, b = np.searchsorted(self._pairs, [token << 32, (token + 1) << 32])
        return self._pairs[a:b] & 0xFFFFFFFF, self._counts[a:b]

    def _likelihoods(self, tokens: NDArray[np.int64], following: int) -> NDArray[np.float64]:
        """How often `following` comes after each of `tokens`, as a share of what comes after it."""
        starts, stops = np.searchsorted(self._pairs, tokens << 32), np.searchsorted(self._pairs, (tokens + 1) << 32)
        sums = np.concatenate([[0], np.cumsum(self._counts)])
        totals = sums[stops] - sums[starts]
        wanted = tokens << 32 | following
        at = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
        found = np.where(self._pairs[at] == wanted, self._counts[at], 0)
        shares: NDArray[np.float64] = found / np.maximum(totals, 1)
        return shares

    def _near(self, token: int, k: int) -> NDArray[np.int64]:
        if token not in self._nearest:
            assert self._embedding is not None
            cosine = self._embedding @ self._embedding[token]
            cosine[token] = -np.inf
            cosine[self._excluded[self._excluded < len(cosine)]] = -np.inf
            order = np.argsort(-cosine, kind="stable")[:k]
            self._nearest[token] = order[np.isfinite(cosine[order])]
        return self._nearest[token]
