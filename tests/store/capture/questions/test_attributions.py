"""Attributions read back: scores against plain arithmetic, half-written captures, and without the engine's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actstore.engine.attribution.attribute import attribute
from actstore.engine.capture.api import RunOptions, capture
from actstore.store.capture.questions.attribution_kinds import GRADIENT, IG
from actstore.store.capture.questions.attributions import Attributions, open_attributions
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

N_PROMPTS = (3, 2, 5, 2) * 12
"""Prompts of each query: 144 in all, so that queries lie across the borders of blocks of 64."""
WIDTHS = (24, 24)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = []
    for i, n_prompts in enumerate(N_PROMPTS):
        prompts = [f"{'the ' * n}fox\n A. {i}\n B. {n}\nsay:" for n in range(n_prompts)]
        rows.append({"prompts": prompts, "answers": ["AB"[(i + n) % 2] for n in range(n_prompts)], "of": "xyz"[i % 3]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def store(tiny_model: Path, questions: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attributed") / "store"
    capture(str(tiny_model), corpus, path, max_documents=3)
    attribute(str(tiny_model), questions, path, steps=2)
    return path


@pytest.fixture
def made(store: Path) -> Attributions:
    return Attributions(Store(store).capture("questions"))


def values(made: Attributions, site: str) -> NDArray[np.float32]:
    """A site's values [prompt, neuron], neuron by neuron."""
    rows = [made.capture.activations(layer, n, site) for layer, width in enumerate(WIDTHS) for n in range(width)]
    return np.stack(rows, axis=1)


def scores(made: Attributions, kind: str) -> NDArray[np.float32]:
    return np.concatenate([part for _, part in made.prompt_scores(kind)])


def test_scores_are_the_sites_in_the_order_of_prompts(made: Attributions) -> None:
    assert made.kinds == ("ig", "gradient", "activation", "contribution")
    assert made.n_neurons == sum(WIDTHS)
    np.testing.assert_array_equal(scores(made, "ig"), values(made, IG))
    np.testing.assert_array_equal(scores(made, "activation"), values(made, "mlp.post"))
    np.testing.assert_array_equal(scores(made, "gradient"), values(made, "mlp.post") * values(made, GRADIENT))
    assert made.neuron_names(np.array([47, 0, 24, 23])) == ["L1.N23", "L0.N0", "L1.N0", "L0.N23"]


def test_contributions_are_what_neurons_add_to_the_letters_logit_before_the_norm_divides(
    made: Attributions, tiny_model: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    gain, unembedding = model.model.norm.weight.detach(), model.lm_head.weight.detach()
    found = scores(made, "contribution")
    for row in range(0, len(found), 11):
        direction = gain * unembedding[made.prompts["target"][row].as_py()]
        seen: list[torch.Tensor] = []
        hooks = [
            block.mlp.down_proj.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0][0, -1]))
            for block in model.model.layers
        ]
        with torch.no_grad():
            model(torch.from_numpy(made.prompt_ids(row).astype(np.int64))[None])
        for hook in hooks:
            hook.remove()
        written = [a * (b.mlp.down_proj.weight.T @ direction) for a, b in zip(seen, model.model.layers, strict=True)]
        np.testing.assert_allclose(found[row], torch.cat(written).detach().numpy(), rtol=1e-4, atol=1e-7)


def test_a_querys_scores_are_the_sum_over_its_prompts_whatever_blocks_they_lie_in(made: Attributions) -> None:
    ends = np.cumsum(N_PROMPTS)
    assert any(start < 64 < end for start, end in zip(ends - N_PROMPTS, ends, strict=True)), "one lies across a border"
    for kind in made.kinds:
        found = list(made.query_scores(kind))
        rows = np.concatenate([rows for rows, _ in found])
        np.testing.assert_array_equal(rows, np.arange(len(N_PROMPTS)))
        summed = np.add.reduceat(scores(made, kind).astype(np.float64), ends - N_PROMPTS).astype(np.float32)
        np.testing.assert_array_equal(np.concatenate([part for _, part in found]), summed)
        for query in (0, 20, len(N_PROMPTS) - 1):
            own = slice(ends[query] - N_PROMPTS[query], ends[query])
            np.testing.assert_array_equal(made.scores_of(query, kind), scores(made, kind)[own])


def test_the_tables_have_a_row_a_query_and_a_row_a_prompt(made: Attributions) -> None:
    assert made.queries["query"].to_pylist() == [str(i + 1) for i in range(len(N_PROMPTS))]
    assert made.queries["of"].to_pylist() == list("xyz") * (len(N_PROMPTS) // 3)
    assert made.queries["n_prompts"].to_pylist() == list(N_PROMPTS)
    assert made.queries["first_prompt"].to_pylist() == (np.cumsum(N_PROMPTS) - N_PROMPTS).tolist()
    prompts = made.prompts
    assert prompts["query"].to_pylist() == np.repeat(np.arange(len(N_PROMPTS)), N_PROMPTS).tolist()
    assert prompts["prompt"].to_pylist() == [n for count in N_PROMPTS for n in range(count)]
    assert prompts["answer"].to_pylist() == [
        "AB"[(i + n) % 2] for i, count in enumerate(N_PROMPTS) for n in range(count)
    ]
    best = np.argmax(np.array(prompts["probabilities"].to_pylist()), axis=1)
    assert prompts["predicted"].to_pylist() == ["AB"[i] for i in best]
    assert 0 < sum(prompts["correct"].to_pylist()) < prompts.num_rows
    text = made.store.text(made.prompt_ids(64))
    # This vocabulary has no " A": the blank is a token of its own, and is read before the letter.
    assert text == f"<s>{prompts['text'][64].as_py()} "


def test_sql_flags_the_queries_that_the_model_answers_wrongly(store: Path, made: Attributions) -> None:
    sql = "select query, correct from questions.queries where not correct order by all"
    found = Store(store).sql(sql).to_pylist()
    wrong = [row["query"] for row in made.queries.to_pylist() if not row["correct"]]
    assert sorted(row["query"] for row in found) == sorted(wrong)
    assert wrong
    counted = "select count(*) n, sum(correct::int) right_ones from prompts join queries using (query)"
    (row,) = Store(store).sql(counted.replace("correct", "prompts.correct"), "questions").to_pylist()
    assert row == {"n": sum(N_PROMPTS), "right_ones": sum(made.prompts["correct"].to_pylist())}


def test_of_a_half_written_capture_only_whole_queries_are_read(store: Path, made: Attributions, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    (copy / "captures" / "questions" / "blocks" / "1.json").unlink()
    half = Attributions(Store(copy).capture("questions"))
    assert half.capture.blocks == (0, 2)
    block = np.arange(sum(N_PROMPTS)) // 64
    ends = np.cumsum(N_PROMPTS)
    kept = [q for q, end in enumerate(ends) if not (block[end - N_PROMPTS[q] : end] == 1).any()]
    assert half.queries["query"].to_pylist() == [str(q + 1) for q in kept]
    rows = np.concatenate([np.arange(ends[q] - N_PROMPTS[q], ends[q]) for q in kept])
    np.testing.assert_array_equal(scores(half, "ig"), scores(made, "ig")[rows])
    whole = np.concatenate([part for _, part in made.query_scores("ig")])
    np.testing.assert_array_equal(np.concatenate([part for _, part in half.query_scores("ig")]), whole[kept])
    found = Store(copy).sql("select query from queries", "questions")["query"].to_pylist()
    assert found == half.queries["query"].to_pylist(), "tables that were written for the whole are not believed"


def test_what_is_not_there_is_said(store: Path, made: Attributions) -> None:
    opened = Store(store)
    with pytest.raises(
        InvalidInputError, match=r"'corpus' .* has no attributions\. Make them with `actstore\.attribute"
    ):
        Attributions(opened.capture("corpus"))
    with pytest.raises(InvalidInputError, match="Scores are one of ig, gradient, activation, contribution: found 'x'"):
        next(made.prompt_scores("x"))
    with pytest.raises(NotFoundError, match="queries 0 to 47, found 48"):
        made.scores_of(48, "ig")
    with pytest.raises(NotFoundError, match="prompts 0 to 143, found 144"):
        made.prompt_ids(144)


def test_attributions_are_found_where_one_capture_has_some(
    store: Path, tiny_model: Path, questions: Path, corpus: Path, tmp_path: Path
) -> None:
    assert open_attributions(Store(store)).capture.record.name == "questions"
    assert open_attributions(Store(store), "questions").n_neurons == 48
    other = tmp_path / "other"
    capture(str(tiny_model), corpus, other, max_documents=3, options=RunOptions(weights=False))
    with pytest.raises(InvalidInputError, match=r"holds no attributions\. Make them with `actstore\.attribute"):
        open_attributions(Store(other))
    for name in ("one", "two"):
        attribute(str(tiny_model), questions, other, name=name, max_queries=2, gradients=False)
    assert open_attributions(Store(other), "two").kinds == ("activation",)
    with pytest.raises(InvalidInputError, match="captures of questions one, two: choose one with `capture`"):
        open_attributions(Store(other))


def test_reading_needs_neither_transformers_nor_the_model(store: Path) -> None:
    script = (
        "import sys; sys.modules.update(transformers=None, tokenizers=None)\n"
        "from actstore.store.reader import Store\n"
        "from actstore.store.capture.questions.attributions import open_attributions\n"
        "a = open_attributions(Store(sys.argv[1]))\n"
        "a.queries, a.prompts, a.prompt_ids(3)\n"
        "assert 'torch' not in sys.modules\n"
        "print(*(round(sum(float(s.sum()) for _, s in a.query_scores(kind)), 6) for kind in a.kinds))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(store)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = open_attributions(Store(store))
    expected = [sum(float(s.sum()) for _, s in made.query_scores(kind)) for kind in made.kinds]
    np.testing.assert_allclose(list(map(float, done.stdout.split())), expected, rtol=1e-4, atol=2e-6)
