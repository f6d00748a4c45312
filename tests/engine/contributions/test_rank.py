"""Contributions out of planted stores against plain loops over their tokens, in numpy and float64."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pytest
import torch
from elsewhere import Elsewhere
from hypothesis import given
from hypothesis import strategies as st

from actstore.engine.contributions.next_tokens import NextTokens, Place, find_slot
from actstore.engine.contributions.rank import rank_contributions
from actstore.engine.contributions.ranking import Ranking
from actstore.engine.contributions.source import ContributionQuery
from actstore.engine.workers.scan import HERE
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError
from actstore.store.model.weights import write_weights
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder
from actstore.store.verify import verify_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

D, VOCABULARY, WIDTHS = 8, 100, (5, 40)
LENGTHS = (30, 30, 30, 30, 22, 7)
"""Six windows of four documents: the first two documents have two each, a full one and then a shorter one."""


def random_weights(seed: int = 7) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {"layer-0": (WIDTHS[0], D), "layer-1": (WIDTHS[1], D), "unembedding": (VOCABULARY, D), "gain": (D,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def keep_weights(
    location: Any, weights: dict[str, NDArray[np.float32]], *, centres: bool = False, dtype: torch.dtype = torch.float32
) -> Store:
    """Put weights into a planted store and open it."""
    tensors = {name: torch.from_numpy(w).to(dtype) for name, w in weights.items()}
    layers = [(n, {"write_vectors": tensors[f"layer-{n}"]}) for n in range(2)]
    norm = {"weight": tensors["gain"], "epsilon": torch.tensor(0.0), "centres": torch.tensor(centres)}
    folder = Folder(location, read_only=False)
    write_weights(folder, layers, {"unembedding": {"weight": tensors["unembedding"]}, "final_norm": norm})
    planted_stores.change_root(folder, files=None)  # which were none when the root was written
    return Store(location)


@pytest.fixture
def make(somewhere: str, planting: Callable[..., Any]) -> Callable[..., tuple[Store, dict[int, Any], dict[str, Any]]]:
    """make(**what): a planted store with weights, its values by layer, and the weights."""

    def make(*, centres: bool = False, **what: Any) -> tuple[Store, dict[int, Any], dict[str, Any]]:
        values = planting(somewhere, "corpus", **{"lengths": LENGTHS} | what)
        weights = random_weights()
        return keep_weights(somewhere, weights, centres=centres), values, weights

    return make


def next_token_of(store: Store) -> list[int | None]:
    """The token that follows each stored token, from what the windows' inputs say; None where a document ends."""
    capture = store.capture()
    windows, inputs = capture.windows().to_pylist(), capture.plan.array("inputs/ids")
    following: list[int | None] = []
    for token in capture.tokens().to_pylist():
        window = windows[token["window"]]
        later = [w for w in windows if w["document"] == window["document"] and w["window"] > window["window"]]
        place = window["input_start"] + token["position"] + 1
        if token["position"] + 1 < window["n_inputs"]:
            following.append(int(inputs[place]))
        else:
            following.append(int(inputs[later[0]["input_start"]]) if later else None)
    return following


def scores_of(
    values: dict[int, NDArray[Any]], weights: dict[str, Any], target: int, *, gain: bool = True, centres: bool = False
) -> list[NDArray[np.float64]]:
    """The contribution of every neuron at every stored token to one target: an array [neuron, token] a layer."""
    direction = weights["unembedding"][target].astype(np.float64) * (weights["gain"] if gain else 1)
    if centres:
        direction = direction - direction.mean()
    return [values[n].astype(np.float64) * (weights[f"layer-{n}"] @ direction)[:, None] for n in range(2)]


def expected_ranking(scores: list[NDArray[np.float64]], k: int) -> tuple[list[str], NDArray[np.float64]]:
    flat = np.concatenate(scores)
    names = [f"L{n}.N{i}" for n in range(2) for i in range(WIDTHS[n])]
    best = sorted((i for i in range(len(flat)) if not np.isnan(flat[i])), key=lambda i: (-flat[i], i))[:k]
    return [names[i] for i in best], flat[best]


def check(table: Any, scores: list[NDArray[np.float64]], k: int = 45) -> None:
    """The table's neurons are those with the largest scores, in their order."""
    names, expected = expected_ranking(scores, k)
    assert table["name"].to_pylist() == names
    np.testing.assert_allclose(table["score"].to_numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("centres", [False, True])
def test_at_one_place(make: Any, gain: bool, centres: bool) -> None:
    store, values, weights = make(centres=centres)
    tokens = store.capture().tokens().to_pylist()
    for token in (0, 17, len(tokens) - 1):
        place = Place(tokens[token]["document"], tokens[token]["position"], tokens[token]["window"])
        table = store.contributions(" w33", 45, at=place, gain=gain)
        scores = scores_of(values, weights, 33, gain=gain, centres=centres and gain)
        check(table, [layer[:, token] for layer in scores])
        assert set(table["target"].to_pylist()) == {" w33"}
        assert table["total"].to_pylist() == table["score"].to_pylist()
        assert table["layer"].to_pylist() == [int(name[1]) for name in table["name"].to_pylist()]


def test_at_one_place_without_a_target_it_is_the_token_that_comes(make: Any) -> None:
    store, values, weights = make()
    following = next_token_of(store)[3]
    assert following is not None
    table = store.contributions(k=7, at="0:3@0")
    assert set(table["token"].to_pylist()) == {following}
    check(table, [layer[:, 3] for layer in scores_of(values, weights, following)], 7)


def test_many_targets_at_one_place(make: Any) -> None:
    store, values, weights = make()
    table = store.contributions([4, " w33", 4], 3, at="3:-1")
    assert store.contributions([4, " w33", 4], 3, at=(3, -1)).equals(table)
    assert store.contributions([4, " w33", 4], 3, at=(3, -1, None)).equals(table)
    assert table["token"].to_pylist() == [4, 4, 4, 33, 33, 33, 4, 4, 4]
    token = [(t["document"], t["position"]) for t in store.capture().tokens().to_pylist()].index((3, 29))
    for rows, target in ((slice(0, 3), 4), (slice(3, 6), 33)):
        check(table[rows], [layer[:, token] for layer in scores_of(values, weights, target)], 3)


def is_counted(store: Store) -> NDArray[np.bool_]:
    return store.capture().tokens()["modality"].cast("string").to_numpy(zero_copy_only=False) != "special"


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_target_over_the_positions_that_it_follows(
    where: str, make: Any, tmp_path: Any, planting: Callable[..., Any]
) -> None:
    if where == "memory":
        store, values, weights = make()
    else:
        values, weights = planting(tmp_path / "store", lengths=LENGTHS), random_weights()
        store = keep_weights(tmp_path / "store", weights)
    following = np.array([-1 if t is None else t for t in next_token_of(store)])
    counted = is_counted(store)
    there = [int(t) for t in np.unique(following[counted]) if t >= 0]
    target = there[len(there) // 2]
    wanted = counted & (following == target)
    table = store.contributions(target, 45)
    check(table, [layer[:, wanted].mean(axis=1) for layer in scores_of(values, weights, target)])
    assert set(table["tokens"].to_pylist()) == {int(wanted.sum())}
    np.testing.assert_allclose(table["total"], table["score"].to_numpy() * wanted.sum(), rtol=1e-12)


def test_targets_together_are_targets_one_by_one(make: Any) -> None:
    store, _, _ = make()
    following = [
        t for t, counted in zip(next_token_of(store), is_counted(store), strict=True) if t is not None and counted
    ]
    targets = [following[9], following[2], following[30]]
    together = store.contributions(targets, 4).to_pylist()
    assert together == [row for target in targets for row in store.contributions(target, 4).to_pylist()]


@pytest.mark.parametrize("by", [None, "language"])
def test_every_position_against_its_own_next_token(make: Any, by: str | None) -> None:
    store, values, weights = make()
    following, counted = next_token_of(store), is_counted(store)
    document = np.array(store.capture().tokens()["document"].to_pylist())
    of_token = [scores_of(values, weights, t if t is not None else 0) for t in following]
    table = store.contributions(k=45, by=by)
    for label in [None] if by is None else ["en", "fr"]:
        mine = counted & np.array([t is not None for t in following])
        if label is not None:
            mine &= document % 2 == ("en", "fr").index(label)
        rows = table.filter([value == label for value in table["label"].to_pylist()])
        means = [
            np.mean([of_token[t][n][:, t] for t in np.flatnonzero(mine)], axis=0)
            for n in range(2)
        ]  # fmt: skip
        check(rows, means)
        assert set(rows["tokens"].to_pylist()) == {int(mine.sum())}
        assert set(rows["target"].to_pylist()) == {None}


@pytest.mark.parametrize("by", [None, "language"])
def test_everywhere(make: Any, by: str | None) -> None:
    store, values, weights = make()
    counted = is_counted(store)
    document = np.array(store.capture().tokens()["document"].to_pylist())
    table = store.contributions(61, 45, everywhere=True, by=by)
    for label in [None] if by is None else ["en", "fr"]:
        mine = counted if label is None else counted & (document % 2 == ("en", "fr").index(label))
        rows = table.filter([value == label for value in table["label"].to_pylist()])
        check(rows, [layer[:, mine].mean(axis=1) for layer in scores_of(values, weights, 61)])
        assert set(rows["tokens"].to_pylist()) == {int(mine.sum())}


@pytest.mark.parametrize("asked", [{}, {"by": "language", "everywhere": True}])
def test_workers_add_up_to_the_same_bits(make: Any, asked: dict[str, Any]) -> None:
    store, *_ = make()
    targets = [61, 12] if asked else []
    query, workers = ContributionQuery(k=45, **asked), Elsewhere()
    shared = rank_contributions(store, targets, query, workers).table()
    assert shared == rank_contributions(store, targets, query).table()
    assert [item for _, item in workers.items] == [1, 0]


def test_a_damaged_shard_is_the_same_sentence_from_a_worker(make: Any) -> None:
    store, *_ = make()
    folder, key = Folder(store.folder, read_only=False), "captures/corpus/values/mlp.post/1/c/0/1"
    damaged = bytearray(folder.read(key))
    damaged[len(damaged) // 2] ^= 1
    folder.write(key, bytes(damaged))
    sentences = []
    for executor in (HERE, Elsewhere()):
        with pytest.raises(FormatError) as raised:
            rank_contributions(Store(store.folder), [], ContributionQuery(), executor)
        sentences.append(str(raised.value))
    assert sentences[0] == sentences[1]
    assert key in sentences[0]


def test_everywhere_needs_no_values(make: Any) -> None:
    store, values, weights = make(precision="none")
    counted = is_counted(store)
    table = store.contributions(61, 45, everywhere=True)
    check(table, [layer[:, counted].mean(axis=1) for layer in scores_of(values, weights, 61)])
    for asked in ({"at": "0:3@0"}, {}):
        with pytest.raises(NotFoundError, match=r"keeps statistics only \(precision none\), no values\. Capture again"):
            store.contributions(61 if asked else None, **asked)


@pytest.mark.parametrize("precision", ["half", "int8", "sparse"])
def test_other_precisions_are_as_good_as_their_values(make: Any, precision: str) -> None:
    store, _, weights = make(precision=precision)
    capture = store.capture()
    stored = {n: np.stack([capture.activations(n, i) for i in range(WIDTHS[n])]) for n in range(2)}
    following = next_token_of(store)
    token = [(t["document"], t["position"]) for t in capture.tokens().to_pylist()].index((2, 5))
    check(store.contributions(12, 45, at="2:5"), [layer[:, token] for layer in scores_of(stored, weights, 12)])
    mine = np.flatnonzero(is_counted(store) & np.array([t is not None for t in following]))
    means = [
        np.mean([scores_of(stored, weights, following[t] or 0)[n][:, t] for t in mine], axis=0)
        for n in range(2)
    ]  # fmt: skip
    check(store.contributions(k=45), means)


def test_what_is_not_finite_is_left_out(make: Any) -> None:
    def spoil(values: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
        values[1, 5], values[2, ::3], values[3, :] = np.nan, np.inf, np.nan
        return values

    store, values, weights = make(values=spoil)
    counted = is_counted(store)
    finite = {n: np.where(np.isfinite(v), v, np.nan) for n, v in values.items()}
    scores = [layer[:, counted] for layer in scores_of(finite, weights, 61)]
    n_finite = [(~np.isnan(layer)).sum(axis=1) for layer in scores]
    means = [
        np.where(n > 0, np.nansum(layer, axis=1) / np.maximum(n, 1), np.nan)
        for layer, n in zip(scores, n_finite, strict=True)
    ]
    for by in (None, "language"):
        table = store.contributions(61, 45, everywhere=True, by=by)
        assert not {"L0.N3", "L1.N3"} & set(table["name"].to_pylist())
        assert np.isfinite(table["score"].to_numpy()).all()
    check(store.contributions(61, 45, everywhere=True), means)
    at_spoiled = store.contributions(61, 45, at="0:5@0")["name"].to_pylist()
    assert len(at_spoiled) == 45 - 2 * 2 - 2 * (5 % 3 == 0)
    assert not {"L0.N1", "L1.N1", "L0.N3", "L1.N3"} & set(at_spoiled)


def test_next_tokens_of_overlapping_windows_end_with_the_window(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, _ = make()
    capture = store.capture()
    following = np.concatenate([NextTokens(capture).of_block(block) for block in capture.blocks])
    assert [None if t < 0 else t for t in following.tolist()] == next_token_of(store)
    assert (following < 0).sum() == 4  # a document's last token each
    monkeypatch.setitem(capture.record.plan.settings, "overlap", 3)
    following = np.concatenate([NextTokens(capture).of_block(block) for block in capture.blocks])
    assert (following < 0).sum() == len(LENGTHS)


def test_a_block_that_is_not_committed_is_not_there(make: Any) -> None:
    store, values, weights = make(blocks=(0, 2), finish=False)
    capture = store.capture()
    mine = np.isin(capture.slots() // 64, [0, 2])
    assert mine.all()
    size = capture.used_slots
    kept = np.r_[0 : size[0], size[0] + size[1] : size.sum()]
    some = {n: v[:, kept] for n, v in values.items()}
    counted = is_counted(store)
    check(
        store.contributions(61, 45, everywhere=True),
        [layer[:, counted].mean(axis=1) for layer in scores_of(some, weights, 61)],
    )
    table = store.contributions(k=45)
    following = np.array([t if t is not None else -1 for t in next_token_of(store)])
    assert set(table["tokens"].to_pylist()) == {int((counted & (following >= 0)).sum())}


def test_bfloat16_weights(make: Any, somewhere: str) -> None:
    _, values, weights = make()
    store = keep_weights(somewhere, weights, dtype=torch.bfloat16, centres=True)
    rounded = {name: torch.from_numpy(w).bfloat16().float().numpy() for name, w in weights.items()}
    check(store.contributions(8, 45, at="0:3@0"), [x[:, 3] for x in scores_of(values, rounded, 8, centres=True)])


@pytest.mark.parametrize(
    ("target", "asked", "error", "words"),
    [
        (8, {"at": "4:0"}, NotFoundError, "has documents 0 to 3, found document 4."),
        (8, {"at": "2:30"}, NotFoundError, "Document 2 of capture 'corpus' has positions 0 to 29, found position 30."),
        (8, {"at": "2:-31"}, NotFoundError, "has positions 0 to 29, found position -31."),
        (8, {"at": "0:3"}, InvalidInputError, "windows 0, 4 have a position 3: name one as in `at=\"0:3@0\"`."),
        (8, {"at": "0:3@2"}, NotFoundError, "was read in windows 0, 4, found window 2."),
        (8, {"at": "three"}, InvalidInputError, "such as 3:17, or 3:17@5 with a window, found 'three'."),
        (None, {"at": "2:29"}, InvalidInputError, "No token is known to come after position 29 of document 2"),
        (8, {"at": "2:2", "by": "language"}, InvalidInputError, "One position has no labels"),
        (8, {"by": "colour"}, InvalidInputError, "has no label 'colour'. Its labels are: language."),
        (8, {"k": 0}, InvalidInputError, "At least one neuron must be asked for, found 0."),
        (100, {}, InvalidInputError, "go from 0 to 99, found 100"),
        (-1, {}, InvalidInputError, "go from 0 to 99, found -1"),
        (None, {"everywhere": True}, InvalidInputError, "name one with `target`"),
        (8, {"logits": True, "gain": False}, InvalidInputError, "which `paper_form` (in Python `gain=False`) leaves out"),
        (8, {"logits": True, "at": "2:2"}, NotFoundError, "Capture with the sites mlp.post and resid.post."),
        (8, {"capture": "captions"}, NotFoundError, "has no capture 'captions'"),
    ],
)  # fmt: skip
def test_mistakes(make: Any, target: int | None, asked: dict[str, Any], error: type[Exception], words: str) -> None:
    store, _, _ = make()
    with pytest.raises(error) as caught:
        store.contributions(target, **asked)
    assert words in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_target_that_follows_nowhere(make: Any) -> None:
    store, _, _ = make()
    absent = next(i for i in range(VOCABULARY) if i not in next_token_of(store))
    with pytest.raises(InvalidInputError, match=rf"' w{absent}' follows no position of text .* `everywhere=True`"):
        store.contributions(absent)


def test_a_store_without_weights_says_what_to_do(somewhere: str, planting: Callable[..., Any]) -> None:
    planting(somewhere)
    with pytest.raises(
        NotFoundError, match=r"captured without them\. Capture into a new store with weights, which is the default\."
    ):
        Store(somewhere).contributions(8)


def test_a_final_norm_that_was_lost_is_not_taken_for_none(make: Any) -> None:
    store, _, _ = make()
    folder = Folder(store.folder.location, read_only=False)
    scores = store.contributions(8, k=3).to_pylist()
    folder.delete("weights/final_norm.safetensors")
    assert store.contributions(8, k=3).to_pylist() != scores, "a store of an earlier version does not say what it had"
    assert verify_root(folder) == []
    model = dataclasses.replace(store.model, weights=("layer-0", "layer-1", "unembedding", "final_norm"))
    planted_stores.change_root(folder, model=model.to_json())
    lost = Store(folder.location)
    with pytest.raises(FormatError, match=r"weights/final_norm\.safetensors is missing, a part of the weights"):
        lost.contributions(8, k=3)
    assert [(d.key, d.what) for d in verify_root(folder)] == [("weights/final_norm.safetensors", "missing")]
    lost.contributions(8, k=3, gain=False)
    folder.delete("weights/unembedding.safetensors")
    with pytest.raises(FormatError, match=r"weights/unembedding\.safetensors is missing"):
        lost.contributions(8, k=3, gain=False)


def test_a_position_that_was_not_kept_names_the_flag(make: Any) -> None:
    store, values, weights = make(kept=lambda n: np.array([n - 1], np.int32), special_first=False)
    with pytest.raises(NotFoundError, match=r"did not keep position 2 of document 3: it was made with `positions"):
        store.contributions(8, at="3:2")
    place = find_slot(store.capture(), Place(3, -1))
    assert (place.position, place.offset) == (29, 3)
    check(store.contributions(8, 45, at="3:-1"), [x[:, 3] for x in scores_of(values, weights, 8)])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 12), st.randoms(use_true_random=False))
def test_ranking_is_sorting_everything(widths: list[int], k: int, random: Any) -> None:
    layers = [
        np.array([[random.choice([0.0, 1.0, 2.0, np.nan, -1.0]) for _ in range(n)] for _ in range(2)]) for n in widths
    ]
    ranking = Ranking(k, np.array([3, 4]))
    for layer, scores in enumerate(layers):
        ranking.add(layer, scores, 10 * scores)
    for row, found in enumerate(ranking.rows()):
        every = [(-s, layer, i) for layer, scores in enumerate(layers) for i, s in enumerate(scores[row]) if s == s]
        expected = sorted(every)[:k]
        assert (
            list(zip((-found.scores).tolist(), found.layers.tolist(), found.neurons.tolist(), strict=True)) == expected
        )
        np.testing.assert_array_equal(found.totals, 10 * found.scores)
        assert found.n_tokens == (3, 4)[row]
