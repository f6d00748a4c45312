"""Predictions over a capture's windows: each beside the activation it is about."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from planted_capture import SPECIAL_TOKEN, make_windows, plant_capture
from tokenizers import Tokenizer, models, pre_tokenizers

from actstore.engine.graphs.build import build_graphs
from actstore.engine.graphs.predict import check_same_tokens, encode_as, predict_windows, read_windows
from actstore.store.errors import InvalidInputError
from actstore.store.layout import TOKENIZER_KEY
from actstore.store.reader import Capture
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from actstore.store.graphs.reader import Graphs


def on_token(ids: Any) -> Any:
    return np.where(ids == 7, np.float32(2), np.float32(0))


def position(ids: Any) -> Any:
    return np.arange(len(ids), dtype=np.float32)


@pytest.fixture(scope="module")
def windows() -> list[Any]:
    return make_windows(120)


def plant(windows: list[Any], **what: Any) -> Capture:
    return plant_capture(f"memory://{uuid.uuid4()}/store", windows, [[on_token, position]], **what)


@pytest.fixture(scope="module")
def graphs(windows: list[Any]) -> Graphs:
    capture = plant(windows)
    return build_graphs(capture, Folder(capture.folder.location, read_only=False))


@pytest.mark.parametrize(("overlap", "commit"), [(0, None), (4, None), (0, 3)])
def test_windows_are_all_that_the_model_read(windows: list[Any], overlap: int, commit: int | None) -> None:
    capture = plant(windows, overlap=overlap, commit=commit)
    selection = [21, 0, 13]
    result = read_windows(capture, selection)
    values = capture.activations(0, 1)
    for window, begin, ids in zip(selection, result.begins, [windows[w] for w in selection], strict=True):
        in_window = slice(begin, begin + len(ids))
        assert result.ids[in_window].tolist() == ids.tolist()
        is_stored = [p == 0 or p > overlap for p in range(len(ids))]
        assert ((result.token[in_window] >= 0) == is_stored).all()
        assert (result.text[in_window] == (is_stored & (ids != SPECIAL_TOKEN))).all()
        token = result.token[in_window][is_stored]
        assert values[token].tolist() == np.flatnonzero(is_stored).tolist()
        assert (capture.tokens()["window"].to_numpy()[token] == window).all()
    if commit is not None:
        with pytest.raises(InvalidInputError, match="Window 119 of capture 'corpus' is not committed yet"):
            read_windows(capture, [119])
    with pytest.raises(InvalidInputError, match="windows 0 to 119, found 120"):
        read_windows(capture, [120])


def test_predictions_of_rows_are_those_of_each_neuron(graphs: Graphs, windows: list[Any]) -> None:
    result = read_windows(graphs.store.capture(), range(40))
    together = predict_windows(graphs, slice(None), result)
    for row, graph in enumerate(graphs):
        alone = predict_windows(graphs, row, result)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[row])
        one_by_one = np.concatenate([graph.predict(windows[w]) for w in range(40)])
        np.testing.assert_array_equal(together.value[row], one_by_one)
    fires = (together.probability[0] >= 0.4) & result.text
    np.testing.assert_array_equal(fires, (result.ids == 7) & result.text)


def test_texts_are_cut_as_the_capture_cut_them(graphs: Graphs) -> None:
    capture = graphs.store.capture()
    with pytest.raises(InvalidInputError, match="has no tokenizer: pass token ids instead"):
        encode_as(capture, "w7")
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(10)}, unk_token="w9"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = Folder(graphs.store.folder.location, read_only=False)
    folder.write(TOKENIZER_KEY, tokenizer.to_str().encode())
    ids = encode_as(capture, "w3 w7 what")
    assert ids.tolist() == [SPECIAL_TOKEN, 3, 7, 9]  # as the capture's windows begin, whatever the tokenizer would add
    assert graphs.graph(0, 0).fires(ids).tolist() == [False, False, True, False]
    folder.delete(TOKENIZER_KEY)


def test_no_windows_are_no_predictions(graphs: Graphs) -> None:
    nothing = read_windows(graphs.store.capture(), [])
    assert predict_windows(graphs, slice(None), nothing).probability.shape == (2, 0)


def test_graphs_of_other_tokens_are_refused(graphs: Graphs) -> None:
    capture = graphs.store.capture()
    check_same_tokens(graphs, capture)
    other = Capture(
        capture.store, replace(capture.record, plan=replace(capture.record.plan, tokenizer_fingerprint="x" * 64))
    )
    with pytest.raises(
        InvalidInputError, match="tokenizer tttttttttttt, but capture 'corpus' has tokenizer xxxxxxxxxxxx"
    ):
        check_same_tokens(graphs, other)
