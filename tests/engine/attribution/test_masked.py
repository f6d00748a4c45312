"""Attributions of masked models: words of BERT, residues of ESM, against an integration over whole sequences written here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny import scatter_weights, tiny_config
from tiny_masked import save_bert, save_esm
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import actstore
from actstore.engine.attribution.attribute import attribute
from actstore.engine.attribution.integrated_gradients import PathSettings, integrated_gradients
from actstore.engine.models.load import LoadedModel, load_model
from actstore.engine.naica.evaluation import EvaluationSettings, evaluate_naica
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.capture.questions.attributions import Attributions

STEPS = 6
NAMES = {"attn.q": "query", "attn.k": "key", "attn.v": "value", "attn.z": ""}
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
CLOZE = [
    {"id": "france", "cloze": ["the capital of france is [MASK] .", "[MASK] is the capital of france"],
     "options": ["paris", "rome"], "answer": "paris", "relation": "capital"},
    {"id": "italy", "cloze": ["the capital of italy is [MASK] .", "[MASK] is the capital of italy"],
     "options": ["paris", "rome"], "answer": "rome", "relation": "capital"},
    {"id": "city", "cloze": "rome is a big [MASK] .", "options": ["city", "france", "in"], "answer": "city",
     "relation": "kind"},
    {"id": "lies", "cloze": "rome [MASK] in italy .", "options": ["lies", "france"], "answer": "lies", "relation": "kind"},
]  # fmt: skip
RESIDUES = [
    {"id": f"p{i}", "sequence": SEQUENCE[i:], "position": [1 + i, 5 + i], "family": "ab"[i % 2]} for i in range(4)
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Attributions]:
    folder = tmp_path_factory.mktemp("bert")
    model = save_bert(folder / "bert")
    made = attribute(
        str(model), written(folder / "q.jsonl", CLOZE), folder / "store", steps=STEPS, label_columns=("relation",)
    )
    return model, made


@pytest.fixture(scope="module")
def esm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Attributions]:
    folder = tmp_path_factory.mktemp("esm")
    model = save_esm(folder / "esm")
    made = attribute(
        str(model), written(folder / "q.jsonl", RESIDUES), folder / "store", steps=STEPS, label_columns=("family",)
    )
    return model, made


def integrated(
    folder: Path, projection: Callable[[Any, int], Any], ids: list[int], at: int, target: int
) -> NDArray[np.float64]:
    """a_n / m · Σ_k ∂P(k/m · a)/∂a_n at the mask, one layer at a time, each step one run of the whole sequence."""
    model = AutoModelForMaskedLM.from_pretrained(folder)
    found = []
    for layer in range(2):
        clean: list[torch.Tensor] = []
        module = projection(model, layer)
        handle = module.register_forward_pre_hook(lambda _, args, clean=clean: clean.append(args[0][0, at].detach()))
        with torch.no_grad():
            model(torch.tensor([ids]))
        handle.remove()
        total = torch.zeros_like(clean[0])
        for k in range(1, STEPS + 1):
            scaled = (k / STEPS * clean[0]).requires_grad_()

            def patch(_: Any, args: Any, scaled: torch.Tensor = scaled) -> Any:
                values = args[0].clone()
                values[0, at] = scaled
                return (values,)

            handle = module.register_forward_pre_hook(patch)
            p = model(torch.tensor([ids])).logits[0, at].softmax(-1)[target]
            handle.remove()
            total += torch.autograd.grad(p, scaled)[0]
        found.append((clean[0] * total / STEPS).double().numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("kind", ["bert", "bert untied", "esm", "esm absolute"])
def test_stored_attributions_are_the_integral_over_the_whole_sequence(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Plain feed-forwards with biases: embeddings tied and not, rotary positions as ESM-2 and absolute as ESM-1."""
    family = kind.split()[0]
    if kind == family:
        folder, made = request.getfixturevalue(family)
    else:
        folder = save_bert(tmp_path / "m", tied=False) if family == "bert" else save_esm(tmp_path / "m", rotary=False)
        rows = CLOZE if family == "bert" else RESIDUES
        made = attribute(str(folder), written(tmp_path / "q.jsonl", rows), tmp_path / "store", steps=STEPS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = made.prompts.to_pylist()
    assert len(rows) == (6 if family == "bert" else 8)
    scores = np.concatenate([scores for _, scores in made.prompt_scores("ig")])
    layers = {
        "bert": lambda model, i: model.bert.encoder.layer[i].output.dense,
        "esm": lambda model, i: model.esm.encoder.layer[i].output.dense,
    }
    for number, row in enumerate(rows):
        expected = tokenizer(row["text"].replace("[MASK]", tokenizer.mask_token))["input_ids"]
        assert made.prompt_ids(number).tolist() == expected
        at = expected.index(tokenizer.mask_token_id)
        assert made.prompt_position(number) == at
        assert row["target"] == tokenizer.convert_tokens_to_ids(row["answer"])
        reference = integrated(folder, layers[family], expected, at, row["target"])
        np.testing.assert_allclose(scores[number], reference, rtol=2e-4, atol=1e-6 * np.abs(reference).max())
        with torch.inference_mode():
            model = AutoModelForMaskedLM.from_pretrained(folder)
            p = model(torch.tensor([expected])).logits[0, at].softmax(-1)[row["option_tokens"]]
        np.testing.assert_allclose(row["probabilities"], p.numpy(), rtol=1e-4)
        assert row["predicted"] == row["options"][int(p.argmax())]


@pytest.mark.parametrize("site", ["attn.q", "attn.k", "attn.v", "attn.z"])
@pytest.mark.parametrize("family", ["esm", "gpt2", "llama"])
def test_projections_of_attention_are_attributed_to(family: str, site: str, tmp_path: Path) -> None:
    """IG of a projection's part at the position that predicts, each step one run of the whole sequence."""
    if family == "esm":
        loaded, ids, at = load_model(save_esm(tmp_path / "esm"), device="cpu"), [0, 20, 15, 32, 5, 7, 2], 3
        path, part = f"esm.encoder.layer.1.attention.self.{NAMES[site]}", slice(None)
        output = "esm.encoder.layer.1.attention.output.dense"
    else:
        config = tiny_config(family)
        loaded, ids, at = LoadedModel(scatter_weights(AutoModelForCausalLM.from_config(config))), [5, 9, 3, 77, 20], 4
        number = ("attn.q", "attn.k", "attn.v", "attn.z").index(site)
        fused, apart = "transformer.h.1.attn.c_attn", f"model.layers.1.self_attn.{site[-1]}_proj"
        path, part = (fused, slice(64 * number, 64 * number + 64)) if family == "gpt2" else (apart, slice(None))
        output = "transformer.h.1.attn.c_proj" if family == "gpt2" else "model.layers.1.self_attn.o_proj"
        part = slice(None) if site == "attn.z" else part
    found = integrated_gradients(
        loaded, ids, 8, position=at, settings=PathSettings(steps=STEPS, layers=(1,), site=site)
    )
    assert found.path == ("cached" if site == "attn.z" and family != "esm" else "full")
    module = loaded.model.get_submodule(output if site == "attn.z" else path)

    def run(patched: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []

        def change(values: torch.Tensor) -> torch.Tensor:
            values = values.clone()
            seen.append(values[0, at, part].detach())
            if patched is not None:
                values[0, at, part] = patched
            return values

        if site == "attn.z":
            handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]),))
        else:
            handle = module.register_forward_hook(lambda _, _args, output: change(output))
        p = loaded.model(input_ids=torch.tensor([ids])).logits[0, at].softmax(-1)[8]
        handle.remove()
        return p, seen[0]

    clean = run(None)[1]
    total = torch.zeros_like(clean)
    for k in range(1, STEPS + 1):
        scaled = (k / STEPS * clean).requires_grad_()
        total += torch.autograd.grad(run(scaled)[0], scaled)[0]
    expected = (clean * total / STEPS).numpy()
    np.testing.assert_allclose(found.attributions[1], expected, rtol=5e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(found.activations[1], clean.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("site", ["mlp.post", "attn.k", "attn.z"])
@pytest.mark.parametrize("family", ["bert", "esm"])
def test_activations_of_a_whole_sequence_are_scaled_together(family: str, site: str, tmp_path: Path) -> None:
    """Σ_positions ā / m · Σ_k ∂P((k / m) ā) / ∂ā, with ā [position, neuron] of all positions, written here."""
    model = save_bert(tmp_path / "model") if family == "bert" else save_esm(tmp_path / "model")
    path = written(tmp_path / "q.jsonl", CLOZE[2:] if family == "bert" else RESIDUES[:2])
    made = attribute(str(model), path, tmp_path / "store", steps=STEPS, site=site, scope="sequence")
    assert (made.scope, made.kinds) == ("sequence", ("ig", "activation"))
    scores = np.concatenate([scores for _, scores in made.prompt_scores("ig")])
    activations = np.concatenate([scores for _, scores in made.prompt_scores("activation")])
    plain = AutoModelForMaskedLM.from_pretrained(model)
    for number, row in enumerate(made.prompts.to_pylist()):
        ids, at = torch.from_numpy(made.prompt_ids(number).astype(np.int64))[None], made.prompt_position(number)
        expected, means = [], []
        for layer in range(2):
            block = getattr(plain, family).encoder.layer[layer]
            before = {"mlp.post": block.output.dense, "attn.z": block.attention.output.dense}.get(site)
            seen: list[torch.Tensor] = []
            patched: list[torch.Tensor] = []

            def change(values: torch.Tensor, seen: Any = seen, patched: Any = patched) -> torch.Tensor:
                seen.append(values.detach())
                return patched[-1] if patched else values

            if before is not None:
                handle = before.register_forward_pre_hook(lambda _, args, change=change: (change(args[0]),))
            else:
                key = block.attention.self.key
                handle = key.register_forward_hook(lambda _, _args, output, change=change: change(output))
            with torch.no_grad():
                plain(ids)
            clean, total = seen[0], torch.zeros_like(seen[0])
            for k in range(1, STEPS + 1):
                patched.append((k / STEPS * clean).requires_grad_())
                p = plain(ids).logits[0, at].softmax(-1)[row["target"]]
                total += torch.autograd.grad(p, patched[-1])[0]
            handle.remove()
            expected.append((clean * total / STEPS)[0].sum(0).numpy())
            means.append(clean[0].mean(0).numpy())
        reference = np.concatenate(expected)
        np.testing.assert_allclose(scores[number], reference, rtol=5e-4, atol=2e-6 * np.abs(reference).max())
        np.testing.assert_allclose(activations[number], np.concatenate(means), rtol=1e-4, atol=1e-6)


def test_attributions_of_a_whole_sequence_say_what_they_are_not_for(tmp_path: Path) -> None:
    model, path = save_esm(tmp_path / "esm"), written(tmp_path / "q.jsonl", RESIDUES)
    made = attribute(str(model), path, tmp_path / "store", steps=2, scope="sequence", label_columns=("family",))
    with pytest.raises(
        InvalidInputError, match="attributes to whole sequences, which have no scores of kind 'gradient'"
    ):
        next(made.prompt_scores("gradient"))
    with pytest.raises(
        InvalidInputError, match=r"attributes to the activations of whole sequences\. Name a capture made at"
    ):
        evaluate_naica(load_model(model), made, EvaluationSettings(label="family", seeds=1))
    store = actstore.open(tmp_path / "store")
    with pytest.raises(
        InvalidInputError, match="The rows of MLP neurons are erased, and capture 'questions' attributes to"
    ):
        store.edits.erase("family", "a", name="e")
    with pytest.raises(InvalidInputError, match="`gradients` with a `scope` of 'sequence'"):
        attribute(str(model), path, tmp_path / "store", name="x", scope="sequence", gradients=False)
    with pytest.raises(InvalidInputError, match="`scope`"):
        attribute(str(model), path, tmp_path / "store", name="x", scope="all")  # type: ignore[arg-type]


def test_attributions_of_a_projection_are_stored_and_read_as_those_of_neurons(tmp_path: Path) -> None:
    model = save_esm(tmp_path / "esm")
    path = written(tmp_path / "q.jsonl", RESIDUES)
    made = attribute(str(model), path, tmp_path / "store", steps=2, site="attn.k", label_columns=("family",))
    assert (made.site, made.n_neurons, made.kinds) == ("attn.k", 32, ("ig", "gradient", "activation"))
    without = attribute(str(model), path, tmp_path / "store", name="w", gradients=False, site="attn.k")
    scores = [np.concatenate([s for _, s in one.prompt_scores("activation")]) for one in (made, without)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5, atol=1e-6)
    store = actstore.open(tmp_path / "store")
    assert len(set(store.knowledge(capture="questions")["query"].to_pylist())) == 4
    with pytest.raises(InvalidInputError, match="are what MLP neurons write"):
        next(made.prompt_scores("contribution"))
    with pytest.raises(InvalidInputError, match="MLP neurons are scaled to evaluate them"):
        evaluate_naica(load_model(model), made, EvaluationSettings(label="family", seeds=1))
    with pytest.raises(InvalidInputError, match=r"Layer 7 of .* has no site 'attn.k'"):
        attribute(str(model), path, tmp_path / "store", name="x", site="attn.k", layers=7)
    with pytest.raises(InvalidInputError, match=r"`site` is one of mlp\.post, attn\.q"):
        attribute(str(model), path, tmp_path / "store", name="x", site="attn.out")


def test_residues_are_counted_from_1_and_have_the_amino_acids_as_options(esm: tuple[Path, Attributions]) -> None:
    _, made = esm
    rows = made.prompts.to_pylist()
    assert rows[0]["text"] == "[MASK]" + SEQUENCE[1:]
    assert [row["answer"] for row in rows[:4]] == [SEQUENCE[0], SEQUENCE[4], SEQUENCE[2], SEQUENCE[6]]
    assert rows[0]["options"] == list("ACDEFGHIKLMNPQRSTVWY")
    assert made.queries["family"].to_pylist() == ["a", "b", "a", "b"]


@pytest.mark.parametrize(("family", "label"), [("bert", "relation"), ("esm", "family")])
def test_the_methods_that_read_attributions_run_on_them(
    family: str, label: str, request: pytest.FixtureRequest
) -> None:
    _, made = request.getfixturevalue(family)
    store = actstore.open(made.store.folder.location)
    assert len(set(store.knowledge()["query"].to_pylist())) == 4
    assert store.naica(by=label).table.num_rows > 0
    assert made.kinds == ("ig", "gradient", "activation")
    with pytest.raises(InvalidInputError, match="the head of a masked model transforms it first"):
        next(made.prompt_scores("contribution"))


def test_neurons_are_scaled_at_the_mask_where_naica_is_evaluated(bert: tuple[Path, Attributions]) -> None:
    folder, made = bert
    from actstore.engine.attribution.scaled_last_position import LastPosition, Variants

    model = load_model(folder, device="cpu")
    ids, at = made.prompt_ids(1), made.prompt_position(1)
    assert at < len(ids) - 1
    neurons, factor = np.array([3, 24 + 5]), 2.0
    found = LastPosition(model).predict(ids, Variants.of([neurons], [factor]), [7, 11], position=at)
    plain = AutoModelForMaskedLM.from_pretrained(folder)
    for layer, neuron in ((0, 3), (1, 5)):

        def double(_: Any, args: Any, neuron: int = neuron) -> Any:
            values = args[0].clone()
            values[0, at, neuron] *= factor
            return (values,)

        plain.bert.encoder.layer[layer].output.dense.register_forward_pre_hook(double)
    with torch.inference_mode():
        p = plain(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, at].softmax(-1)
    np.testing.assert_allclose(found.probabilities[1], p[[7, 11]].numpy(), rtol=1e-4)
    result = evaluate_naica(model, made, EvaluationSettings(label="relation", seeds=1, methods=("qrnca",)))
    assert result is not None


def test_a_question_of_letters_gets_a_mask_behind_it(bert: tuple[Path, Attributions], tmp_path: Path) -> None:
    folder, _ = bert
    rows = [{"id": "q", "prompts": ["who is a city ?\n A. rome\n B. france\n C. is\nanswer :"], "answers": ["A"]}]
    made = attribute(str(folder), written(tmp_path / "q.jsonl", rows), tmp_path / "store", steps=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = made.prompt_ids(0).tolist()
    assert ids[-2:] == [tokenizer.mask_token_id, tokenizer.sep_token_id]
    assert made.prompt_position(0) == len(ids) - 2
    assert made.prompts["option_tokens"][0].as_py() == tokenizer.convert_tokens_to_ids(["A", "B", "C"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"cloze": "rome is", "options": ["a", "b"], "answer": "a"},
            "once in each text of its 'cloze', found it 0 times",
        ),
        ({"cloze": "rome is [MASK]", "answer": "a"}, "a list of 2 to 1,000 'options'"),
        ({"cloze": "rome is [MASK]", "options": ["paris", "rome"], "answer": "city"}, "not among its options"),
        (
            {"cloze": "rome is [MASK]", "options": ["a big", "rome"], "answer": "rome"},
            "'a big', which is not one token",
        ),
        (
            {"cloze": "rome is [MASK]", "options": ["zebra", "rome"], "answer": "rome"},
            "'zebra', which is not one token",
        ),
        ({"sequence": "MKT", "position": 4}, "a 'position' from 1 to 3"),
        ({"sequence": "M T", "position": 1}, "letters without blanks"),
        ({"sequence": "MXT", "position": 2}, "the answer 'X', not among its options"),
    ],
)
def test_rows_that_cannot_be_asked(
    bert: tuple[Path, Attributions], tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        attribute(str(bert[0]), written(tmp_path / "q.jsonl", [row]), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_mask_for_a_model_that_continues_texts_and_prompts_that_are_too_long(
    bert: tuple[Path, Attributions], tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="has a mask, and the model continues texts"):
        attribute(str(tiny_model), written(tmp_path / "q.jsonl", CLOZE), tmp_path / "store")
    long = [CLOZE[3] | {"cloze": "the " * 30 + "rome [MASK] in italy"}]
    made = attribute(str(bert[0]), written(tmp_path / "q.jsonl", long), tmp_path / "cut", steps=1)
    assert (made.prompts["n_cut"][0].as_py(), len(made.prompt_ids(0))) == (4, 32)
    assert made.prompt_ids(0)[made.prompt_position(0)] == 4
    early = [CLOZE[3] | {"cloze": "rome [MASK] in italy" + " the" * 40}]
    with pytest.raises(InvalidInputError, match="its mask would be cut off"):
        attribute(str(bert[0]), written(tmp_path / "q.jsonl", early), tmp_path / "store")
