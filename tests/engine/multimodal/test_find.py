"""Which neurons carry each noun: against the formula, written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from planted_captions import CAPTIONS, IDS, LANGUAGE, PROMPT, SIDE, plant_captions

from actstore.engine.multimodal import find, patch_maps, ranker, result
from actstore.engine.multimodal.captions import read_captions
from actstore.engine.multimodal.concepts import concepts
from actstore.engine.multimodal.find import find_multimodal
from actstore.engine.multimodal.noun_maps import map_nouns
from actstore.engine.multimodal.result import FindSettings
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture

Planted = tuple["Capture", dict[str, Any]]
N_PROMPT = 1 + SIDE**2 + len(PROMPT)
EXPECTED = [  # caption, noun, first sub-token, which token of the answer
    (0, "red", " red", 1), (0, "circle", " cir", 2), (0, "green", " green", 6), (0, "square", " square", 7),
    (1, "green", " green", 3), (1, "circles", " cir", 4), (1, "star", " star", 10),
    (2, "red", " Red", 1), (2, "square", " square", 2), (2, "star", " star", 5),
    (4, "circle", " cir", 1),
]  # fmt: skip


def reference(planted: Planted, form: str, gain: bool, centres: bool = False) -> list[list[tuple[float, int]]]:
    """(score, neuron counted through the language layers) of every noun, best first, in float64."""
    capture, what = planted
    tokens = capture.tokens().to_pydict()
    rankings = []
    for caption, _, piece, at in EXPECTED:
        (column,) = [
            i for i, (document, position) in enumerate(zip(tokens["document"], tokens["position"], strict=True))
            if document == caption and position == N_PROMPT + at - 1
        ]  # fmt: skip
        direction = what["unembedding"][IDS[piece]].double() * (what["gain"].double() if gain else 1)
        scores = []
        for layer in range(len(LANGUAGE)):
            vectors = what["layers"][layer].double()
            vectors = vectors - vectors.mean(1, keepdim=True) if centres else vectors
            scores += (what["values"][f"mlp.{form}", layer][:, column] * (vectors @ direction).numpy()).tolist()
        rankings.append(sorted(((score, i) for i, score in enumerate(scores)), key=lambda pair: (-pair[0], pair[1])))
    return rankings


def check(result: find.Multimodal, form: str, expected: list[list[tuple[float, int]]], rtol: float = 1e-4) -> None:
    ranked = result.ranked[form]
    for row, best in enumerate(expected):
        k = min(result.settings.k, len(best))
        scores = dict((i, score) for score, i in best)
        assert len(set(ranked.tokens[row, :k].tolist())) == k
        np.testing.assert_allclose(ranked.values[row, :k], [score for score, _ in best[:k]], rtol=rtol, atol=1e-5)
        np.testing.assert_allclose(
            ranked.values[row, :k], [scores[i] for i in ranked.tokens[row, :k].tolist()], rtol=rtol, atol=1e-5
        )


def test_words_are_aligned_to_their_tokens(planted: Planted) -> None:
    result = find_multimodal(planted[0], FindSettings(k=3, nouns="content"))
    nouns = [(n.caption, n.word, n.token, n.position) for n in result.nouns]
    assert nouns == [(c, word, IDS[piece], N_PROMPT + at - 1) for c, word, piece, at in EXPECTED]
    assert [caption.text for caption in result.captions][:3] == [
        " a red circle and a green square.", " there is a green circles with a green star", " a Red square✓ star",
    ]  # fmt: skip
    assert [caption.document for caption in result.captions] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("k", [1, 7, 45, 60])
def test_scores_are_those_of_the_formula(planted: Planted, k: int, gain: bool) -> None:
    result = find_multimodal(planted[0], FindSettings(k=k, nouns="content", forms=("post", "gate"), gain=gain))
    for form in ("post", "gate"):
        check(result, form, reference(planted, form, gain))
    if k == 60:  # more than the language model has: the vision tower's neurons write to no token
        assert (result.first.tokens[:, 45:] == -1).all()
        assert (result.first.values[:, 45:] == -np.inf).all()


@pytest.mark.parametrize("precision", ["half", "int8"])
def test_other_precisions(tmp_path: Path, precision: str) -> None:
    result = plant_captions(tmp_path / "store", precision=precision)
    exact = reference(result, "post", True)
    ranked = find_multimodal(result[0], FindSettings(k=5, nouns="content")).first
    tolerance = {"half": 5e-3, "int8": 0.2}[precision]
    for row, best in enumerate(exact):
        np.testing.assert_allclose(ranked.values[row], [score for score, _ in best[:5]], atol=tolerance)


def test_a_norm_that_centres(tmp_path: Path) -> None:
    result = plant_captions(tmp_path / "store", centres=True)
    check(find_multimodal(result[0], FindSettings(k=9, nouns="content")), "post", reference(result, "post", True, True))


def test_chunks_and_blocks_change_nothing(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FindSettings(k=6, nouns="content")
    whole = find_multimodal(planted[0], settings)
    assert len(planted[0].blocks) > 1
    monkeypatch.setattr(ranker, "CHUNK", 2)
    monkeypatch.setattr(ranker, "MAX_PRODUCTS", 0)
    again = find_multimodal(planted[0], settings)
    assert again.first.tokens.tolist() == whole.first.tokens.tolist()
    assert again.first.values.tolist() == whole.first.values.tolist()


def test_nan_never_wins_and_ties_go_to_the_smaller_neuron(tmp_path: Path) -> None:
    def values(drawn: Any, site: str, layer: int) -> Any:
        drawn[:] = np.nan if layer == 0 else 0
        return drawn

    result = find_multimodal(plant_captions(tmp_path / "store", values=values)[0], FindSettings(k=3, nouns="content"))
    assert (result.first.tokens == [[5, 6, 7]]).all()  # the first of layer 1
    assert (result.first.values == 0).all()


def test_activations_are_those_at_the_noun(planted: Planted) -> None:
    capture, what = planted
    result = find_multimodal(capture, FindSettings(k=50, nouns="content", forms=("gate", "post")))
    tokens = capture.tokens().to_pydict()
    columns = list(zip(tokens["document"], tokens["position"], strict=True))
    for form in ("gate", "post"):
        values = np.concatenate([what["values"][f"mlp.{form}", layer] for layer in (0, 1)])
        for row, noun in enumerate(result.nouns):
            expected = values[result.ranked[form].tokens[row, :45], columns.index((noun.caption, noun.position))]
            np.testing.assert_array_equal(result.activations(form)[row, :45], expected)
    assert np.isnan(result.activations()[:, 45:]).all()
    assert result.activations() is result.activations("gate")


def test_only_what_predicts_answers_need_be_kept(planted: Planted, tmp_path: Path) -> None:
    def captured(n: int, n_prompt: int) -> Any:
        return np.arange(n_prompt - 1, n - 1, dtype=np.int32)

    some, _ = plant_captions(tmp_path / "a", kept=captured)
    result = find_multimodal(some, FindSettings(k=3, nouns="content"))
    assert [n.word for n in result.nouns] == [word for _, word, _, _ in EXPECTED]
    last, _ = plant_captions(tmp_path / "b", kept=lambda n, n_prompt: np.array([n - 1], np.int32))
    with pytest.raises(
        InvalidInputError, match=r"does not hold position 13 of document 0, which predicts 'red'.*generated\"`, or all"
    ):
        find_multimodal(last, FindSettings(nouns="content"))


def test_without_n_prompt_the_answer_is_what_was_generated(tmp_path: Path) -> None:
    capture, _ = plant_captions(tmp_path / "store", n_prompt=False)
    assert [caption.first for caption in read_captions(capture)] == [N_PROMPT] * len(CAPTIONS)
    assert [caption.ids.tolist() for caption in read_captions(capture)] == CAPTIONS


def test_some_documents_only(planted: Planted) -> None:
    whole = find_multimodal(planted[0], FindSettings(k=4, nouns="content"))
    some = find_multimodal(planted[0], FindSettings(k=4, nouns="content", documents=(4, 1)))
    assert [caption.document for caption in some.captions] == [1, 4]
    rows = [i for i, noun in enumerate(whole.nouns) if noun.caption in (1, 4)]
    assert some.first.tokens.tolist() == whole.first.tokens[rows].tolist()
    with pytest.raises(InvalidInputError, match="documents 0 to 4, found document 9"):
        find_multimodal(planted[0], FindSettings(documents=(9,)))


def test_baselines(planted: Planted) -> None:
    capture, what = planted
    by_activation = find_multimodal(capture, FindSettings(k=4, nouns="content", by="activation"))
    tokens = capture.tokens().to_pydict()
    column = list(zip(tokens["document"], tokens["position"], strict=True)).index((0, by_activation.nouns[0].position))
    values = np.concatenate([what["values"]["mlp.post", layer][:, column] for layer in (0, 1)])
    assert by_activation.first.tokens[0].tolist() == np.argsort(-values, kind="stable")[:4].tolist()
    drawn = find_multimodal(capture, FindSettings(k=4, nouns="content", by="random", seed=3))
    again = find_multimodal(capture, FindSettings(k=4, nouns="content", by="random", seed=3))
    assert drawn.first.tokens.tolist() == again.first.tokens.tolist()
    assert all(len(neurons) == 4 for neurons in drawn.sets)
    assert len(set(drawn.sets)) > 1


def test_random_neurons_of_the_same_layers(planted: Planted) -> None:
    result = find_multimodal(planted[0], FindSettings(k=4, nouns="content"))
    drawn = find.draw_alike(result, 1)
    for ours, theirs in zip(result.sets, drawn.sets, strict=True):
        assert len(theirs) == 4
        assert sorted(layer for layer, _ in result.numbering.pairs(np.array(sorted(ours)))) == sorted(
            layer for layer, _ in result.numbering.pairs(np.array(sorted(theirs)))
        )
    assert drawn.sets != result.sets
    assert drawn.sets == find.draw_alike(result, 1).sets


def test_concepts_count_captions(planted: Planted) -> None:
    result = find_multimodal(planted[0], FindSettings(k=10, nouns="content"))
    every = {concept.word: concept for concept in concepts(result)}
    assert [(c.word, len(c.occurrences)) for c in concepts(result)][:3] == [("circle", 2), ("green", 2), ("red", 2)]
    green = every["green"]
    sets = [result.sets[i] for i in green.occurrences.tolist()]
    for number, share in zip(green.neurons.tolist(), green.shares.tolist(), strict=True):
        assert share == sum(number in s for s in sets) / 2
    assert green.shares.tolist() == sorted(green.shares.tolist(), reverse=True)
    assert set(green.neurons[green.shares == 1].tolist()) == sets[0] & sets[1]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    capture, _ = plant_captions(tmp_path / "store", sites=("mlp.post",))
    with pytest.raises(
        NotFoundError, match=r"no site 'mlp.gate', which the form 'gate' reads.*`sites=\('mlp.gate',\)`"
    ):
        find_multimodal(capture, FindSettings(forms=("gate",)))
    with pytest.raises(InvalidInputError, match="found 0"):
        FindSettings(k=0)
    with pytest.raises(InvalidInputError, match="`by` is one of contribution, activation, random, found 'size'"):
        find_multimodal(capture, FindSettings(by="size"))
    with pytest.raises(InvalidInputError, match="`by` is one of contribution, activation, random, found 'gradient'"):
        find_multimodal(capture, FindSettings(by="gradient"))
    with pytest.raises(InvalidInputError, match="`forms` are one or more of post, gate"):
        FindSettings(forms=("up",))


def test_the_scale_of_a_layer_where_a_noun_is_predicted(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contributions are times what the position multiplies the layer's output with; maps, times that of each patch."""
    capture, _ = planted
    scales = np.random.default_rng(5).uniform(0.2, 3, (2, len(capture.blocks), 64)).astype(np.float32)

    def scale_of(_capture: Any, layer: int, block: int) -> Any:
        return scales[layer, block]

    settings = FindSettings(k=9, nouns="content")
    exact = reference(planted, "post", True)
    plain = find_multimodal(capture, settings)
    unscaled = [plain.products_of(row) for row in range(len(plain.nouns))]
    for module in (ranker, result, patch_maps):
        monkeypatch.setattr(module, "block_scale", scale_of)
    scaled = find_multimodal(capture, settings)
    for row, noun in enumerate(scaled.nouns):
        caption = scaled.captions[noun.caption]
        of_noun = scales[:, caption.block, caption.offsets[noun.position]]
        expected = {i: score * of_noun[0 if i < LANGUAGE[0] else 1] for score, i in exact[row]}
        best = sorted(expected, key=lambda i: (-expected[i], i))[:9]
        assert scaled.first.tokens[row].tolist() == best
        np.testing.assert_allclose(scaled.first.values[row], [expected[i] for i in best], rtol=1e-4, atol=1e-5)
        products = {i: score for i, score in zip(best, scaled.products_of(row), strict=True)}
        for i, product in zip(plain.first.tokens[row].tolist(), unscaled[row], strict=True):
            assert i not in products or products[i] == pytest.approx(product, rel=1e-3, abs=1e-4)
    number, patch_map = next(iter(map_nouns(scaled)))
    caption = scaled.captions[scaled.nouns[number].caption]
    layers = np.array([layer for layer, _ in scaled.neurons_of(number)])
    rows = [capture.block_row(layer, neuron, caption.block) for layer, neuron in scaled.neurons_of(number)]
    terms = np.array(rows) * np.array(scaled.products_of(number))[:, None] * scales[layers, caption.block]
    np.testing.assert_allclose(patch_map.values, terms[:, patch_map.grid.slots].mean(axis=0), rtol=1e-4, atol=1e-5)
