"""One word for another in what a model says: computed from a store alone, against rows learned with the model.

The same edit by both methods with their default settings, on a model that reliably gives the answers it was trained on; each
candidate's name has its reliability and locality.

FiNE (Pan et al. 2025, arXiv 2503.01090) is this project's own implementation, with the paper's loss and steps.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.engine.capture.api import capture
from actstore.engine.edit.cases import tasks_of_capture
from actstore.engine.edit.readings import CaptureReader, Reader
from actstore.engine.edit.rewrite import rewrite
from actstore.engine.edit.scores import score, snapshots, summarise
from actstore.engine.edit.settings import RewriteSettings
from actstore.engine.edit.weights import edited
from actstore.engine.edit.words import find_replacement
from actstore.engine.models.load import load_model
from actstore.kernels.torch_threads import torch_threads
from actstore.store.reader import Store
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.edits import Edit
    from actstore.store.reader import Capture

DEMO = Path(__file__).parents[2] / "demo"
MODEL = DEMO / "models" / "fact-llama"
OLD, NEW = "Germany", "Turkey"


def questions(quick: bool) -> list[str]:
    """Questions with their answers; in a quick run only those about geography."""
    sys.path.insert(0, str(DEMO / "training"))
    from fact_questions import OPEN_TEMPLATES, fill, read_relations

    return [
        f"{OPEN_TEMPLATES[0].format(question=fill(question, subject))} {answer}"
        for relation in read_relations(DEMO / "data" / "facts")
        if not quick or relation.domain == "geography"
        for subject, answer in relation.facts
        for question in relation.questions
    ]


def judge(captured: Capture, reader: Reader, edit: Edit) -> str:
    """How often the new word is predicted where the old one was, and how often another word stays; over the whole corpus."""
    replacement = find_replacement(captured, OLD, NEW)
    tasks = list(tasks_of_capture(CaptureReader(reader, captured), replacement, None))
    before = snapshots(reader, tasks)
    with edited(reader.model, edit):
        after = snapshots(reader, tasks)
    summary = summarise(score(*entry) for entry in zip(tasks, before, after, strict=True))
    return f"reliability {100 * summary['reliability']:.0f} %, locality {100 * summary['locality']:.1f} %"


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The fact model and a store of it over questions and answers."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name, torch_threads(1):
        corpus, store = Path(name) / "facts.jsonl", Path(name) / "store"
        texts = questions(quick)
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        captured = capture(str(MODEL), corpus, store, sites=("mlp.post", "resid.post"))
        reader = Reader.load(load_model(MODEL, dtype="float32"), str(MODEL))

        def by(form: str) -> Edit:
            # The store is opened anew, so that nothing is cached from an earlier run.
            settings = RewriteSettings(OLD, NEW, form=form)
            return rewrite(Store(store).capture(), form, settings, None if form == "least-norm" else reader)

        scores = {form: judge(captured, reader, by(form)) for form in ("least-norm", "fine")}
        yield {
            f"actstore, least norm from the store, {len(texts):,} texts; {scores['least-norm']}": Candidate(
                lambda: by("least-norm")
            ),
            f"FiNE: {RewriteSettings(OLD, NEW).examples} examples, rows learned with the model; {scores['fine']}": Candidate(
                lambda: by("fine")
            ),
        }


ROWS = (Row(f"edit: {OLD} → {NEW} in the fact model", prepare, ("tests/engine/edit",), repeats=3),)
