"""Stored attributions against attribution called directly; interruption; what is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tiny_edits import make_editable
from transformers import AutoModelForCausalLM

from actstore.engine.attribution import block_filler
from actstore.engine.attribution.attribute import AttributeReport, AttributeSettings, attribute
from actstore.engine.attribution.integrated_gradients import PathSettings, integrated_gradients
from actstore.engine.capture.api import RunOptions, capture
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.models.load import load_model
from actstore.engine.verify.refill import refill_blocks
from actstore.store.capture.questions.attribution_kinds import GRADIENT, IG
from actstore.store.capture.questions.attributions import Attributions
from actstore.store.errors import CaptureError, InvalidInputError, NotFoundError
from actstore.store.reader import Store
from actstore.store.verify import verify_capture

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTS = Path(__file__).parents[3] / "demo" / "models" / "fact-llama"
N_QUERIES = 50


def questions(path: Path, n_queries: int = N_QUERIES, **changes: Any) -> Path:
    """Queries of three short prompts each, of different lengths, two to five options; labels in two columns."""
    rows = []
    for i in range(n_queries):
        letters = "ABCDE"[: 2 + i % 4]
        options = "".join(f"\n {letter}. {i + n}" for n, letter in enumerate(letters))
        prompts = [f"{'the fox ' * (i % 3)}{start}{options}\nsay:" for start in ("who?", "and who?", "le")]
        answers = [letters[i // 4 % len(letters)]] * 3
        row = {"id": f"q{i}", "prompts": prompts, "answers": answers, "language": ["en", "fr"][i % 2], "note": f"{i}"}
        rows.append(row | changes)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions(tmp_path_factory.mktemp("questions") / "questions.jsonl")


@pytest.fixture(scope="module")
def made(tiny_model: Path, path: Path, tmp_path_factory: pytest.TempPathFactory) -> Attributions:
    return attribute(str(tiny_model), path, tmp_path_factory.mktemp("attributed") / "store")


def whole(attributions: Attributions, kind: str) -> NDArray[np.float32]:
    """The scores of all prompts [prompt, neuron]."""
    parts = list(attributions.prompt_scores(kind))
    rows = np.concatenate([rows for rows, _ in parts])
    np.testing.assert_array_equal(rows, np.arange(attributions.prompts.num_rows))
    return np.concatenate([scores for _, scores in parts])


def test_what_is_stored_is_what_attribution_gives_bit_for_bit(made: Attributions, tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert made.prompts.num_rows == 3 * N_QUERIES
    assert len(made.capture.blocks) == 3
    ig, activation, gradient = (whole(made, kind) for kind in ("ig", "activation", "gradient"))
    for row in range(0, 3 * N_QUERIES, 7):
        ids, target = made.prompt_ids(row), made.prompts["target"][row].as_py()
        found = integrated_gradients(model, ids.tolist(), target, settings=PathSettings(steps=16))
        np.testing.assert_array_equal(ig[row], found.flat())
        np.testing.assert_array_equal(activation[row], np.concatenate(list(found.activations.values())))
        products = found.gradient_times_activation()
        np.testing.assert_array_equal(gradient[row], np.concatenate(list(products.values())))
        assert made.prompts["probability"][row].as_py() == pytest.approx(found.probability, rel=1e-5)


def test_a_model_without_write_scales_makes_no_window_for_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("asks for write scales")

    monkeypatch.setattr(block_filler, "read_scales", asked)
    made = attribute(str(tiny_model), questions(tmp_path / "questions.jsonl", 4), tmp_path / "store", steps=2)
    assert made.capture.record.write_scale == ()
    assert made.prompts.num_rows == 12


@pytest.mark.parametrize("kind", ["gated-tied", "plain-tied-biases", "plain-untied-biases", "normed"])
def test_contributions_are_terms_of_the_logit(kind: str, tmp_path: Path) -> None:
    """With embedding, attention and biases they add up to it, by plain hooks: under a norm after the feed-forward, too."""
    make_editable(kind, tmp_path)
    made = attribute(
        str(tmp_path / "model"), questions(tmp_path / "q.jsonl", 3, prompts=["who?\n A. 1\n B. 2\nsay:"], answers=["B"]),
        tmp_path / "attributed", steps=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").requires_grad_(False)
    base = model.get_submodule(model.base_model_prefix)
    blocks = next(getattr(base, name) for name in ("layers", "h") if hasattr(base, name))
    norm = next(getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name))
    written: list[Any] = []  # what each feed-forward adds to the stream at the last position
    for block in blocks:
        module = block.post_feedforward_layernorm if kind == "normed" else block.mlp
        module.register_forward_hook(lambda _m, _args, output: written.append(output[0, -1].double()))
    scores = whole(made, "contribution")
    for row in range(made.prompts.num_rows):
        written.clear()
        model(torch.from_numpy(made.prompt_ids(row).astype(np.int64))[None])
        towards = (norm.weight * model.get_output_embeddings().weight[made.prompts["target"][row].as_py()]).double()
        towards = towards if kind in ("gated-tied", "normed") else towards - towards.mean()
        for layer, added in enumerate(written):
            projection = blocks[layer].mlp
            bias = next(
                (b for n, b in projection.named_parameters() if n.endswith("bias") and b.shape == added.shape), None
            )
            rest = 0.0 if bias is None else float(bias.double() @ towards)
            own = float(scores[row, 24 * layer : 24 * layer + 24].astype(np.float64).sum())
            assert own == pytest.approx(float(added @ towards) - rest, rel=1e-4, abs=1e-5)
    (compared,) = refill_blocks(made.capture, 1)[0]
    assert compared["largest_difference"] < 1e-5
    assert (made.capture.record.write_scale == (0, 1)) == (kind == "normed")


def test_answers_are_those_of_the_model(made: Attributions, tiny_model: Path) -> None:
    model = load_model(tiny_model).model
    for row in made.prompts.slice(0, 12).to_pylist():
        ids = torch.from_numpy(made.prompt_ids(row["query"] * 3 + row["prompt"]).astype(np.int64))
        with torch.inference_mode():
            p = model(ids[None]).logits[0, -1].softmax(-1)[row["option_tokens"]]
        np.testing.assert_allclose(row["probabilities"], p.numpy(), rtol=1e-5)
        assert row["predicted"] == row["options"][int(p.argmax())]
        assert row["correct"] == (row["predicted"] == row["answer"])
        assert row["target"] == row["option_tokens"][row["options"].index(row["answer"])]
    flags = made.prompts["correct"].to_numpy(zero_copy_only=False).reshape(-1, 3).sum(axis=1)
    assert made.queries["n_correct"].to_pylist() == flags.tolist()
    assert made.queries["correct"].to_pylist() == (flags >= 2).tolist()
    assert 0 < sum(made.queries["correct"].to_pylist()) < N_QUERIES, "both kinds of queries are kept"


def test_the_demo_model_knows_the_answers_and_labels_are_kept(tmp_path: Path) -> None:
    found = attribute(str(FACTS), FACTS / "questions.json", tmp_path / "store", max_queries=3, layers=(1, 3), steps=2)
    assert found.queries["correct"].to_pylist() == [True] * 3
    assert found.queries["relation_name"].to_pylist() == ["biology"] * 3
    assert [found.store.token_text(t) for t in found.prompts["option_tokens"][0].as_py()] == [" A", " B", " C", " D"]
    assert found.neuron_names(np.array([0, 511, 512, 1023])) == ["L1.N0", "L1.N511", "L3.N0", "L3.N511"]
    assert found.capture.record.sites[IG] == {"1": 512, "3": 512}


def contents(store: Path) -> dict[str, Any]:
    """Every file's bytes; of records, what does not depend on the clock."""
    found: dict[str, Any] = {}
    for file in sorted(p for p in store.rglob("*") if p.is_file() and p.name != "writer.lock"):
        key = str(file.relative_to(store))
        if file.suffix == ".json" and ("blocks/" in key or file.name == "zarr.json"):
            text = json.dumps(_timeless(json.loads(file.read_text())), sort_keys=True)
            found[key] = text
        else:
            found[key] = file.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in {"created", "seconds", "checksum", "id", "root"}}
    return value


class Stop(CaptureProgress):
    """Presses Ctrl-C after a number of prompts."""

    def __init__(self, after: int) -> None:
        self.left = after

    def filled(self, n_tokens: int) -> None:
        self.left -= n_tokens
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_resumes_to_the_same_bytes(made: Attributions, tiny_model: Path, path: Path) -> None:
    store = path.parent / "interrupted"
    with pytest.raises(CaptureError, match=r"Interrupted: 1 of 3 blocks of capture 'questions' .*`resume=True`"):
        attribute(str(tiny_model), path, store, progress=Stop(100))
    half = Attributions(Store(store).capture("questions"))
    # 64 prompts are committed: of query 21, the first alone.
    assert half.queries.num_rows == 21
    assert half.prompts.num_rows == 63
    np.testing.assert_array_equal(whole(half, "ig"), whole(made, "ig")[:63])
    ((rows, scores),) = half.query_scores("ig")
    assert len(rows) == len(scores) == 21
    with pytest.raises(InvalidInputError, match="already has a capture 'questions'"):
        attribute(str(tiny_model), path, store)
    done = attribute(str(tiny_model), path, store, options=RunOptions(resume=True))
    assert verify_capture(done.capture) == []
    assert contents(store) == contents(Path(made.store.folder.location))


def test_a_run_resumes_only_as_it_was_begun(made: Attributions, tiny_model: Path, path: Path, tmp_path: Path) -> None:
    store, resume = made.store.folder.location, RunOptions(resume=True)
    assert attribute(str(tiny_model), path, store, options=resume, steps=16).queries.num_rows == N_QUERIES
    for changes, message in (
        ({"steps": 8}, "steps is 16 there and 8 now"),
        ({"gradients": False}, "gradients is True there and False now"),
        ({"max_queries": 3}, "max_queries is None there and 3 now"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            attribute(str(tiny_model), path, store, options=resume, **changes)
    other = questions(tmp_path / "other.jsonl", answers=["A", "B", "A"])
    with pytest.raises(InvalidInputError, match=r"the questions in .*other\.jsonl are not those planned"):
        attribute(str(tiny_model), other, store, options=resume)
    with pytest.raises(InvalidInputError, match=r"was begun by `actstore.attribute\(…\)`, not `actstore.capture\(…\)`"):
        capture(str(tiny_model), path, store, name="questions", options=resume)


def test_only_a_right_store_verifies_and_damage_to_answers_is_found(made: Attributions, tmp_path: Path) -> None:
    assert verify_capture(made.capture) == []
    rows, damage = refill_blocks(made.capture, 2)
    assert [row["largest_difference"] for row in rows] == [0.0, 0.0]
    assert damage == []
    copy = tmp_path / "copy"
    shutil.copytree(made.store.folder.location, copy)
    folder = copy / "captures" / "questions"
    table = folder / "queries.parquet"
    shutil.copy(folder / "prompts.parquet", table)
    answers = folder / "blocks" / "1.answers.parquet"
    answers.write_bytes(answers.read_bytes()[:-1])
    found = {damage.key: damage.block for damage in verify_capture(Store(copy).capture())}
    assert found["blocks/1.answers.parquet"] == 1
    answers.write_bytes((Path(made.store.folder.location) / answers.relative_to(copy)).read_bytes())
    assert [d.key for d in verify_capture(Store(copy).capture())] == ["queries.parquet"]


def test_without_gradients_there_are_activations_and_answers(
    made: Attributions, tiny_model: Path, path: Path, tmp_path: Path
) -> None:
    plain = attribute(str(tiny_model), path, tmp_path / "store", gradients=False, options=RunOptions(weights=False))
    assert plain.kinds == ("activation",)
    assert list(plain.capture.record.sites) == ["mlp.post"]
    np.testing.assert_allclose(whole(plain, "activation"), whole(made, "activation"), rtol=1e-4, atol=1e-6)
    assert plain.prompts["predicted"] == made.prompts["predicted"]
    with pytest.raises(InvalidInputError, match=r"no scores of kind 'ig': it has activation\. .*`gradients=True`"):
        next(plain.prompt_scores("ig"))


def test_half_precision_is_kept_in_float32(tiny_model: Path, path: Path, tmp_path: Path) -> None:
    options = RunOptions(dtype="bfloat16")
    found = attribute(str(tiny_model), path, tmp_path / "store", options=options, max_queries=2, steps=4)
    assert (found.capture.record.dtype, found.capture.record.value_dtype) == ("bfloat16", "float32")
    model = load_model(tiny_model, dtype="bfloat16")
    direct = integrated_gradients(
        model, found.prompt_ids(4).tolist(), found.prompts["target"][4].as_py(), settings=PathSettings(steps=4)
    )
    np.testing.assert_array_equal(whole(found, "ig")[4], direct.flat())
    again = attribute(str(tiny_model), path, tmp_path / "store", options=RunOptions(resume=True))
    assert again.queries.num_rows == 2
    assert refill_blocks(again.capture, 1)[1] == []


def test_labels_are_named_or_recur(made: Attributions, tiny_model: Path, path: Path, tmp_path: Path) -> None:
    assert made.capture.record.plan.label_columns == ("language",), "every query has a note of its own"
    run = {"max_queries": 4, "gradients": False}
    named = attribute(str(tiny_model), path, tmp_path / "store", label_columns=("note", "language"), **run)
    assert named.queries["note"].to_pylist() == ["0", "1", "2", "3"]
    for columns, message in (
        (("colour",), r"No query of .* has a column 'colour'\. The columns are: language, note"),
        (("note", "note"), "'note' is named twice"),
        (("correct",), "cannot be called 'correct'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            attribute(str(tiny_model), path, tmp_path / "other", label_columns=columns, **run)
    assert not (tmp_path / "other").exists()


def test_long_prompts_are_cut_or_their_queries_left_out(tiny_model: Path, tmp_path: Path) -> None:
    path = questions(tmp_path / "questions.jsonl", 4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["prompts"][2] = "the lazy dog " * 40 + rows[1]["prompts"][2]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = AttributeReport()
    cut = attribute(str(tiny_model), path, tmp_path / "cut", gradients=False, report=report)
    assert (report.n_cut, report.n_skipped) == (1, 0)
    assert [n > 0 for n in cut.prompts["n_cut"].to_pylist()] == [i == 5 for i in range(12)]
    assert len(cut.prompt_ids(5)) == 64
    report = AttributeReport()
    skip = attribute(str(tiny_model), path, tmp_path / "skip", gradients=False, too_long="skip", report=report)
    assert (report.n_skipped, skip.queries["query"].to_pylist()) == (1, ["q0", "q2", "q3"])
    with pytest.raises(InvalidInputError, match=r"Query 'q1', prompt 3, has \d+ tokens"):
        attribute(str(tiny_model), path, tmp_path / "refuse", gradients=False, too_long="refuse")
    assert not (tmp_path / "refuse").exists()


def test_mistakes_are_found_before_anything_is_written(tiny_model: Path, path: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    store = tmp_path / "store"
    bad = tmp_path / "bad.jsonl"
    bad.write_text(path.read_text() + '{"question": "?", "options": ["x"], "answer": "A"}\n')
    with pytest.raises(InvalidInputError, match=r"bad\.jsonl:51"):
        attribute(str(tiny_model), bad, store)
    with pytest.raises(NotFoundError, match="no questions file"):
        attribute(str(tiny_model), tmp_path / "none.json", store)
    with pytest.raises(InvalidInputError, match="has layers 0 to 1, found layer 2"):
        attribute(str(tiny_model), path, store, layers=(0, 2))
    with pytest.raises(InvalidInputError, match="`steps` must be at least 1, found 0"):
        attribute(str(tiny_model), path, store, steps=0)
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 8, "d_kv": 8, "vocab_size": 99}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    with pytest.raises(InvalidInputError, match=r"nor predicts what is masked in one \(encoder-decoder\)"):
        attribute(str(tmp_path / "t5"), path, store)
    assert not store.exists()


def test_a_store_of_a_corpus_takes_questions_too(tiny_model: Path, corpus: Path, path: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    capture(str(tiny_model), corpus, store, max_documents=5)
    found = attribute(str(tiny_model), path, store, max_queries=3, layers=(1,))
    assert found.store.captures == ("corpus", "questions")
    assert found.capture.record.sites[GRADIENT] == {"1": 24}
    assert found.store.capture().record.name == "corpus"


def test_every_setting_is_a_typed_parameter() -> None:
    parameters = signature(attribute).parameters
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for field in fields(AttributeSettings):
        assert parameters[field.name].default is None
        assert f"- `{field.name}`: " in (attribute.__doc__ or "")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": "16"}, "steps is an integer"),
        ({"steps": True}, "steps is an integer"),
        ({"layers": "0"}, "layers is a sequence of integers"),
        ({"gradients": 1}, "gradients is True or False"),
        ({"label_columns": "topic"}, r"label_columns is a sequence of texts such as \('topic',\)"),
        ({"too_long": 3}, "too_long is one of 'cut', 'skip', 'refuse'"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(
    tiny_model: Path, path: Path, tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        attribute(str(tiny_model), path, tmp_path / "store", **setting)
    assert not (tmp_path / "store").exists()
