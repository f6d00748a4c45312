"""The fact model with a capture of some of its questions and answers, and what reads both again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from actstore.engine.capture.api import capture
from actstore.engine.edit.readings import Reader
from actstore.engine.models.load import load_model

if TYPE_CHECKING:
    from actstore.store.reader import Capture

MODEL = Path(__file__).parent.parent.parent.parent / "demo" / "models" / "fact-llama"
COUNTRIES = (
    ("Germany", "Berlin"), ("Turkey", "Ankara"), ("Egypt", "Cairo"), ("France", "Paris"), ("Japan", "Tokyo"),
    ("Spain", "Madrid"), ("Italy", "Rome"), ("Norway", "Oslo"), ("Greece", "Athens"), ("Poland", "Warsaw"),
)  # fmt: skip
QUESTIONS = ("Which country has the capital {}?", "{} is the capital of which country?", "What is the capital of {}?")


def facts() -> list[str]:
    """Questions with answers, of which some say Germany."""
    return [
        f"Question: {form.format(*((city,) if place < 2 else (country,)))}\nResponse: {country if place < 2 else city}"
        for place, form in enumerate(QUESTIONS)
        for country, city in COUNTRIES
    ]


@pytest.fixture(scope="session")
def fact_model() -> Path:
    """The demo's model of facts."""
    return MODEL


@pytest.fixture(scope="session")
def fact_capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """A capture with what every form needs."""
    folder = tmp_path_factory.mktemp("facts")
    corpus = folder / "facts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in facts() * 2), encoding="utf-8")
    return capture(str(MODEL), corpus, folder / "store", sites=("mlp.post", "resid.post"))


@pytest.fixture(scope="session")
def fact_reader() -> Reader:
    """The model itself; to be left as it is."""
    return Reader.load(load_model(MODEL), str(MODEL))
