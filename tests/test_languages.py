"""The demo's language model and its held-out texts are what its log says they are."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from actstore.engine.models.load import load_model
from actstore.engine.models.tokenizer.load import TextTokenizer

DEMO = Path(__file__).resolve().parent.parent / "demo"
FOLDER = DEMO / "models" / "language-llama"
CORPUS = FOLDER / "texts.jsonl.xz"
LOG = [json.loads(line) for line in (FOLDER / "training_log.jsonl").read_text().splitlines()]
N_DOCUMENTS = 20
"""Scored of every language: enough to be within `TOLERANCE` of all of them."""
TOLERANCE = 0.15


def load(name: str) -> Any:
    """A module of demo/training, which is no package; under its own name, by which the others import it."""
    spec = importlib.util.spec_from_file_location(name, DEMO / "training" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


language_texts = load("language_texts")


def test_the_corpus_file_is_the_one_the_model_was_evaluated_on() -> None:
    assert hashlib.sha256(CORPUS.read_bytes()).hexdigest() == LOG[0]["corpus_sha256"]


def test_the_halves_share_no_text_and_every_language_has_as_much_of_each() -> None:
    halves = [language_texts.read_held_out(CORPUS, half) for half in ("search", "measure")]
    for texts in halves:
        assert list(texts) == list(language_texts.LANGUAGES)
        sizes = [sum(len(text.encode()) for text in found) for found in texts.values()]
        assert max(sizes) - min(sizes) < 2000
    first, second = ({line for found in texts.values() for t in found for line in t.splitlines()} for texts in halves)
    assert not first & second


@pytest.mark.parametrize("half", ["train", "search", "measure"])
def test_an_integration_is_in_one_half_in_all_languages(half: str) -> None:
    names = [f"integration_{i}" for i in range(200)]
    share = sum(language_texts.half_of(name) == half for name in names) / len(names)
    assert share == pytest.approx({"train": 0.8, "search": 0.1, "measure": 0.1}[half], abs=0.07)


def test_messages_are_prose_in_their_own_language_and_told_once(tmp_path: Path) -> None:
    english = {
        "a": {"long": "Enter the address of the device.", "same": "This is left as it is in English.", "short": "Host"}
    }
    german = {"a": {"long": "Gib die Adresse  des Geräts ein.", "same": english["a"]["same"], "short": "Rechner"}}
    english["a"]["link"], german["a"]["link"] = (
        "See https://x for what that may be.",
        "Siehe https://x, was das sein mag.",
    )
    with zipfile.ZipFile(tmp_path / "release.whl", "w") as archive:
        for name, tree in (("en", english), ("de", german)):
            for integration in ("one", "two"):
                archive.writestr(f"homeassistant/components/{integration}/translations/{name}.json", json.dumps(tree))
    found = language_texts.read_messages(tmp_path / "release.whl")
    assert found["de"] == {("one", ".a.long"): "Gib die Adresse des Geräts ein."}
    assert list(found["en"]) == [("one", ".a.long"), ("one", ".a.same")]
    assert found["fr"] == {}


def test_a_wheel_that_is_another_one_is_refused(tmp_path: Path) -> None:
    name, version = language_texts.RELEASE.split("==")
    (tmp_path / f"{name}-{version}-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(ValueError, match="Delete it and run again"):
        language_texts.fetch_release(tmp_path)


@torch.inference_mode()
def test_the_model_predicts_every_language_as_well_as_its_log_says() -> None:
    model = load_model(str(FOLDER), dtype="float32").model
    tokenizer = TextTokenizer.load(str(FOLDER))
    texts = language_texts.read_held_out(CORPUS, "measure")
    logged = LOG[-1]["bits_per_byte"]
    assert list(logged) == list(texts)
    for label, documents in texts.items():
        nats, n_bytes = 0.0, 0
        for document in documents[:: len(documents) // N_DOCUMENTS]:
            (text,) = tokenizer.encode([document])
            ids = torch.tensor([[*tokenizer.prefix, *text.tolist()]])
            log_p = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
            nats -= float(log_p.gather(2, ids[:, 1:, None]).sum())
            n_bytes += len(document.encode())
        assert nats / math.log(2) / n_bytes == pytest.approx(logged[label], rel=TOLERANCE)
