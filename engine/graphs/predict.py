"""The predictions of graphs over the windows of a capture, and texts as tokens of a capture."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.kernels.suffix_trie.api import Predictions, predict
from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.layout import GENERATED, SPECIAL, TEXT, TOKENIZER_KEY
from actstore.store.model.root import read_tokenizer
from actstore.store.model.tokenizer import StoredTokenizer
from actstore.store.storage.listing import is_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from actstore.store.graphs.reader import Graphs
    from actstore.store.model.root import Root
    from actstore.store.reader import Capture


class Windows(NamedTuple):
    """Some windows of a capture, one after another, with all tokens that the model read in them."""

    ids: NDArray[np.int32]
    """[position]"""
    begins: NDArray[np.int64]
    """[window] the index of its first position."""
    token: NDArray[np.int64]
    """[position] the index of its activation in `Capture.activations`; -1 where none is stored."""
    text: NDArray[np.bool_]
    """[position] whether it is text whose activation is stored: predictions are tested there."""


def read_windows(capture: Capture, windows: Iterable[int]) -> Windows:
    """The windows in the given order; `InvalidInputError` for one that does not exist or is not committed yet."""
    table = capture.windows()
    columns = {name: table[name].to_numpy() for name in ("block", "input_start", "n_inputs", "slot_start", "n_slots")}
    numbers = np.fromiter(windows, np.int64)
    n_windows = table.num_rows
    for window in numbers[(numbers < 0) | (numbers >= n_windows)]:
        raise InvalidInputError(f"Capture {capture.record.name!r} has windows 0 to {n_windows - 1}, found {window}.")
    for window in numbers[~np.isin(columns["block"][numbers], capture.blocks)]:
        raise InvalidInputError(
            f"Window {window} of capture {capture.record.name!r} is not committed yet. Resume the capture first."
        )
    size, before = capture.record.plan.block_slots, np.zeros(capture.record.plan.n_blocks, np.int64)
    before[list(capture.blocks)] = np.cumsum(capture.used_slots[list(capture.blocks)])
    before -= capture.used_slots * (before > 0)
    ids, tokens, texts = [], [], []
    for window in numbers.tolist():
        block, n, slot = (int(columns[name][window]) for name in ("block", "n_inputs", "slot_start"))
        plan = capture.block_plan(block)
        n_slots, offset = int(columns["n_slots"][window]), slot - block * size
        start = int(columns["input_start"][window] - plan.windows["input_start"][0])
        token, text = np.full(n, -1, np.int64), np.zeros(n, np.bool_)
        position = plan.position[offset : offset + n_slots]
        token[position] = before[block] + offset + np.arange(n_slots)
        modality = plan.modality[offset : offset + n_slots]
        text[position] = (modality == TEXT) | (modality == GENERATED)
        ids.append(plan.inputs[start : start + n])
        tokens.append(token)
        texts.append(text)
    lengths = [len(window_ids) for window_ids in ids]
    return Windows(
        np.concatenate([np.empty(0, np.int32), *ids]),
        np.cumsum([0, *lengths])[:-1] if lengths else np.zeros(1, np.int64),
        np.concatenate([np.empty(0, np.int64), *tokens]),
        np.concatenate([np.empty(0, np.bool_), *texts]),
    )


def predict_windows(graphs: Graphs, rows: slice | int, windows: Windows, threads: int | None = None) -> Predictions:
    """Probability, value and path that the graphs in some rows of `graphs.neurons` predict; shape [neuron, position]."""
    start, stop, _ = (slice(rows, rows + 1) if isinstance(rows, int) else rows).indices(len(graphs))
    return predict(graphs.tries(start, stop), windows.ids, windows.begins, threads)


def encode_as(capture: Capture, text: str) -> NDArray[np.int32]:
    """The tokens of a text, after the special tokens that begin a window of the capture; those at its end are left out.

    Tokenised by the library tokenizers where it is installed, else by the store. `InvalidInputError` where the store has no
    tokenizer, or has one that neither can run.
    """
    store = capture.store
    if not has_tokenizer(store):
        raise InvalidInputError(f"{store.folder} has no tokenizer: pass token ids instead of a text.")
    return np.array([*_leading_tokens(capture), *tokeniser_of(store)(text)], np.int32)


def has_tokenizer(store: Root) -> bool:
    """Whether a store can tokenise texts."""
    return store.vocabulary is not None and is_readable(store.folder, TOKENIZER_KEY)


def tokeniser_of(store: Root) -> Callable[[str], list[int]]:
    """What gives the tokens of a text, without special ones, by a store's tokenizer; `FormatError` where it is damaged."""
    try:
        from tokenizers import Tokenizer  # not installed for reading alone, and token ids do not need it
    except ImportError:
        assert store.vocabulary is not None
        return StoredTokenizer(store.folder, store.vocabulary).encode
    state = read_tokenizer(store.folder) or ""
    try:
        tokenizer = Tokenizer.from_str(state)
    except Exception as error:  # the library raises nothing narrower
        raise FormatError(f"{store.folder}/{TOKENIZER_KEY} is damaged: {' '.join(str(error).split())}.") from None

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _leading_tokens(capture: Capture) -> list[int]:
    """The special tokens at the beginning of the capture's first window of text."""
    plan = capture.block_plan(0)
    text = np.flatnonzero((plan.modality == TEXT) | (plan.modality == GENERATED))
    if not len(text):
        return []
    stops = np.cumsum(plan.windows["n_slots"])
    window = int(np.searchsorted(stops, text[0], "right"))
    first = int(stops[window] - plan.windows["n_slots"][window])
    special = plan.modality[first : text[0]] == SPECIAL
    n = len(special) if special.all() else int(np.argmin(special))
    start = int(plan.windows["input_start"][window] - plan.windows["input_start"][0])
    tokens: list[int] = plan.inputs[start : start + n].tolist()
    return tokens


def check_same_tokens(graphs: Graphs, capture: Capture) -> None:
    """`InvalidInputError` where graphs were built with another tokenizer than the capture's."""
    ours, theirs = graphs.record.tokenizer_fingerprint, capture.record.plan.tokenizer_fingerprint
    if ours != theirs:
        raise InvalidInputError(
            f"Graphs {graphs.name!r} were built with the tokenizer {ours[:12]}, but capture {capture.record.name!r} has "
            f"tokenizer {theirs[:12]}: their tokens are not the same. Build graphs from this capture."
        )
