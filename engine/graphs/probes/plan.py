"""The windows of probes: requests of every neuron, in which each distinct window runs once.

The windows are those of the published method (Foote et al. 2023): suffixes of exemplars that end soon after the token of the
largest activation, the suffixes with one token masked, and the suffixes with one token substituted.
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
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from actstore.store.model.root import Root


@dataclass(frozen=True)
class Mask:
    """What replaces a masked token."""

    help: str
    is_role: bool = False
    """Whether it is a special token of this name that a tokenizer may have."""


MASKS: Final = {
    "auto": Mask("the first of mask, unk and pad that the tokenizer has, else typical"),
    "mask": Mask("the mask token", is_role=True),
    "unk": Mask("the unknown token", is_role=True),
    "pad": Mask("the padding token", is_role=True),
    "typical": Mask("the most frequent token of the captured text"),
    "delete": Mask("nothing: the token is left out"),
}
"""Name → what replaces a masked token."""
MASK_ROLES: Final = tuple(name for name, mask in MASKS.items() if mask.is_role)
"""The special tokens that may be masks, in the order in which `auto` takes them."""
NO_TOKEN: Final = -1
"""Token id of a deletion, and the position of no change."""
SENTENCE_ENDS: Final = (b".", b"!", b"?", b"\n")
"""A sentence ends in a token that contains one of these bytes."""


@dataclass(frozen=True)
class ProbeSettings(Typed):
    """Which windows are run for every neuron; the defaults are those of the paper."""

    n_exemplars: int = 20
    """Number of windows with the neuron's largest activations; the half that `evaluate` does not test on is probed."""
    seed: int = 0
    """Random seed of the exemplars."""
    share: float = 0.5
    """Minimum share of its activation in a shortened or changed exemplar, and of the neuron's maximum where it fires."""
    step: int = 5
    longest: int = 30
    """Suffixes of `step`, 2 · `step`, …, `longest` tokens are tried."""
    after: int = 5
    """Maximum number of tokens of the same sentence after the pivot."""
    important: float = 0.8
    """Minimum importance to the pivot of a token that is substituted; the pivot always is."""
    n_substitutes: int = 5
    """Number of substitutes per token."""
    mask: str = "auto"
    """What replaces a masked token: a name of `MASKS`."""
    substitutes_model: str | None = None
    """Folder or Hub id of a masked language model that predicts substitutes; by default they come from the captured text."""
    measure_variants: bool = True
    """Whether tokens are masked in each substituted window, too, as in the published code; the most of the windows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in MASKS:
            raise InvalidInputError(f"`mask` must be one of {', '.join(MASKS)}, found {self.mask!r}.")
        if self.n_exemplars < 2:
            raise InvalidInputError(f"`n_exemplars` must be 2 or more, found {self.n_exemplars}.")
        if not 0 < self.step <= self.longest:
            raise InvalidInputError(
                f"`step` must be 1 or more and at most `longest`, found {self.step} and {self.longest}."
            )
        if self.after < 0 or self.n_substitutes < 0 or not 0 < self.share < 1:
            raise InvalidInputError(
                "`after` and `n_substitutes` must be 0 or more and `share` between 0 and 1, found "
                f"{self.after}, {self.n_substitutes} and {self.share}."
            )

    def lengths(self) -> range:
        """The lengths of suffixes that are tried."""
        return range(self.step, self.longest + 1, self.step)


class Subject(NamedTuple):
    """An exemplar of a neuron, or what is left of it in a probe."""

    layer: int
    neuron: int
    exemplar: int
    ids: NDArray[np.int32]
    """[position] its tokens."""
    pivot: int
    """Position of the token with the largest activation."""
    n_special: int
    """Number of special tokens at its beginning."""
    whole: float
    """Activation at the pivot in the whole exemplar."""


class ArrangedWindows(NamedTuple):
    """Distinct windows in the order in which they run."""

    ids: NDArray[np.int32]
    """The tokens of all windows, one after another."""
    lengths: NDArray[np.int64]
    """[window]"""
    blocks: NDArray[np.int64]
    """[window] the block of each, ascending."""


class Requests:
    """The windows that are requested for neurons; windows with the same tokens are one."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int32]] = []
        self._changes: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._subjects: list[tuple[float, ...]] = []

    def __len__(self) -> int:
        return sum(map(len, self._ids))

    def add(self, subject: Subject, positions: ArrayLike = (NO_TOKEN,), tokens: ArrayLike = (NO_TOKEN,)) -> None:
        """Request the activations of the subject's neuron over the subject's tokens, once for each of some changes.

        positions, tokens: [change] the position that is changed, and its new token. The token `NO_TOKEN` deletes the position,
        in all changes or in none. The position `NO_TOKEN` changes nothing.
        """
        position, token = np.broadcast_arrays(np.atleast_1d(positions), np.atleast_1d(tokens))
        if not len(position):
            return
        ids = np.repeat(subject.ids[None], len(position), axis=0)
        if (is_change := position != NO_TOKEN).any():
            if (token[is_change] == NO_TOKEN).any():
                column = np.arange(ids.shape[1] - 1)
                ids = np.take_along_axis(ids, column + (column >= position[:, None]), axis=1)
            else:
                ids[np.flatnonzero(is_change), position[is_change]] = token[is_change]
        self._ids.append(ids)
        self._changes.append((position, token))
        self._subjects.append(
            (subject.layer, subject.neuron, subject.exemplar, subject.pivot, subject.n_special, subject.whole)
        )

    def finish(self, block_slots: int) -> tuple[ArrangedWindows, pa.Table]:
        """The windows, in blocks of at most `block_slots` tokens, and the table of requests in the order of neurons.

        Windows with the same first tokens are in one block, and within a block windows of one length are neighbours, so that
        they can run together without padding.
        """
        lengths = np.repeat([ids.shape[1] for ids in self._ids], [len(ids) for ids in self._ids])
        padded = np.zeros((len(lengths), lengths.max()), ">u4")
        first = 0
        for ids in self._ids:
            padded[first : first + len(ids), : ids.shape[1]] = ids.astype(np.int64) + 1
            first += len(ids)
        # Big-endian numbers sort as bytes in the same order as the tokens do; the end of a window is 0, before every token.
        keys = padded.view(np.dtype((np.void, 4 * padded.shape[1])))[:, 0]
        _, first_request, window = np.unique(keys, return_index=True, return_inverse=True)
        lengths = lengths[first_request]
        blocks = _blocks(lengths, block_slots)
        order = np.lexsort((np.arange(len(first_request)), lengths, blocks))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        tokens = padded[first_request[order]].astype(np.int64)
        flat = (tokens[tokens > 0] - 1).astype(np.int32)
        return ArrangedWindows(flat, lengths[order], blocks[order]), self._table(rank[window])

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
    """[window] its block: windows in order, as many per block as fit."""
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
    """The subject reduced to its special tokens, the `length` tokens up to its pivot, and the rest of the sentence.

    None where there is no text before the pivot, or where it does not fit in the model's context. after: maximum number of
    tokens after the pivot. ends: whether a sentence ends in a token.
    """
    n_text = subject.pivot + 1 - subject.n_special
    if n_text <= 0 or (context is not None and subject.n_special + min(length, n_text) > context):
        return None
    start = max(subject.n_special, subject.pivot + 1 - length)
    stop = subject.pivot + 1
    limit = context if context is not None else len(subject.ids) + 1
    while (
        stop < len(subject.ids)
        and stop - subject.pivot <= after
        and subject.n_special + stop - start < limit
        and not ends(int(subject.ids[stop - 1]))
    ):
        stop += 1
    ids = np.concatenate([subject.ids[: subject.n_special], subject.ids[start:stop]])
    return subject._replace(ids=ids, pivot=subject.n_special + subject.pivot - start)


def mask_token(known: Mapping[str, int], kind: str, typical: int) -> tuple[str, int]:
    """The name and the id of the token that replaces a masked one; `NO_TOKEN` for deletion.

    known: role → id, for those of `MASK_ROLES` that the tokenizer has. kind: a name of `MASKS`. typical: the most frequent
    token of the capture. `InvalidInputError` where the tokenizer has no token of that role.
    """
    if kind == "delete":
        return kind, NO_TOKEN
    if kind == "typical":
        return kind, typical
    for name in MASK_ROLES if kind == "auto" else (kind,):
        if name in known:
            return name, known[name]
    if kind == "auto":
        return "typical", typical
    raise InvalidInputError(
        f"The tokenizer has no {kind} token to mask with; it has: {', '.join(known) or 'none'}. Choose another `mask`."
    )


def sentence_ends(store: Root) -> Callable[[int], bool]:
    """A function that says whether a sentence ends in a token; never where the store has no text."""
    if store.vocabulary is None:
        return lambda token: False
    ending = np.array(
        [any(end in content for end in SENTENCE_ENDS) for content in store.vocabulary["bytes"].to_pylist()]
    )
    return lambda token: token < len(ending) and bool(ending[token])
