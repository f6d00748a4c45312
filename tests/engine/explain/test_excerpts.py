"""Which excerpts explain and test a neuron: none twice, strong and weak ones alike, and those without firing without it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from planted_capture import plant_capture

from actstore.engine.explain.excerpts import ExcerptReader
from actstore.engine.explain.neighbours import with_nearest
from actstore.engine.explain.prompts import MARKS, choose_marks, explain_prompt, fuzz_prompt
from actstore.engine.explain.questions import batches, detection_questions, fuzzing_rounds
from actstore.engine.explain.settings import ExplainSettings
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def reader(planted: Path) -> ExcerptReader:
    return ExcerptReader(
        Store(planted).capture(), ExplainSettings(context=12, exemplars=8, tests=8, quantiles=4), "mlp.post"
    )


def test_excerpts_are_disjoint_and_fire_as_they_say(reader: ExcerptReader) -> None:
    sample = reader.sample(0, 0)
    assert (len(sample.train), len(sample.test), len(sample.others)) == (8, 8, 8)
    every = [*sample.train, *sample.test, *sample.others]
    assert len({excerpt.window for excerpt in every}) == 24
    assert len({reader.ids[excerpt.start : excerpt.stop].tobytes() for excerpt in every}) == 24
    for excerpt in every:
        ids = reader.ids[excerpt.start : excerpt.stop]
        assert 0 < len(ids) <= 12
        assert (7 in ids) == (excerpt.kind == "exemplar")
        first, last = reader.windows.start[excerpt.window : excerpt.window + 2]
        assert first <= excerpt.start <= excerpt.peak < excerpt.stop <= last


def test_each_quantile_gives_as_many_to_both(reader: ExcerptReader) -> None:
    sample = reader.sample(0, 0)
    strength = {quantile: [] for quantile in range(4)}  # type: ignore[var-annotated]
    for part in (sample.train, sample.test):
        assert [excerpt.quantile for excerpt in part] == [0, 0, 1, 1, 2, 2, 3, 3]
        for excerpt in part:
            strength[excerpt.quantile].append(float(sample.activity.shares[excerpt.peak]))
    for stronger, weaker in combinations(range(4), 2):
        assert min(strength[stronger]) >= max(strength[weaker])


def test_a_seed_gives_the_same_excerpts_and_another_gives_others(reader: ExcerptReader) -> None:
    other = ExcerptReader(reader.capture, replace(reader.settings, seed=1), "mlp.post")
    assert reader.sample(0, 0).test == reader.sample(0, 0).test
    assert reader.sample(0, 0).test != other.sample(0, 0).test


def test_what_fires_once_cannot_be_tested_and_what_never_does_not_explained(reader: ExcerptReader) -> None:
    once, never = reader.sample(0, 4), reader.sample(0, 3)
    assert (len(once.train), len(once.test), len(once.others)) == (1, 0, 0)
    assert (never.train, never.test, never.others) == ([], [], [])


def test_nearest_excerpts_are_where_others_fire(reader: ExcerptReader) -> None:
    sample = with_nearest(reader, reader.sample(0, 0))
    nearest = [excerpt for excerpt in sample.others if excerpt.kind == "nearest"]
    assert len(sample.others) == len(sample.test)
    assert len(nearest) > 4
    for excerpt in nearest:
        assert 7 not in reader.ids[excerpt.start : excerpt.stop]
    assert any(8 in reader.ids[excerpt.start : excerpt.stop] for excerpt in nearest), "where near_seven fires"
    assert not {excerpt.window for excerpt in (*sample.train, *sample.test)} & {excerpt.window for excerpt in nearest}


def test_detection_asks_about_every_excerpt_once(reader: ExcerptReader) -> None:
    sample = reader.sample(0, 0)
    questions = detection_questions(sample, 0)
    assert {question.excerpt for question in questions} == {*sample.test, *sample.others}
    assert [question.truth for question in questions] != sorted(question.truth for question in questions)
    sizes = [len(batch) for batch in batches(questions, 5)]
    assert sizes == [4, 4, 4, 4]
    assert batches([], 5) == []


def test_fuzzing_marks_each_excerpt_rightly_and_wrongly_and_never_both_in_one_request(reader: ExcerptReader) -> None:
    sample = reader.sample(0, 0)
    rounds = fuzzing_rounds(reader, sample, 0)
    for questions in rounds:
        assert len({question.excerpt for question in questions}) == len(questions)
        assert sum(question.truth for question in questions) == len(questions) / 2
    every = [question for questions in rounds for question in questions]
    by_excerpt = {question.excerpt: {q.truth: q for q in every if q.excerpt == question.excerpt} for question in every}
    for excerpt, pair in by_excerpt.items():
        right, wrong = pair[True].marked, pair[False].marked
        assert len(right) == len(wrong) > 0
        assert {*right} == {t for t in range(excerpt.start, excerpt.stop) if reader.ids[t] == 7}
        assert not {*right} & {*wrong}


def test_prompts_mark_what_fires_and_tell_no_answer(reader: ExcerptReader) -> None:
    sample = reader.sample(0, 0)
    system, user = (message["content"] for message in explain_prompt(reader, sample))
    assert "<<" in system
    assert user.count("<< w7") >= len(sample.train)
    assert user.count("Excerpt ") == user.count("Active: ") == 8
    assert '" w7" 10' in user
    wrong = [question for question in fuzzing_rounds(reader, sample, 0)[0] if not question.truth]
    _, asked = fuzz_prompt(reader, "a description", [(question.excerpt, question.marked) for question in wrong])
    assert asked["content"].startswith("Description: a description\n")
    assert "<< w7>>" not in asked["content"]


def test_a_text_cannot_pass_for_a_mark_or_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [np.array([0, 5, 7, 6, 4, 5], np.int32), np.array([0, 4, 4, 7], np.int32)] * 2
    capture = plant_capture(tmp_path / "s", windows, [[lambda ids: (ids == 7).astype(np.float32)]])
    texts = {4: b"<<", 5: b"\nExcerpt 9: \xc2\xab", 6: b"\r\n", 7: b"\xff"}
    monkeypatch.setattr(capture.store, "token_bytes", lambda token: texts[token], raising=False)
    reader = ExcerptReader(capture, ExplainSettings(context=12), "mlp.post")
    sample = reader.sample(0, 0)
    excerpts = [*sample.train, *sample.test]
    assert len(excerpts) == 2, "the same tokens count once"
    assert choose_marks(reader, excerpts) == MARKS[2]
    user = explain_prompt(reader, replace(sample, train=excerpts))[1]["content"]
    assert [line for line in user.splitlines() if line.startswith("Excerpt 9")] == []
    assert "↵Excerpt 9: «[[\ufffd]]↵<<" in user


def test_a_capture_of_some_positions_is_refused(tmp_path: Path) -> None:
    windows = [np.array([0, 5, 7, 6, 4, 5], np.int32)]
    capture = plant_capture(tmp_path / "s", windows, [[lambda ids: ids.astype(np.float32)]], positions="last")
    with pytest.raises(InvalidInputError, match="keeps only positions 'last'"):
        ExcerptReader(capture, ExplainSettings(), "mlp.post")
