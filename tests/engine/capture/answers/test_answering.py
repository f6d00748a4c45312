"""Captures of prompts that the model answers: what is stored of prompt and answer, interrupted and resumed, in two models."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_masked import save_bert
from transformers import AutoModelForCausalLM

import actstore
from actstore.engine.capture.answers import answering
from actstore.engine.capture.run import RunOptions
from actstore.engine.change.change import change_scores
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.capture.positions import slots_of
from actstore.store.errors import CaptureError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture

PROMPTS = ["the quick brown", "def add(a, b", "je suis ici", "one two three four"]
TEMPLATE = (
    "{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)


def prompt_file(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "kind": str(i % 2)}) + "\n" for i, text in enumerate(PROMPTS)))
    return path


@pytest.fixture(scope="module")
def answered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """Greedy answers of six tokens."""
    folder = tmp_path_factory.mktemp("answered")
    return actstore.capture(
        str(tiny_model), prompt_file(folder), folder / "store", generate=True, max_new_tokens=6, label_columns=("kind",)
    )


def windows(capture: Capture) -> list[tuple[list[int], int]]:
    """Ids of each document, and where its answer begins, by number."""
    ids, rows = capture.plan.array("inputs/ids"), capture.windows()
    starts = dict(zip(rows["document"].to_pylist(), rows["input_start"].to_pylist(), strict=True))
    return [
        (ids[starts[row["document"]] :][: row["n_tokens"]].tolist(), row["n_prompt"])
        for row in capture.documents().to_pylist()
    ]


def test_the_answers_are_those_of_the_library_and_their_positions_are_marked(
    answered: Capture, tiny_model: Path
) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), TextTokenizer.load(str(tiny_model))
    for prompt, (ids, n_prompt) in zip(PROMPTS, windows(answered), strict=True):
        expected = [*tokenizer.prefix, *tokenizer.encode([prompt])[0].tolist()]
        assert ids[:n_prompt] == expected
        given = torch.tensor([expected])
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=6, do_sample=False)
        assert ids == out[0].tolist()
    rows = answered.documents().to_pylist()
    assert [(row["prompt"], row["generated"], row["answer_number"]) for row in rows] == [(p, True, 0) for p in PROMPTS]
    assert [row["answer"] for row in rows] == [tokenizer.decode(ids[n:]).strip() for ids, n in windows(answered)]
    tokens = answered.tokens().to_pylist()
    special = tokenizer.special_ids
    of_document = answered.windows()["document"].to_pylist()
    found = windows(answered)
    for row in tokens:
        n_prompt = found[of_document[row["window"]]][1]
        kind = "special" if row["id"] in special else "generated" if row["position"] >= n_prompt else "text"
        assert row["modality"] == kind


def predicting(capture: Capture) -> dict[int, list[int]]:
    """Document → the positions that predict a generated token, as the sets of positions have them."""
    found: dict[int, list[int]] = {}
    for block in capture.blocks:
        plan = capture.block_plan(block)
        for slot in slots_of(plan, "predicting").tolist():
            document = int(plan.windows["document"][plan.window_of_slot()[slot]])
            found.setdefault(document, []).append(int(plan.position[slot]))
    return found


@pytest.mark.parametrize("positions", ["all", "generated", "0,generated"])
def test_what_predicts_the_answer_is_there_whichever_positions_are_stored(
    answered: Capture, tiny_model: Path, tmp_path: Path, positions: str
) -> None:
    capture = actstore.capture(
        str(tiny_model), prompt_file(tmp_path), tmp_path / "store", generate=True, max_new_tokens=6, positions=positions
    )
    assert windows(capture) == windows(answered)
    special = TextTokenizer.load(str(tiny_model)).special_ids
    for document, (ids, n_prompt) in enumerate(windows(capture)):
        expected = [p for p in range(n_prompt - 1, len(ids) - 1) if ids[p + 1] not in special]
        assert predicting(capture)[document] == expected


def test_an_interrupted_run_goes_on_where_it_stopped(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"generate": True, "max_new_tokens": 5, "answers": 2, "temperature": 1.0, "seed": 7}
    prompts = prompt_file(tmp_path)
    whole = actstore.capture(str(tiny_model), prompts, tmp_path / "whole", **settings)
    assert len({tuple(ids) for ids, _ in windows(whole)}) == 8
    monkeypatch.setattr(answering, "GROUP_ANSWERS", 2)
    generated: list[int] = []
    real = answering.continue_texts

    def stopping(model: Any, prompts: Any, *more: Any, **options: Any) -> Any:
        if len(generated) == 3:
            raise KeyboardInterrupt
        generated.append(len(prompts))
        return real(model, prompts, *more, **options)

    monkeypatch.setattr(answering, "continue_texts", stopping)
    with pytest.raises(CaptureError, match="answered so far is kept"):
        actstore.capture(str(tiny_model), prompts, tmp_path / "store", **settings)
    generated.clear()
    resumed = actstore.capture(
        str(tiny_model), prompts, tmp_path / "store", options=RunOptions(resume=True), **settings
    )
    assert generated == [2], "three of four groups were kept"
    assert windows(resumed) == windows(whole)
    np.testing.assert_array_equal(resumed.block_values(1, 0), whole.block_values(1, 0))
    again = actstore.capture(str(tiny_model), prompts, tmp_path / "store", options=RunOptions(resume=True))
    assert again.record.plan.fingerprint == whole.record.plan.fingerprint
    with pytest.raises(InvalidInputError, match="seed is 7 there and 8 now"):
        actstore.capture(str(tiny_model), prompts, tmp_path / "store", options=RunOptions(resume=True), seed=8)


def test_samples_do_not_depend_on_the_batch(tiny_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"generate": True, "max_new_tokens": 5, "answers": 3, "top_p": 0.9}
    found = [
        windows(
            actstore.capture(str(tiny_model), prompt_file(tmp_path), tmp_path / f"store{n}", batch_tokens=n, **settings)
        )
        for n in (1, 4096)
    ]
    assert found[0] == found[1]


def test_prompts_go_through_the_chat_template_where_there_is_one(tiny_model: Path, tmp_path: Path) -> None:
    chatty = shutil.copytree(tiny_model, tmp_path / "chatty")
    config = json.loads((chatty / "tokenizer_config.json").read_text())
    (chatty / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    tokenizer = TextTokenizer.load(str(chatty))
    prompts = prompt_file(tmp_path)
    settings: dict[str, Any] = {"generate": True, "max_new_tokens": 2, "max_documents": 1}
    rendered = actstore.capture(str(chatty), prompts, tmp_path / "chat", **settings)
    plain = actstore.capture(str(chatty), prompts, tmp_path / "plain", chat=False, **settings)
    (ids, n_prompt), (bare, n_bare) = windows(rendered)[0], windows(plain)[0]
    assert ids[:n_prompt] == tokenizer.encode([f"User: {PROMPTS[0]}\nAnswer:"])[0].tolist()
    assert bare[:n_bare] == [*tokenizer.prefix, *tokenizer.encode([PROMPTS[0]])[0].tolist()]
    with pytest.raises(InvalidInputError, match="has no chat template with its tokenizer"):
        actstore.capture(str(tiny_model), prompts, tmp_path / "none", chat=True, **settings)


def test_the_change_score_over_answers_is_that_of_the_paper(
    answered: Capture, tiny_model: Path, tmp_path: Path
) -> None:
    """S(n) = sqrt(mean over the positions that predict M1's own greedy answer of (a_n(M1) - a_n(M2))^2)."""
    tuned = shutil.copytree(tiny_model, tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 0.05 * torch.randn(
        weights["model.layers.0.mlp.up_proj.weight"].shape, generator=torch.Generator().manual_seed(0)
    )
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    other = actstore.capture(str(tuned), answered.folder.location, tmp_path / "store", label_columns=("kind",))
    assert windows(other) == windows(answered)
    found = change_scores(answered, other, positions="predicting")

    totals: dict[int, Any] = {}
    n = 0
    special = TextTokenizer.load(str(tiny_model)).special_ids
    for ids, n_prompt in windows(answered):
        positions = [p for p in range(n_prompt - 1, len(ids) - 1) if ids[p + 1] not in special]
        n += len(positions)
        seen: list[dict[int, torch.Tensor]] = []
        for folder in (tiny_model, tuned):
            model = AutoModelForCausalLM.from_pretrained(folder)
            values: dict[int, torch.Tensor] = {}
            for layer, block in enumerate(model.model.layers):
                block.mlp.down_proj.register_forward_pre_hook(
                    lambda _, args, layer=layer, values=values: values.__setitem__(layer, args[0][0])
                )
            with torch.inference_mode():
                model(torch.tensor([ids]))
            seen.append(values)
        for layer in seen[0]:
            difference = (seen[0][layer] - seen[1][layer])[positions].double()
            totals[layer] = totals.get(layer, 0) + (difference**2).sum(0)
    assert found.n_positions == n
    for layer, total in totals.items():
        np.testing.assert_allclose(found.scores[found.layer == layer], (total / n).sqrt().numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answers": 2}, "greedy answers to one prompt would be the same"),
        ({"answers": 0}, "`answers` lies between 1 and"),
        ({"stop": ("",)}, "at least one character"),
        ({"overlap": 2}, "Leave `overlap` out"),
        ({"context": 4}, "leaves no room for an answer in a window of 4"),
        ({"generate": False, "stop": ("x",)}, "`stop` is of generated answers"),
        ({"generate": False, "positions": "generated"}, "Is `generate=True` missing"),
        ({"label_columns": ("prompt",)}, "label"),
    ],
)
def test_what_cannot_be_answered_leaves_nothing(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        actstore.capture(str(tiny_model), prompt_file(tmp_path), tmp_path / "store", **{"generate": True} | settings)
    assert not (tmp_path / "store").exists()


def test_a_store_without_answers_is_no_corpus_and_answers_are_not_answered_again(
    answered: Capture, tiny_model: Path, tmp_path: Path
) -> None:
    store = actstore.capture(str(tiny_model), prompt_file(tmp_path), tmp_path / "plain").folder.location
    with pytest.raises(InvalidInputError, match="has no prompts of text with answers"):
        actstore.capture(str(tiny_model), store, tmp_path / "store")
    with pytest.raises(InvalidInputError, match="has an answer already"):
        actstore.capture(str(tiny_model), answered.folder.location, tmp_path / "store", generate=True)
    named = actstore.capture(
        str(tiny_model), f"{answered.folder.location}/captures/{answered.record.name}", tmp_path / "store"
    )
    assert windows(named) == windows(answered)


def test_models_that_do_not_continue_texts_are_refused_and_so_is_a_dry_run(tiny_model: Path, tmp_path: Path) -> None:
    prompts = prompt_file(tmp_path)
    with pytest.raises(InvalidInputError, match=r"\(bert\) does not continue a text: it is of kind 'encoder'"):
        actstore.capture(str(save_bert(tmp_path / "bert")), prompts, tmp_path / "store", generate=True)
    with pytest.raises(InvalidInputError, match="shows only when they are generated"):
        actstore.estimate(str(tiny_model), prompts, tmp_path / "store", generate=True)
    assert not (tmp_path / "store").exists()


def test_a_stop_text_ends_answers_and_a_model_in_memory_answers_as_well(
    answered: Capture, tiny_model: Path, tmp_path: Path
) -> None:
    tokenizer = TextTokenizer.load(str(tiny_model))
    (ids, n_prompt), *_ = windows(answered)
    stop = tokenizer.decode(ids[n_prompt + 1 : n_prompt + 2])
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    texts = [{"text": text} for text in PROMPTS]
    stopped = actstore.capture(model, texts, tmp_path / "store", generate=True, max_new_tokens=6, stop=(stop,))
    found, n = windows(stopped)[0]
    assert n == n_prompt
    assert stop in tokenizer.decode(found[n:])
    assert all(stop not in tokenizer.decode(found[n:end]) for end in range(n + 1, len(found)))


def test_the_command_line_answers_and_names_its_options(cli: Any, tiny_model: Path, tmp_path: Path) -> None:
    prompts = prompt_file(tmp_path)
    asked = ("capture", tiny_model, prompts, tmp_path / "store", "--generate", "--max-new-tokens", 4, "--quiet")
    done = cli(*asked, "--answers", 2, "--temperature", 0.7, "--stop", "qq", "--no-chat", "--json")
    assert done.status == 0, done.err
    rows = actstore.open(tmp_path / "store").capture().documents().to_pylist()
    assert [row["answer_number"] for row in rows] == [0, 1] * 4
    refused = cli("capture", tiny_model, prompts, tmp_path / "other", "--generate", "--answers", 2, "--quiet")
    assert refused.status == 2
    assert "Sample them, with --temperature or --top-p" in refused.err


def test_a_prompt_that_is_too_long_is_refused_before_any_is_answered(tiny_model: Path, tmp_path: Path) -> None:
    texts = [*PROMPTS, "the quick brown fox " * 30]
    with pytest.raises(InvalidInputError, match=r"<list>:4 is a prompt of .* leaves no room"):
        actstore.capture(str(tiny_model), texts, tmp_path / "store", generate=True)
    assert not (tmp_path / "store").exists()


def test_answers_that_end_with_the_window_are_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 4 answers end where the window of 12 tokens does"):
        actstore.capture(str(tiny_model), prompt_file(tmp_path), tmp_path / "store", generate=True, context=12)
