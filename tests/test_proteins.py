"""The demo's protein model is what its log says it is, and the table of its knowledge neurons measures what it says."""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import EsmForMaskedLM, EsmTokenizer

from actstore.engine.models.load import load_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "demo" / "models" / "protein-esm"
LOG = [json.loads(line) for line in (FOLDER / "training_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def table() -> Iterator[ModuleType]:
    """The table's module; `benchmarks` and `demo/training` are folders of the checkout, not of what is installed."""
    before = list(sys.path)
    sys.path[:0] = [str(ROOT), str(ROOT / "demo" / "training")]
    yield importlib.import_module("benchmarks.tables.protein")
    sys.path[:] = before


@pytest.fixture(scope="module")
def training(table: ModuleType) -> ModuleType:
    return importlib.import_module("train_proteins")


def test_sequences_are_of_their_families_and_name_their_conserved_residues(table: ModuleType) -> None:
    made = importlib.import_module("protein_families")
    assert made.families() == made.families()
    assert len({family.name for family in made.families()}) == 12
    for family in made.families():
        drawn = [made.draw_protein(family, random.Random(i)) for i in range(200)]
        assert all(set(protein.sequence) <= set(made.FREQUENCIES) for protein in drawn)
        # Of 21 conserved positions 85 % hold the consensus residue, and now and then another draw is that residue.
        assert np.mean([len(protein.conserved) for protein in drawn]) == pytest.approx(21 * 0.85, abs=0.5)
        consensus = "".join(residue for motif in family.motifs for residue in motif.consensus if residue)
        assert len(consensus) == 21
        for protein in drawn[:20]:
            held = iter(consensus)
            assert all(protein.sequence[at - 1] in held for at in protein.conserved), "in the order of the motifs"
    shared = {f.of_class: {m for m in f.motifs} for f in made.families()[::2]}
    assert all(len(shared[f.of_class] & set(f.motifs)) == 1 for f in made.families()[1::2])


def test_it_knows_what_a_family_conserves_and_nothing_of_linkers(training: ModuleType) -> None:
    saved = LOG[-1]["saved_model"]
    assert saved["conserved"] > 0.9
    assert saved["others"] < 0.15, "what nobody can know"
    model = EsmForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32)
    found = training.evaluate(model, per_family=2)
    assert found["conserved"] == pytest.approx(saved["conserved"], abs=0.05)
    assert found["others"] == pytest.approx(saved["others"], abs=0.05)


def test_the_tokenizer_and_the_questions_are_those_of_the_script(table: ModuleType, training: ModuleType) -> None:
    tokenizer = EsmTokenizer.from_pretrained(FOLDER)
    assert tokenizer("MKTAYW")["input_ids"] == training.encode("MKTAYW")
    assert tokenizer.mask_token_id == training.MASK
    rows = [json.loads(line) for line in (FOLDER / "proteins.jsonl").read_text().splitlines()]
    assert rows == table.draw_questions(2, 2, "questions")


@pytest.mark.parametrize("site", ["mlp.post", "attn.q", "attn.k", "attn.v", "attn.z"])
def test_neurons_are_zeros_at_all_positions_of_every_pass(table: ModuleType, site: str) -> None:
    """By hand: rows of the projection's weights and biases that make them are 0, or columns of what reads them."""
    model, plain = load_model(FOLDER, device="cpu"), EsmForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32)
    width = 256 if site == "mlp.post" else 64
    neurons = np.array([3, 17, width + 5, 3 * width + 60])
    prompts = table.as_prompts(table.draw_questions(1, 2, "x"))
    with torch.no_grad():
        for flat in neurons.tolist():
            layer, neuron = plain.esm.encoder.layer[flat // width], flat % width
            if site in ("mlp.post", "attn.z"):
                (layer if site == "mlp.post" else layer.attention).output.dense.weight[:, neuron] = 0
                continue
            name = {"attn.q": "query", "attn.k": "key", "attn.v": "value"}[site]
            projection = getattr(layer.attention.self, name)
            projection.weight[neuron] = 0
            projection.bias[neuron] = 0
        logits = plain(prompts.ids, attention_mask=(prompts.ids != 1).long()).logits[torch.arange(24), prompts.at]
    p, right = table.answers(model, prompts, site, neurons)
    np.testing.assert_allclose(p, logits.softmax(-1)[torch.arange(24), prompts.targets].numpy(), rtol=1e-4)
    assert right.tolist() == (logits.argmax(-1) == prompts.targets).tolist()
    whole, _ = table.answers(model, prompts, site, np.empty(0, np.int64))
    assert not np.allclose(whole, p, rtol=1e-3)


def test_the_table_of_a_few_sequences(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SITES", {"mlp.post": "feed-forward", "attn.k": "keys"})
    monkeypatch.setattr(table, "STEPS", 2)
    model = load_model(FOLDER, device="cpu")
    figures = [table.measure(model, 1, 1, seed) for seed in (0, 1)]
    ours, chance = figures[0]["mlp.post ig"], figures[0]["mlp.post random"]
    assert ours["own P"] < chance["own P"], "integrated gradients find more than chance does"
    assert 0 <= figures[0]["mlp.post kept"]["ig"] <= 100
    text = table.report(figures, 1, 1)
    assert "±" in text
    assert "over 2 seeds" in text
    assert text.count("| feed-forward |") == 5
    assert "12 queries (sequences) of 1 conserved residues each" in text


def test_neurons_are_chosen_by_their_scores(table: ModuleType) -> None:
    scores: dict[str, Any] = {
        "ig": np.array([[5.0, 4.0, 0.0, 1.0], [5.0, 0.0, 3.0, 1.0]]),
        "activation": np.array([[0.0, -9.0, 1.0, 2.0], [3.0, 0.0, 1.0, -2.0]]),
    }
    rng = np.random.default_rng(0)
    assert [chosen.tolist() for chosen in table.choose(scores, "ig", 2, rng)] == [[0, 1], [0, 2]]
    assert [chosen.tolist() for chosen in table.choose(scores, "specific", 1, rng)] == [[1], [2]]
    assert [chosen.tolist() for chosen in table.choose(scores, "activation", 2, rng)] == [[1, 3], [0, 3]]
    assert table.density({"a": {"ig": np.tile(np.arange(20.0), (2, 1))}, "b": {"ig": np.zeros((2, 20))}}) == {
        "a": 10.0,
        "b": 0.0,
    }
