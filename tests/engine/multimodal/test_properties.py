"""Properties of rankings, on rankings whose properties are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from planted_captions import CAPTIONS, IDS, ids_of, plant_captions

from actstore.engine.multimodal.find import find_multimodal
from actstore.engine.multimodal.properties import (
    cross_image_invariance,
    discrimination,
    measure,
    region_invariance,
    sensitivity,
    specificity,
    summarise,
)
from actstore.engine.multimodal.result import FindSettings, Multimodal
from actstore.kernels.top_k.api import TopK
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture

Planted = tuple["Capture", dict[str, Any]]


@pytest.fixture(scope="module")
def result(planted: Planted) -> Multimodal:
    return find_multimodal(planted[0], FindSettings(k=3, nouns="content"))


def ranked(result: Multimodal, rows: list[list[int]]) -> Multimodal:
    """The same nouns with these neurons."""
    return result.with_ranking(TopK(np.zeros((len(rows), 3), np.float32), np.array(rows, np.int64)))


@pytest.mark.parametrize("by", ["contribution", "random"])
def test_sensitivity_counts_neurons_whose_tokens_hold_the_noun(planted: Planted, by: Any) -> None:
    capture, what = planted
    result = find_multimodal(capture, FindSettings(k=3, nouns="content", by=by))
    shares, similarities = [], []
    unembedding = what["unembedding"].numpy().astype(np.float64)
    rows = unembedding - unembedding.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    tokens = capture.tokens().to_pydict()
    columns = list(zip(tokens["document"], tokens["position"], strict=True))
    for noun, numbers in zip(result.nouns, result.first.tokens, strict=True):
        hits, cosines = [], []
        column = columns.index((noun.caption, noun.position))
        for layer, index in result.numbering.pairs(numbers):
            products = (what["layers"][layer] @ (what["unembedding"] * what["gain"]).T)[index].numpy()
            top = np.argsort(-products * np.sign(what["values"]["mlp.post", layer][index, column]))[:10]
            texts = [capture.store.token_text(int(token)).strip().lower() for token in top]
            hits.append(noun.word in texts or noun.token in top)
            meaning = rows[top].sum(0)
            cosines.append(meaning @ rows[noun.token] / np.linalg.norm(meaning))
        shares.append(np.mean(hits))
        similarities.append(np.mean(cosines))
    measured = sensitivity(result)
    np.testing.assert_allclose(measured.share, shares)
    np.testing.assert_allclose(measured.similarity, similarities, atol=1e-6)
    assert np.mean(shares) == 1 if by == "contribution" else 0 < np.mean(shares) < 1


def test_cross_image_invariance_is_the_mean_over_pairs(result: Multimodal) -> None:
    # Nouns: red circle green square | green circles star | Red square star | circle
    rows = [
        [0, 1, 2], [3, 4, 5], [6, 7, 8], [1, 2, 3], [6, 7, 9], [0, 1, 2], [10, 11, 12], [0, 1, 2], [4, 5, 6],
        [13, 14, 15], [3, 4, 9],
    ]  # fmt: skip
    measured = cross_image_invariance(ranked(result, rows))
    assert measured == pytest.approx({"red": 1, "circle": 2 / 3, "green": 2 / 3, "square": 0, "star": 0})


def test_specificity_is_one_where_no_neuron_serves_two_nouns(result: Multimodal) -> None:
    apart = {"red": 0, "circle": 3, "green": 6, "square": 9, "circles": 12, "star": 15}
    rows = [[apart[n.word], apart[n.word] + 1, apart[n.word] + 2] for n in result.nouns]
    assert set(specificity(ranked(result, rows)).values()) == {1.0}
    shared = [[0, 1, row[2]] for row in rows]
    assert specificity(ranked(result, shared))["star"] == pytest.approx((0 + 0 + 1) / 3)
    assert set(specificity(ranked(result, [[0, 1, 2]] * len(rows))).values()) == {0.0}


def test_discrimination_is_what_a_noun_shares_with_itself_and_not_with_others(result: Multimodal) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.choice(12, 3, replace=False).tolist() for _ in result.nouns]
    words, sets = [noun.word for noun in result.nouns], [set(row) for row in rows]
    expected = {}
    for word in set(words):
        own = [i for i, other in enumerate(words) if other == word]
        others = [i for i, other in enumerate(words) if other != word]
        if len(own) > 1:
            within = np.mean([len(sets[i] & sets[j]) / 3 for i in own for j in own if i != j])
            expected[word] = within - np.mean([len(sets[i] & sets[j]) / 3 for i in own for j in others])
    assert discrimination(ranked(result, rows)) == pytest.approx(expected)
    apart = {"red": 0, "circle": 3, "green": 6, "square": 9, "circles": 12, "star": 15}
    own_rows = [[apart[n.word], apart[n.word] + 1, apart[n.word] + 2] for n in result.nouns]
    assert set(discrimination(ranked(result, own_rows)).values()) == {1.0}
    assert set(discrimination(ranked(result, [[0, 1, 2]] * len(rows))).values()) == {0.0}


def test_region_invariance_matches_captions_by_image(result: Multimodal, tmp_path: Path) -> None:
    same = region_invariance(result, result)
    np.testing.assert_array_equal(same, np.ones(len(result.nouns)))
    # The shuffled images in another order and folder, one of them left out.
    order = [4, 2, 1, 0]
    other, _ = plant_captions(
        tmp_path / "store",
        captions=[CAPTIONS[i] for i in order],
        images=[f"/else/where/{i:03d}.jpg" for i in order],
        seed=5,
    )
    shuffled = find_multimodal(other, FindSettings(k=3, nouns="content"))
    neurons_of = {(f"{n.caption:03d}", n.position): s for n, s in zip(result.nouns, result.sets, strict=True)}
    stems = [f"{i:03d}" for i in order]
    expected = {(stems[n.caption], n.position): s for n, s in zip(shuffled.nouns, shuffled.sets, strict=True)}
    measured = region_invariance(result, shuffled)
    assert measured.tolist() == [
        len(neurons_of[f"{n.caption:03d}", n.position] & expected[f"{n.caption:03d}", n.position]) / 3
        for n in result.nouns
    ]


def test_captions_that_differ_are_refused(result: Multimodal, tmp_path: Path) -> None:
    ended, _ = plant_captions(
        tmp_path / "ended", captions=[caption[: -(caption[-1] == IDS["</s>"]) or None] for caption in CAPTIONS]
    )
    again = region_invariance(result, find_multimodal(ended, FindSettings(k=3, nouns="content")))
    assert len(again) == len(result.nouns)  # an end of text more or less is no difference
    changed = [ids_of(" a", " red", " star", "."), *CAPTIONS[1:]]
    other, _ = plant_captions(tmp_path / "store", captions=changed)
    shuffled = find_multimodal(other, FindSettings(k=3, nouns="content"))
    with pytest.raises(InvalidInputError, match=r"The answers to pictures/000\.png differ"):
        region_invariance(result, shuffled)
    elsewhere, _ = plant_captions(tmp_path / "other", images=[f"x{i}.png" for i in range(5)])
    with pytest.raises(InvalidInputError, match="no image in common"):
        region_invariance(result, find_multimodal(elsewhere, FindSettings(k=3, nouns="content")))
    with pytest.raises(InvalidInputError, match="as many neurons"):
        region_invariance(result, find_multimodal(other, FindSettings(k=4, nouns="content")))


def test_all_of_them_in_a_table(result: Multimodal) -> None:
    measured = measure(result, result)
    assert set(measured) == {
        "sensitivity", "similarity", "cross-image invariance", "specificity", "discrimination", "region invariance",
    }  # fmt: skip
    assert measured["region invariance"].mean == 1
    assert measured["region invariance"].n == len(result.nouns)


def test_summaries_leave_nan_out() -> None:
    assert summarise([1.0, float("nan"), 3.0]).mean == 2
    assert summarise([1.0, float("nan"), 3.0]).sd == pytest.approx(2**0.5)
    assert summarise([]).n == 0


def test_a_store_without_top_tokens(tmp_path: Path) -> None:
    capture, _ = plant_captions(tmp_path / "store", top_tokens=False)
    with pytest.raises(InvalidInputError, match="fill_top_tokens"):
        sensitivity(find_multimodal(capture, FindSettings(k=3)))


def test_ids_are_those_of_the_vocabulary(planted: Planted) -> None:
    assert planted[0].store.token_text(IDS[" red"]) == " red"
