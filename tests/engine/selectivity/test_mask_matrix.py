"""A real model whose gates are language-specific by construction: LAPE finds them, and switching them off says so."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from textbook import blocks_of
from tiny_edits import make_editable
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actstore.engine.capture.api import capture
from actstore.engine.inputs.corpus import read_corpus
from actstore.engine.models.load import LoadedModel, load_model
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.engine.selectivity.mask_matrix import (
    MaskSettings,
    by_layer,
    corpus_options,
    measure_masks,
    windows_of_capture,
    windows_of_corpus,
)
from actstore.engine.selectivity.selectivity import SelectivitySettings, find_selectivity
from actstore.store.errors import InvalidInputError
from actstore.store.layout import IMAGE

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture

LANGUAGES = ("aa", "bb", "cc")
WORDS, WIDTH, NEURONS, LAYERS = 20, 16, 300, 2
PLANTED = {"aa": {0: [7], 1: [150]}, "bb": {0: [299, 31]}, "cc": {1: [0, 42]}}
"""Six of 600 neurons: 1 %."""
BEGIN = len(LANGUAGES) * WORDS
CONSTANT, WRITTEN, NOISE = 3, slice(4, 7), slice(7, WIDTH)
"""Dimensions of the residual stream after one for each language: always 1; where planted neurons write; noise."""


def build_model(folder: Path) -> None:
    """A Llama without attention whose planted neurons alone know which language's words come next."""
    config = LlamaConfig(
        vocab_size=BEGIN + 1, hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=BEGIN, tie_word_embeddings=False,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
        embedding = model.model.embed_tokens.weight
        embedding[:, CONSTANT] = 1
        embedding[:, NOISE] = torch.randn((BEGIN + 1, WIDTH - 7), generator=random)
        for language in range(len(LANGUAGES)):
            words = slice(language * WORDS, (language + 1) * WORDS)
            embedding[words, language] = 1
            model.lm_head.weight[words, 4 + language] = 1
        for number, layer in enumerate(model.model.layers):
            gate, up, down = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight
            # Ordinary neurons: gates that read noise, or are always open (few), or never.
            gate[:, NOISE] = torch.randn((NEURONS, WIDTH - 7), generator=random)
            gate[100:105], gate[200:230] = 0, 0
            gate[100:105, CONSTANT], gate[200:230, CONSTANT] = 1, -1
            up.normal_(0, 0.1, generator=random)
            down[NOISE].normal_(0, 0.01, generator=random)
            for language, name in enumerate(LANGUAGES):
                for neuron in PLANTED[name].get(number, []):
                    gate[neuron] = 0
                    gate[neuron, :3] = -3
                    gate[neuron, language] = 3
                    gate[neuron, CONSTANT] = -1
                    up[neuron] = 0
                    up[neuron, CONSTANT] = 1
                    down[4 + language, neuron] = 4
    model.save_pretrained(folder)
    words = {f"{name}{i}": LANGUAGES.index(name) * WORDS + i for name in LANGUAGES for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words | {"<s>": BEGIN}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


def write_documents(path: Path, seed: int, n: int = 40, text: bool = False) -> Path:
    """Labelled documents of one language each, as ids or as words."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for number in range(n):
            language = number % len(LANGUAGES)
            words = rng.integers(0, WORDS, int(rng.integers(20, 90)))
            content: dict[str, Any] = {"input_ids": [BEGIN, *(words + language * WORDS).tolist()]}
            if text:
                content = {"text": " ".join(f"{LANGUAGES[language]}{word}" for word in words)}
            file.write(json.dumps(content | {"language": LANGUAGES[language]}) + "\n")
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted-model") / "model"
    build_model(folder)
    return folder


@pytest.fixture(scope="module")
def held(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    folder = tmp_path_factory.mktemp("planted-capture")
    corpus = write_documents(folder / "corpus.jsonl", seed=1)
    return capture(str(model_path), corpus, folder / "store", label_columns=("language",))


@pytest.fixture(scope="module")
def loaded(model_path: Path) -> LoadedModel:
    return load_model(model_path)


def planted_names(language: str) -> set[str]:
    return {f"L{layer}.N{neuron}" for layer, neurons in PLANTED[language].items() for neuron in neurons}


@pytest.fixture(scope="module")
def neurons(held: Capture) -> dict[str, dict[int, list[int]]]:
    found = find_selectivity(held, SelectivitySettings(by="language"))
    return {label: by_layer(found.firing.locate(flat)) for label, flat in found.neurons.items()}


def test_only_a_labels_neurons_are_kept(
    held: Capture, loaded: LoadedModel, neurons: dict[str, dict[int, list[int]]]
) -> None:
    """By hand: every input of an output projection but the kept neurons is 0."""
    windows = list(windows_of_capture(held, "language", LANGUAGES, 100))
    settings = MaskSettings(max_tokens=100, keep_only=True, n_random=1)
    matrix = measure_masks(loaded, held, neurons, windows, settings)
    assert matrix.keep_only
    model = loaded.model
    for row, kept in enumerate(neurons.values()):
        handles = []
        for number, layer in enumerate(model.model.layers):  # type: ignore[operator, union-attr]
            mask = torch.zeros(NEURONS)
            mask[kept.get(number, [])] = 1
            handles.append(
                layer.mlp.down_proj.register_forward_pre_hook(lambda _module, args, mask=mask: (args[0] * mask,))
            )
        total, n = np.zeros(3), np.zeros(3)
        with torch.inference_mode():
            for label, window in windows:
                logits = model(torch.from_numpy(window.ids[None].astype(np.int64))).logits[0].log_softmax(-1)
                total[label] -= float(logits[torch.arange(len(window.ids) - 1), window.ids[1:].astype(np.int64)].sum())
                n[label] += len(window.ids) - 1
        for handle in handles:
            handle.remove()
        np.testing.assert_allclose(matrix.masked[row], total / n, rtol=1e-4)
    assert (np.diag(matrix.masked) < np.diag(matrix.random[0])).all(), "a language is known by its neurons alone"


@pytest.mark.parametrize("keep_only", [False, True])
@pytest.mark.parametrize("kind", ["gated-tied", "plain-tied-biases", "plain-untied-biases"])
def test_neurons_are_zeroed_in_models_of_every_kind(kind: str, keep_only: bool, tmp_path: Path) -> None:
    """Perplexity with a label's neurons at 0, or all others, by plain hooks on each output projection."""
    make_editable(kind, tmp_path)
    corpus = tmp_path / "labelled.jsonl"
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(5, 300, 20).tolist(), "language": LANGUAGES[i % 3]} for i in range(6)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    captured = capture(str(tmp_path / "model"), corpus, tmp_path / "labelled", label_columns=("language",))
    loaded = load_model(tmp_path / "model")
    off = {"aa": {0: [1, 2, 9], 1: [4]}, "bb": {0: [0, 23]}, "cc": {}}
    windows = list(windows_of_capture(captured, "language", LANGUAGES, 30))
    matrix = measure_masks(loaded, captured, off, windows, MaskSettings(max_tokens=30, n_random=1, keep_only=keep_only))
    for row, neurons in enumerate(off.values()):
        handles = []
        for layer, block in enumerate(blocks_of(loaded.model)):
            mask = torch.ones(24)
            mask[neurons.get(layer, [])] = 0
            mask = 1 - mask if keep_only else mask
            handles.append(block.register_forward_pre_hook(lambda _module, args, mask=mask: (args[0] * mask,)))
        total, n = np.zeros(3), np.zeros(3)
        with torch.inference_mode():
            for label, window in windows:
                ids = window.ids.astype(np.int64)
                log_p = loaded.model(torch.from_numpy(ids[None])).logits[0].log_softmax(-1)
                total[label] -= float(log_p[torch.arange(len(ids) - 1), ids[1:]].double().sum())
                n[label] += len(ids) - 1
        for handle in handles:
            handle.remove()
        np.testing.assert_allclose(matrix.masked[row], total / n, rtol=1e-5)


def test_lape_recovers_exactly_the_planted_neurons_with_their_languages(held: Capture) -> None:
    found = find_selectivity(held, SelectivitySettings(by="language"))
    assert {label: set(found.firing.names(flat)) for label, flat in found.neurons.items()} == {
        language: planted_names(language) for language in LANGUAGES
    }
    assert len(found.selection.neurons) == round(0.01 * LAYERS * NEURONS) == 6
    assert found.selection.entropies[found.selection.neurons].tolist() == [0.0] * 6
    # What never fires has no entropy; what always does is no candidate, however often it fires.
    never = found.firing.positives.sum(axis=1) == 0
    assert np.array_equal(np.isnan(found.selection.entropies), never)
    assert never.sum() == 60


def test_switching_off_a_language_hurts_that_language(
    held: Capture, loaded: LoadedModel, neurons: dict[str, dict[int, list[int]]]
) -> None:
    seen: list[tuple[int, int]] = []
    windows = list(windows_of_capture(held, "language", LANGUAGES, 300))
    settings = MaskSettings(batch_tokens=256, n_random=2)
    matrix = measure_masks(loaded, held, neurons, windows, settings, lambda *progress: seen.append(progress))
    assert matrix.labels == LANGUAGES
    assert matrix.n_neurons.tolist() == [2, 2, 2]
    assert (matrix.n_tokens >= 300).all()
    assert (matrix.n_tokens < 300 + 64).all()
    diagonal = np.diag(matrix.change)
    away = matrix.change - np.diag(diagonal)
    assert (diagonal > 1).all(), matrix.change
    assert np.abs(away).max() < 0.05 * diagonal.min()
    assert np.abs(matrix.random_change).max() < 0.1
    assert matrix.random.shape == (2, 3, 3)
    total = int(matrix.n_tokens.sum()) * (1 + 3 + 6)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_the_matrix_is_what_a_model_with_zeroed_weights_predicts(
    held: Capture, loaded: LoadedModel, model_path: Path, neurons: dict[str, dict[int, list[int]]]
) -> None:
    windows = list(windows_of_capture(held, "language", LANGUAGES, 200))
    matrix = measure_masks(loaded, held, neurons, windows, MaskSettings(n_random=0, batch_tokens=100))
    assert matrix.random.shape == (0, 3, 3)
    assert not matrix.random_change.any()
    for row, off in ((None, {}), (1, neurons["bb"])):
        changed = LlamaForCausalLM.from_pretrained(model_path)
        with torch.no_grad():
            for layer, indices in off.items():
                changed.model.layers[layer].mlp.down_proj.weight[:, indices] = 0
        nats: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for label, window in windows:
            ids = torch.from_numpy(window.ids.astype(np.int64))
            with torch.inference_mode():
                log_p = changed(input_ids=ids[None]).logits[0].log_softmax(-1)
            # Ids that come with the document's first token: that one is not predicted, every other one is.
            nats[label] += [-float(log_p[i - 1, ids[i]]) for i in range(1, len(ids)) if int(ids[i]) != BEGIN]
        expected = [float(np.mean(nats[label])) for label in range(3)]
        found = matrix.clean if row is None else matrix.masked[row]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert matrix.n_tokens.tolist() == [len(nats[label]) for label in range(3)]


def test_batches_change_nothing(held: Capture, loaded: LoadedModel, neurons: dict[str, dict[int, list[int]]]) -> None:
    windows = list(windows_of_capture(held, "language", LANGUAGES, 150))
    one, many = (
        measure_masks(loaded, held, neurons, windows, MaskSettings(n_random=1, batch_tokens=n, seed=4))
        for n in (1, 4096)
    )
    np.testing.assert_allclose(one.masked, many.masked, rtol=1e-5)
    np.testing.assert_allclose(one.random, many.random, rtol=1e-5)
    assert not np.array_equal(
        one.random,
        measure_masks(loaded, held, neurons, windows, MaskSettings(batch_tokens=1, seed=5)).random,
    )


@pytest.mark.parametrize("text", [False, True])
def test_a_held_out_corpus_gives_the_same_diagonal(
    held: Capture,
    loaded: LoadedModel,
    model_path: Path,
    neurons: dict[str, dict[int, list[int]]],
    tmp_path: Path,
    text: bool,
) -> None:
    path = write_documents(tmp_path / "held-out.jsonl", seed=2, text=text)
    with path.open("a") as file:
        file.write(json.dumps({"text": "aa1 bb1", "input_ids": [1, 2], "language": "zz"}) + "\n")
    documents = read_corpus(path, corpus_options(held, "language"))
    tokenizer = TextTokenizer.load(str(model_path))
    windows = list(windows_of_corpus(documents, held, "language", LANGUAGES, 250, tokenizer))
    matrix = measure_masks(loaded, held, neurons, windows, MaskSettings(n_random=0))
    assert (matrix.n_tokens >= 250).all()
    assert (matrix.n_tokens < 250 + 64).all()
    assert (np.diag(matrix.change) > 1).all()
    assert np.abs(matrix.change - np.diag(np.diag(matrix.change))).max() < 0.05


def test_reading_ends_when_every_label_has_its_tokens(held: Capture, model_path: Path, tmp_path: Path) -> None:
    path = write_documents(tmp_path / "endless.jsonl", seed=2)
    documents = list(read_corpus(path, corpus_options(held, "language")))
    n_read = 0

    def endless() -> Any:
        nonlocal n_read
        for document in itertools.cycle(documents):
            n_read += 1
            yield document

    windows = list(windows_of_corpus(endless(), held, "language", LANGUAGES, 500, None))
    assert n_read < 1000
    assert {label for label, _ in windows} == {0, 1, 2}


class TestRefusals:
    def test_a_label_without_text(self, held: Capture, loaded: LoadedModel, neurons: Any) -> None:
        windows = [(label, window) for label, window in windows_of_capture(held, "language", LANGUAGES, 50) if label]
        with pytest.raises(
            InvalidInputError, match=r"text of every label to predict, found none of 'aa'\. Check the corpus"
        ):
            measure_masks(loaded, held, neurons, windows)

    def test_another_model(self, held: Capture, neurons: Any) -> None:
        other = LoadedModel(LlamaForCausalLM(LlamaConfig(
            vocab_size=61, hidden_size=16, intermediate_size=300, num_hidden_layers=2, num_attention_heads=2,
        )))  # fmt: skip
        with pytest.raises(InvalidInputError, match="holds another model"):
            measure_masks(other, held, neurons, [])

    def test_a_model_that_predicts_no_next_token(
        self, held: Capture, neurons: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = LoadedModel(BertForMaskedLM(BertConfig(
            vocab_size=61, hidden_size=16, intermediate_size=300, num_hidden_layers=2, num_attention_heads=2,
        )))  # fmt: skip
        monkeypatch.setattr("actstore.engine.selectivity.mask_matrix.check_model", lambda *_: None)
        with pytest.raises(InvalidInputError, match=r"predicts the next token, and .* is of kind 'encoder'"):
            measure_masks(encoder, held, neurons, [])

    def test_tokens_that_stand_for_images(self, held: Capture, loaded: LoadedModel, neurons: Any) -> None:
        (label, first), *others = windows_of_capture(held, "language", LANGUAGES, 50)
        modality = first.modality.copy()  # the capture keeps its own
        modality[1] = IMAGE
        windows = [(label, replace(first, modality=modality)), *others]
        with pytest.raises(InvalidInputError, match="hold images, which token ids alone do not represent"):
            measure_masks(loaded, held, neurons, windows)

    @pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"batch_tokens": 0}, {"n_random": -1}])
    def test_settings(self, wrong: dict[str, int]) -> None:
        with pytest.raises(InvalidInputError, match=f"`{next(iter(wrong))}` must be at least"):
            MaskSettings(**wrong)
