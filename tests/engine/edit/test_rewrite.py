"""Rewrites on a trained model: what the store predicts is what a pass shows, and every form does what it says."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from actstore.engine.edit.cases import tasks_of_capture, tasks_of_cases
from actstore.engine.edit.evaluate import EvaluationOptions, compare_predicted, evaluate_edit
from actstore.engine.edit.forms.fine import learn, locate
from actstore.engine.edit.forms.knowledge import updated_rows
from actstore.engine.edit.forms.least_norm import closed_form, least_norm
from actstore.engine.edit.forms.least_norm_problem import Problem
from actstore.engine.edit.forms.stream import Stream
from actstore.engine.edit.readings import CaptureReader
from actstore.engine.edit.requests.files import read_cases
from actstore.engine.edit.rewrite import rewrite
from actstore.engine.edit.scores import score, snapshots, summarise
from actstore.engine.edit.settings import FineSettings, LeastNormSettings, RewriteSettings
from actstore.engine.edit.weights import edited
from actstore.engine.edit.words import find_replacement, starts_of
from actstore.engine.models.fingerprint import fingerprint_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.engine.edit.readings import Reader
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture

OLD, NEW = " Germany", " Turkey"


def judge(reader: Reader, capture: Capture, edit: Edit) -> dict[str, Any]:
    replacement = find_replacement(capture, OLD, NEW)
    tasks = list(tasks_of_capture(CaptureReader(reader, capture), replacement, None))
    before = snapshots(reader, tasks)
    with edited(reader.model, edit):
        after = snapshots(reader, tasks)
    return summarise(score(*entry) for entry in zip(tasks, before, after, strict=True))


def test_the_store_knows_what_the_model_predicts(fact_capture: Capture, fact_reader: Reader) -> None:
    replacement = find_replacement(fact_capture, OLD, NEW)
    (block,) = Stream(fact_capture).predictions(replacement.new[0])
    source = CaptureReader(fact_reader, fact_capture)
    windows = list(source.windows())
    logits = fact_reader.logits(
        [source.reading(d, ids) for _, d, ids, _ in windows], [captured.astype(np.int64) for *_, captured in windows]
    )
    plan = fact_capture.block_plan(block.block)
    window = np.repeat(plan.windows["window"], plan.windows["n_slots"])[block.slots]
    for number, (index, *_) in enumerate(windows):
        in_window = window == index
        position = plan.position[block.slots[in_window]]
        row = logits[number][np.searchsorted(windows[number][3], position)]
        assert block.top[in_window].tolist() == row.argmax(1).tolist()
        gap = (row.max(1).values - row[:, replacement.new[0]]).numpy()
        np.testing.assert_allclose(block.gap[in_window], gap, rtol=1e-4, atol=1e-4)


def test_a_single_position_without_controls_is_the_closed_form(fact_capture: Capture) -> None:
    replacement = find_replacement(fact_capture, OLD, NEW)
    settings = LeastNormSettings(control=0.0, ridge=0.0, rounds=3, margin=1.5)
    problem = Problem(fact_capture, replacement.old[0], replacement.new[0], settings)
    (block,) = problem.blocks
    index = int(np.flatnonzero(problem.targets(block))[0])
    cut = {
        f.name: getattr(block, f.name)[index : index + 1]
        for f in dataclasses.fields(block)
        if f.name != "block"
    }  # fmt: skip
    problem.blocks = [dataclasses.replace(block, **cut)]
    problem.n_targets, problem.n_controls = 1, 0
    neurons = {3: [1, 5, 8], 4: [2, 300]}
    coefficients = problem.fit(neurons)
    v = problem.stream.direction(replacement.old[0], replacement.new[0])
    values = [fact_capture.block_values(n, 0)[indices, block.slots[index]] for n, indices in neurons.items()]
    activations = torch.from_numpy(np.concatenate(values)).double()
    expected = closed_form(activations, v, float(block.inverse_rms[index]), float(block.gap[index]), 1.5)
    torch.testing.assert_close(torch.from_numpy(coefficients)[:, None] * v, expected, rtol=1e-6, atol=1e-9)
    growth = activations @ (expected @ v) * block.inverse_rms[index]
    assert float(growth) == pytest.approx(block.gap[index] + 1.5, rel=1e-6)


def test_least_norm_moves_the_word_and_little_else_as_predicted(fact_capture: Capture, fact_reader: Reader) -> None:
    fingerprint = fingerprint_of(fact_reader.model)
    edit = least_norm(fact_capture, OLD, NEW, "x", LeastNormSettings(k=40, layers=(4,)))
    predicted = edit.record.predicted
    summary = judge(fact_reader, fact_capture, edit)
    assert summary["reliability"] == pytest.approx(predicted["won"], abs=0.05)
    assert summary["reliability"] >= 0.95
    assert summary["locality"] >= 0.98
    compared = compare_predicted(fact_reader, fact_capture.store, edit)
    assert compared["before_error"] < 1e-3
    assert compared["targets"]["correlation"] > 0.99
    assert compared["targets"]["measured"] == pytest.approx(compared["targets"]["predicted"], rel=0.1)
    assert abs(compared["controls"]["measured"]) < 0.2 * compared["targets"]["measured"]
    assert fingerprint_of(fact_reader.model) == fingerprint
    assert {rows.layer for rows in edit.record.rows} == {4}
    assert edit.record.n_neurons == 40


def test_what_is_not_controlled_is_changed_more(fact_capture: Capture, fact_reader: Reader) -> None:
    free, controlled = (
        least_norm(fact_capture, OLD, NEW, "x", LeastNormSettings(k=40, layers=(4,), control=c, rounds=0))
        for c in (0.0, 3.0)
    )
    changes = [
        compare_predicted(fact_reader, fact_capture.store, edit)["controls"]["measured"] for edit in (free, controlled)
    ]
    assert abs(changes[1]) < abs(changes[0])


def test_neurons_are_chosen_in_the_last_layers_first_and_given_ones_are_taken(fact_capture: Capture) -> None:
    automatic = least_norm(fact_capture, OLD, NEW, "x")
    assert min(rows.layer for rows in automatic.record.rows) == 4
    given = least_norm(fact_capture, OLD, NEW, "x", LeastNormSettings(neurons=((4, 7), (2, 9), (2, 1))))
    assert given.record.neuron_names() == ["L2.N1", "L2.N9", "L4.N7"]
    for layer, pair in given.rows.items():
        change = (pair.after - pair.before).double()
        v = Stream(fact_capture).direction(given.record.settings["from_token"], given.record.settings["to_token"])
        if not given.record.settings["rivals"]:
            torch.testing.assert_close(
                change @ v / v.norm(), change.norm(dim=1) * torch.sign(change @ v), rtol=1e-3, atol=1e-5
            )
        assert layer in (2, 4)


def test_fine_learns_its_examples_and_leaves_the_last_layers_alone(fact_capture: Capture, fact_reader: Reader) -> None:
    fine = FineSettings(rate=2e-2, steps=30)
    fingerprint = fingerprint_of(fact_reader.model)
    edit = rewrite(fact_capture, "x", RewriteSettings(OLD, NEW, "fine", fine=fine, examples=4), fact_reader)
    assert fingerprint_of(fact_reader.model) == fingerprint
    assert all(rows.layer < 2 for rows in edit.record.rows)
    assert edit.record.settings["probability"] > 0.9
    assert edit.record.settings["steps_taken"] < 30
    assert "warning" not in edit.record.settings
    assert len(edit.record.settings["documents"]) <= 4
    assert judge(fact_reader, fact_capture, edit)["reliability"] >= 0.9
    plain = rewrite(fact_capture, "x", RewriteSettings(OLD, NEW, "fine-tune", fine=fine, examples=4), fact_reader)
    assert plain.record.neuron_names() == edit.record.neuron_names()
    assert not torch.equal(plain.rows[edit.record.rows[0].layer].after, edit.rows[edit.record.rows[0].layer].after)


def test_fine_says_where_its_target_was_not_reached(fact_capture: Capture, fact_reader: Reader) -> None:
    settings = RewriteSettings(OLD, NEW, "fine", fine=FineSettings(rate=1e-6, steps=2), examples=2)
    recorded = rewrite(fact_capture, "x", settings, fact_reader).record.settings
    assert recorded["steps_taken"] == 2
    assert recorded["probability"] < 0.9
    assert re.match(
        rf"The target was not reached: after 2 steps, a token of {NEW!r} still has a probability of "
        rf"{recorded['probability']:.3g} in one of the examples, where 0\.9 was asked for\. Raise `steps` or `rate`",
        recorded["warning"],
    )


def test_fine_edits_a_target_of_several_tokens_jointly(fact_capture: Capture, fact_reader: Reader) -> None:
    replacement = find_replacement(fact_capture, OLD, " Cairos")
    assert len(replacement.new) > 1
    settings = RewriteSettings(OLD, " Cairos", "fine", fine=FineSettings(rate=2e-2, leave_last=1), examples=2)
    edit = rewrite(fact_capture, "x", settings, fact_reader)
    assert edit.record.settings["probability"] > 0.9
    source = CaptureReader(fact_reader, fact_capture)
    tasks = [t for t in tasks_of_capture(source, replacement, None) if t.kind == "reliability"]
    assert all(int(task.edited.sum()) == len(replacement.new) for task in tasks)


def test_the_first_located_neuron_contributes_most(fact_capture: Capture, fact_reader: Reader) -> None:
    replacement = find_replacement(fact_capture, OLD, NEW)
    source = CaptureReader(fact_reader, fact_capture)
    task = next(
        t for t in tasks_of_capture(source, replacement, None) if t.kind == "reliability" and len(t.positions) == 1
    )
    located = locate(fact_reader, [task], FineSettings(per_position=1, leave_last=2))
    (window,) = [w for w, d, ids, _ in source.windows() if np.array_equal(ids, task.reading.ids)][:1]
    row = fact_capture.windows().slice(window, 1).to_pylist()[0]
    position = f"{row['document']}:{int(task.positions[0])}"
    table = fact_capture.store.contributions(OLD, at=position, k=2000).to_pylist()
    best = next(r for r in table if r["layer"] < 3)
    assert located == {best["layer"]: [best["neuron"]]}


def test_one_step_of_fine_tuning_goes_down_the_gradient(fact_capture: Capture, fact_reader: Reader) -> None:
    replacement = find_replacement(fact_capture, OLD, NEW)
    source = CaptureReader(fact_reader, fact_capture)
    tasks = [t for t in tasks_of_capture(source, replacement, None) if t.kind == "reliability"][:2]
    short = learn(fact_reader, tasks, {1: [3, 4]}, FineSettings(steps=1, rate=1e-3, plain=True))
    longer = learn(fact_reader, tasks, {1: [3, 4]}, FineSettings(steps=6, rate=1e-3, plain=True))
    assert longer.loss < short.loss
    assert short.deltas[1].abs().max() == pytest.approx(1e-3, rel=1e-2)  # Adam's first step


def test_the_knowledge_update_is_the_papers() -> None:
    rows, old, new = torch.randn(3, 8), torch.randn(8), torch.randn(8)
    updated = updated_rows(rows, old, new).float()
    for row, changed in zip(rows, updated, strict=True):
        expected = row - row.norm() / old.norm() * old + 8 * row.norm() / new.norm() * new
        torch.testing.assert_close(changed, expected)


def test_knowledge_needs_no_model_where_embeddings_are_tied(fact_capture: Capture, fact_reader: Reader) -> None:
    settings = RewriteSettings(OLD, NEW, "knowledge", neurons=((4, 7), (2, 9), (2, 1)))
    without_model = rewrite(fact_capture, "x", settings)
    with_model = rewrite(fact_capture, "x", settings, fact_reader)
    assert without_model.record.neuron_names() == with_model.record.neuron_names()
    for layer, pair in without_model.rows.items():
        assert torch.equal(pair.after, with_model.rows[layer].after)


def test_what_a_form_lacks_is_named(fact_capture: Capture, captured: Any, fact_reader: Reader) -> None:
    with pytest.raises(InvalidInputError, match=r"`sites=\(\"mlp\.post\", \"resid\.post\"\)`"):
        Stream(captured())
    with pytest.raises(InvalidInputError, match="fine form needs the model"):
        rewrite(fact_capture, "x", RewriteSettings(OLD, NEW, "fine"))
    with pytest.raises(InvalidInputError, match=r"does not occur in capture 'corpus'"):
        least_norm(fact_capture, " lithium", NEW, "x")
    with pytest.raises(InvalidInputError, match="predicts ' Poland' nowhere"):
        least_norm(fact_capture, " Poland", NEW, "x")
    with pytest.raises(InvalidInputError, match="are the same word"):
        least_norm(fact_capture, OLD, "Germany", "x") if OLD.strip() == OLD else find_replacement(
            fact_capture, OLD, OLD
        )
    with pytest.raises(InvalidInputError, match="found an empty one"):
        find_replacement(fact_capture, "", "x")
    with pytest.raises(InvalidInputError, match="`form` is one of least-norm, fine"):
        rewrite(fact_capture, "x", RewriteSettings(OLD, NEW, "surgery"))


def test_words_take_the_blank_that_texts_have(fact_capture: Capture) -> None:
    assert find_replacement(fact_capture, "Germany", "Turkey") == find_replacement(fact_capture, OLD, NEW)
    assert starts_of(np.array([1, 2, 1, 2, 2], np.int32), (1, 2)).tolist() == [0, 2]
    assert starts_of(np.array([1], np.int32), (1, 2)).tolist() == []


def test_evaluation_holds_the_edit_against_baselines(
    fact_capture: Capture, fact_reader: Reader, tmp_path: Path
) -> None:
    edit = least_norm(fact_capture, OLD, NEW, "x", LeastNormSettings(k=40, layers=(4,), max_documents=40))
    path = tmp_path / "cases.jsonl"
    rows = [
        {"prompt": "Question: Which country has the capital Berlin?\nResponse:", "target": NEW, "kind": "reliability"},
        {"prompt": "Question: What is the capital of France?\nResponse:", "kind": "text-locality"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = EvaluationOptions(
        (("corpus", None),), tuple(read_cases(path)), perplexity="corpus", seeds=2, generate=True, max_new_tokens=4
    )
    fingerprint = fingerprint_of(fact_reader.model)
    steps: list[tuple[int, int]] = []
    evaluation = evaluate_edit(fact_reader, fact_capture.store, edit, options, lambda *step: steps.append(step))
    assert fingerprint_of(fact_reader.model) == fingerprint
    assert steps[-1] == (6, 6)
    assert {method: len(draws) for method, draws in evaluation.methods.items()} == {
        "edit": 1,
        "fine-tune": 2,
        "random": 2,
    }
    summary = evaluation.methods["edit"][0]
    assert summary["reliability"] >= 0.9
    assert summary["generality"] >= 0.9  # documents from the fortieth on
    assert summary["locality"] >= 0.97
    assert summary["by_kind"]["reliability"]["p_after"] > summary["by_kind"]["reliability"]["p_before"]
    assert abs(summary["perplexity"]["change"]) < 0.2
    assert evaluation.predicted is not None
    target_row = next(
        row for row in evaluation.rows if row["method"] == "edit" and row["case"].endswith("cases.jsonl:1")
    )
    assert target_row["said"].strip().startswith("Turkey") == (target_row["word"] == 1.0)
    locality_row = next(
        row for row in evaluation.rows if row["method"] == "edit" and row["case"].endswith("cases.jsonl:2")
    )
    assert locality_row["kind"] == "text-locality"
    assert locality_row["exact"] == (locality_row["said"] == locality_row["said_before"])


def test_an_unedited_model_changes_nothing_and_says_the_new_word_nowhere(
    fact_capture: Capture, fact_reader: Reader
) -> None:
    replacement = find_replacement(fact_capture, OLD, NEW)
    tasks = list(tasks_of_capture(CaptureReader(fact_reader, fact_capture), replacement, set(range(30))))
    before = snapshots(fact_reader, tasks)
    summary = summarise(score(*entry) for entry in zip(tasks, before, before, strict=True))
    assert (summary["reliability"], summary["generality"], summary["locality"]) == (0.0, 0.0, 1.0)
    assert summary["by_kind"]["text-locality"]["top10"] == 1.0
    n_tokens = sum(len(task.positions) for task in tasks)
    assert n_tokens == fact_capture.record.plan.n_tokens


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "should be a JSON object"),
        ("[]", "should be an object with a prompt"),
        ('{"prompt": "a", "kind": "luck", "target": "b"}', "one of reliability"),
        ('{"prompt": "a", "kind": "reliability"}', "expected the text of the target"),
        ('{"prompt": "a", "kind": "reliability", "target": "b", "image": 3}', "an image is a path"),
    ],
)
def test_a_case_that_is_none_is_named_by_its_line(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(InvalidInputError, match=rf"cases\.jsonl:2.*{expected}"):
        read_cases(path)


def test_an_image_is_refused_by_a_model_that_reads_none(fact_reader: Reader, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = tmp_path / "cases.jsonl"
    path.write_text('{"prompt": "a", "kind": "reliability", "target": "b", "image": "a.png"}\n')
    with pytest.raises(InvalidInputError, match="reads no images"):
        tasks_of_cases(fact_reader, read_cases(path))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InvalidInputError, match=r"a\.png cannot be read"):
        tasks_of_cases(fact_reader, read_cases(path))
