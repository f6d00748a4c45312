"""Contexts of a capture: what counts, what only stands before it, what is refused."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from planted_capture import make_windows, plant_capture

from actstore.engine.graphs.contexts import read_contexts
from actstore.kernels.suffix_trie.api import BOUNDARY
from actstore.store.errors import InvalidInputError


def zeros(ids: np.ndarray) -> np.ndarray:
    return np.zeros(len(ids), np.float32)


def somewhere() -> str:
    return f"memory://{uuid.uuid4()}/store"


@pytest.mark.parametrize(("overlap", "commit"), [(0, None), (3, None), (0, 2)])
def test_text_counts_and_everything_read_is_context(overlap: int, commit: int | None) -> None:
    windows = make_windows(40)
    capture = plant_capture(somewhere(), windows, [[zeros]], overlap=overlap, commit=commit)
    contexts = read_contexts(capture, max_depth=6)
    tokens = capture.tokens().to_pydict()
    trie = contexts.trie
    assert contexts.window.tolist() == tokens["window"]
    is_text = [m == "text" for m in tokens["modality"]]
    assert ((contexts.rank >= 0) == is_text).all()
    assert contexts.n_positions == sum(is_text) < len(is_text)
    met = []
    for window, position, rank in zip(tokens["window"], tokens["position"], contexts.rank.tolist(), strict=True):
        if rank >= 0:
            ids = windows[window].tolist()
            context = [ids[position - d] if d <= position else BOUNDARY for d in range(7)]
            index, reach = trie.input_index[rank], min(int(trie.reach[rank]), 6)
            assert trie.ids[index - reach : index + 1].tolist() == ids[position - reach : position + 1]
            assert reach == min(position, 6)
            met.append((rank, context))
    assert [context for _, context in sorted(met)] == sorted(context for _, context in met)


def test_ranks_of_windows_are_those_of_their_text() -> None:
    capture = plant_capture(somewhere(), make_windows(30), [[zeros]], commit=2)
    contexts = read_contexts(capture)
    table = capture.tokens()
    windows_taken = [7, 3, 7, 29]  # the last is in a block that is not committed
    of_chosen = np.isin(table["window"].to_numpy(), windows_taken)
    ranks = contexts.ranks_of_windows(windows_taken)
    assert ranks.tolist() == sorted(r for r in contexts.rank[of_chosen].tolist() if r >= 0)
    assert len(contexts.ranks_of_windows([])) == 0


def test_captures_of_some_positions_are_refused() -> None:
    capture = plant_capture(somewhere(), make_windows(3), [[zeros]], positions="last")
    with pytest.raises(
        InvalidInputError, match=r"keeps only positions 'last'\. Capture again with `positions=\"all\"`"
    ):
        read_contexts(capture)


def test_a_capture_without_blocks_is_refused() -> None:
    capture = plant_capture(somewhere(), make_windows(3), [[zeros]], commit=0)
    with pytest.raises(InvalidInputError, match="no committed block to learn from"):
        read_contexts(capture)
