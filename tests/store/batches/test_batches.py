"""`store.batches`: every token once, with the values, ids and labels that the reader gives, whatever reads them."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from planted_stores import WIDTHS
from torch.utils.data import DataLoader

import actstore
from actstore.store.batches.tensors import as_tensor, decoded
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.store.batches.batch import Batch


def joined(batches: list[Batch], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(getattr(batch, name)) for batch in batches])


def expect_same(ours: Any, theirs: Any) -> None:
    """Batches that hold the same tokens with the same bits, in the same order."""
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 2
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.activations.view(torch.int32), b.activations.view(torch.int32))
        for name in ("token", "id", "position", "window", "document"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert a.labels.keys() == b.labels.keys()
        assert all(torch.equal(a.labels[name], b.labels[name]) for name in a.labels)
        assert (a.epoch, a.number) == (b.epoch, b.number)


@pytest.mark.parametrize("name", ["exact", "half", "int8", "half-by-token", "int8-by-token"])
@pytest.mark.parametrize("settings", [{}, {"shuffle": False}, {"threads": 0, "window": 1}, {"batch": 1000}])
def test_every_token_comes_once_with_what_the_reader_says_of_it(many: Any, name: str, settings: dict[str, Any]) -> None:
    capture = many.capture(name)
    given = {"batch": 37, "labels": "language", "positions": "all"} | settings
    batches = many.batches("mlp.post", (1, 0), capture=name, **given)
    found = list(batches)
    assert len(found) == len(batches) == -(-batches.n_tokens // given["batch"])
    assert {len(batch) for batch in found[:-1]} <= {given["batch"]}
    tokens = capture.tokens().to_arrow()
    token = joined(found, "token")
    np.testing.assert_array_equal(np.sort(token), tokens["token"].to_numpy())
    row = np.searchsorted(tokens["token"].to_numpy(), token)
    for column in ("id", "position", "window", "document"):
        np.testing.assert_array_equal(joined(found, column), tokens[column].to_numpy()[row])
    labels = np.array(batches.label_values["language"])[np.concatenate([b.labels["language"] for b in found])]
    np.testing.assert_array_equal(
        labels, capture.documents()["language"].to_numpy()[tokens["document"].to_numpy()][row]
    )
    for layer, width in enumerate(WIDTHS):
        expected = np.stack([capture.activations(layer, neuron, saturated=True) for neuron in range(width)])
        values = np.concatenate([batch.layer(layer) for batch in found])
        np.testing.assert_array_equal(values, expected.T[row])
    assert ((np.diff(token) > 0).all()) == (settings.get("shuffle") is False)


def test_tokens_are_those_that_are_asked_for(many: Any) -> None:
    """By the documents' labels, without special tokens unless told, without beginnings."""
    tokens = many.capture("exact").tokens().to_arrow()
    language = many.capture("exact").documents()["language"].to_numpy()[tokens["document"].to_numpy()]
    position, modality = tokens["position"].to_numpy(), np.array(tokens["modality"].to_pylist())
    for settings, expected in (
        ({}, modality == "text"),
        ({"positions": "all"}, modality != ""),
        ({"where": "language = 'fr' -- by label"}, (language == "fr") & (modality == "text")),
        ({"where": "document in (1, 2)", "skip": 4}, np.isin(tokens["document"], (1, 2)) & (position >= 4)),
        ({"positions": "last", "where": "sha256 like '%3'"}, None),
    ):
        found = joined(list(many.batches("mlp.post", 0, batch=50, capture="exact", **settings)), "token")
        if expected is None:
            windows = many.capture("exact").windows().to_arrow()
            assert len(found) == np.sum(windows["document"].to_numpy() == 3)
        else:
            np.testing.assert_array_equal(np.sort(found), tokens["token"].to_numpy()[expected])


ASKED: dict[str, Any] = {"batch": 30, "labels": "language", "seed": 5, "window": 3, "capture": "int8", "epochs": 2}


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_batches(many: Any, context: str) -> None:
    """None, one or two, forked or spawned, from the beginning or resumed in the middle of an epoch."""
    expected = list(many.batches("mlp.post", 1, **ASKED))
    state = expected[len(expected) // 3].state
    for n_workers in (0, 1, 2) if context == "fork" else (2,):
        batches = many.batches("mlp.post", 1, **ASKED)
        loader: Any = DataLoader(
            batches, batch_size=None, num_workers=n_workers, multiprocessing_context=context if n_workers else None
        )
        assert len(loader) == len(expected)
        expect_same(loader, expected)
        batches.load_state_dict(pickle.loads(pickle.dumps(state)))
        expect_same(loader, expected[len(expected) // 3 + 1 :])


def test_batches_can_be_pickled(many: Any) -> None:
    """As they are for workers that are spawned."""
    batches = many.batches("mlp.post", 1, **ASKED)
    expect_same(pickle.loads(pickle.dumps(batches)), batches)


def test_an_interrupted_run_goes_on_where_it_was(many: Any) -> None:
    """By `state_dict`, also over the end of an epoch; a loop that is left and begun again begins anew."""
    ours = many.batches("mlp.post", 1, **ASKED)
    expected = list(many.batches("mlp.post", 1, **ASKED))
    n = ours.n_batches
    for stop in (1, n, n + 2):
        batches = many.batches("mlp.post", 1, **ASKED)
        for taken, _ in enumerate(batches, 1):
            if taken == stop:
                break
        resumed = many.batches("mlp.post", 1, **(ASKED | {"threads": 0, "dtype": torch.float32}))
        resumed.load_state_dict(batches.state_dict())
        expect_same(resumed, expected[stop:])
        expect_same(batches, expected)
    third = list(batches)
    assert [batch.epoch for batch in third] == [2] * n + [3] * n
    again = many.batches("mlp.post", 1, **ASKED)
    again.set_epoch(2)
    expect_same(again, third)


def test_a_state_of_other_tokens_is_refused(many: Any) -> None:
    state = next(iter(many.batches("mlp.post", 1, **ASKED))).state
    for other, name in (({"seed": 6}, "seed"), ({"capture": "half"}, "capture"), ({"where": "document > 0"}, "where")):
        batches = many.batches("mlp.post", 1, **(ASKED | other))
        with pytest.raises(
            InvalidInputError, match=f"Expected a state of these batches, found one of other batches: its {name} is"
        ):
            batches.load_state_dict(state)


def test_ranks_have_disjoint_tokens_and_as_many_batches(many: Any) -> None:
    whole = list(many.batches("mlp.post", 0, batch=16, capture="half"))
    for drop_last in (False, True):
        parts = [
            many.batches("mlp.post", 0, batch=16, capture="half", rank=rank, ranks=3, drop_last=drop_last)
            for rank in range(3)
        ]
        found = [list(part) for part in parts]
        assert {len(batches) for batches in found} == {len(parts[0])}
        tokens = np.concatenate([joined(batches, "token") for batches in found])
        assert len(np.unique(tokens)) == len(tokens)
        assert drop_last or sorted(tokens) == sorted(joined(whole, "token"))
        assert not drop_last or {len(batch) for batches in found for batch in batches} == {16}


def test_s3_gives_the_same(many: Any, many_blocks: Path, s3_location: str) -> None:
    """Forked workers, which cannot use its connections, are refused."""
    actstore.copy(str(many_blocks), s3_location)
    batches = actstore.open(s3_location).batches("mlp.post", 1, **ASKED)
    expect_same(batches, many.batches("mlp.post", 1, **ASKED))
    forked: Any = DataLoader(batches, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(InvalidInputError, match='Pass `multiprocessing_context="spawn"` to the loader'):
        next(iter(forked))


@pytest.mark.slow
def test_s3_gives_the_same_to_spawned_workers(many: Any, many_blocks: Path, s3_location: str) -> None:
    actstore.copy(str(many_blocks), s3_location)
    batches = actstore.open(s3_location).batches("mlp.post", 1, **ASKED)
    loader: Any = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    expect_same(loader, many.batches("mlp.post", 1, **ASKED))


def test_activations_are_normalised_by_the_captures_statistics(many: Any) -> None:
    """Over the tokens that statistics count: means 0 and variances 1, or a mean squared norm of the number of neurons."""
    for name, tolerance in (("exact", 1e-3), ("int8", 0.05)):
        settings = {"capture": name, "batch": 1 << 20}
        (batch,) = many.batches("mlp.post", (0, 1), normalize="neuron", **settings)
        varies = np.arange(WIDTHS[1]) != 2
        values = batch.layer(1).numpy()
        np.testing.assert_allclose(np.nanmean(values, axis=0), 0, atol=tolerance)
        np.testing.assert_allclose(np.nanstd(values, axis=0)[varies], 1, rtol=tolerance)
        np.testing.assert_allclose(values[:, 2], 0, atol=tolerance * 4)
        (batch,) = many.batches("mlp.post", (0, 1), normalize="norm", **settings)
        for layer, width in enumerate(WIDTHS):
            norms = np.nansum(batch.layer(layer).numpy().astype(np.float64) ** 2, axis=1)
            np.testing.assert_allclose(norms.mean(), width, rtol=tolerance)


@pytest.mark.parametrize("name", ["exact", "half", "int8"])
def test_another_format_rounds_the_same_values(many: Any, name: str) -> None:
    whole = many.batches("mlp.post", 1, batch=1 << 20, capture=name, normalize="neuron")
    (expected,) = whole
    for dtype in ("float16", torch.bfloat16):
        (found,) = many.batches("mlp.post", 1, batch=1 << 20, capture=name, normalize="neuron", dtype=dtype)
        assert torch.equal(
            found.activations.nan_to_num(9), expected.activations.to(found.activations.dtype).nan_to_num(9)
        )
    # What a GPU does with the rows, here on the CPU.
    memory = np.empty(whole._reader.shape, whole._reader.dtype)
    rows = whole._reader.begin(0, whole.order.windows(0)[0], lambda f, *a: _Done(f(*a)), memory).rows()
    ours = decoded(as_tensor(rows.raw), torch.from_numpy(rows.blocks(slice(None))), rows.decoding)
    window_of = {token: i for i, token in enumerate(expected.token.tolist())}
    theirs = expected.activations[[window_of[token] for token in rows.columns["token"][rows.order].tolist()]]
    assert torch.equal(ours.nan_to_num(9), theirs.nan_to_num(9))


class _Done:
    def __init__(self, value: None) -> None:
        self.result = lambda: value


def test_numpy_is_given_where_it_is_asked_for(many: Any) -> None:
    tensors = list(many.batches("mlp.post", 1, batch=64, capture="half"))
    arrays = list(many.batches("mlp.post", 1, batch=64, capture="half", as_numpy=True))
    for a, b in zip(arrays, tensors, strict=True):
        assert isinstance(a.activations, np.ndarray)
        np.testing.assert_array_equal(a.activations, b.activations.numpy())
    arrays[0].activations[:] = 0  # a batch is the user's: the next ones are not changed by it
    np.testing.assert_array_equal(arrays[1].activations, tensors[1].activations.numpy())


def test_damage_is_raised_where_it_is_read(somewhere: str, planting: Callable[..., Any]) -> None:
    planting(somewhere)
    store = actstore.open(somewhere)
    folder, key = store.folder, "captures/corpus/values/mlp.post/1/c/0/1"
    data = bytearray(folder.read(key))
    data[len(data) // 3] ^= 1
    from actstore.store.storage.folder import Folder

    Folder(folder, read_only=False).write(key, bytes(data))
    for threads in (0, 2):
        with pytest.raises(FormatError, match=r"block 1.* Run `store\.verify\(\)`"):
            list(store.batches("mlp.post", (0, 1), batch=8, window=1, threads=threads))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"site": "resid.post"}, InvalidInputError, "no site 'resid.post'. Its sites are: mlp.post"),
        ({"layers": 7}, NotFoundError, "has no layer 7 at mlp.post"),
        ({"layers": (0, 0)}, InvalidInputError, "Expected `layers` to name one or several, each once, found (0, 0)"),
        ({"labels": "topic"}, InvalidInputError, "has no label 'topic'. Its labels are: language"),
        ({"where": "language = 'xx'"}, InvalidInputError, "Expected tokens of capture 'exact' to train on, found none"),
        ({"where": "nonsense > 1"}, InvalidInputError, "The query cannot be run: Binder Error"),
        ({"batch": 0}, InvalidInputError, "Expected `batch` to be 1 or more, found 0"),
        ({"seed": -1}, InvalidInputError, "Expected `seed` to be between 0 and 2⁶³ - 1, found -1"),
        ({"rank": 2, "ranks": 2}, InvalidInputError, "Expected `rank` to be one of 0 to 1, found 2"),
        ({"dtype": torch.float64}, InvalidInputError, "one of float32, float16, bfloat16, found 'float64'"),
        ({"normalize": "unit"}, InvalidInputError, "Expected `normalize` to be one of neuron, norm, found 'unit'"),
        ({"as_numpy": True, "dtype": "bfloat16"}, InvalidInputError, "NumPy has none: pass `dtype`"),
        ({"positions": "image"}, InvalidInputError, "holds no image token"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_is_refused(
    many: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    asked = {"site": "mlp.post", "layers": 0, "capture": "exact"} | settings
    with pytest.raises(error) as failed:
        many.batches(asked.pop("site"), asked.pop("layers"), **asked)
    assert message in str(failed.value)


def test_windows_that_memory_cannot_hold_are_refused(many: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from actstore.store.batches import loader

    class Memory:
        available = 1000

    monkeypatch.setattr(loader.psutil, "virtual_memory", Memory)
    with pytest.raises(
        InvalidInputError, match=r"Expected 2 × 4 blocks to fit into memory, found .* Pass a smaller `window`"
    ):
        many.batches("mlp.post", 0, capture="exact")
