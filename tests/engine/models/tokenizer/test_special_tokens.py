"""Captures of models without a tokenizer's files, and of texts that hold special tokens: what is stored, refused, said."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from actstore.engine.capture.api import capture
from actstore.engine.capture.run import RunOptions
from actstore.engine.inputs.corpus import CorpusReport
from actstore.store.capture.special_tokens import special_tokens
from actstore.store.errors import InvalidInputError
from actstore.store.layout import SPECIAL, TEXT

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture


@pytest.fixture(scope="module")
def without_files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its tokenizer, as of GPT-2's kind, for which transformers makes one up."""
    folder = tmp_path_factory.mktemp("models") / "bare"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*"))
    return folder


def write_lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def modality(done: Capture) -> list[tuple[int, int]]:
    """The stored tokens of a capture of one block, each with its modality, in the order read."""
    plan = done.block_plan(0)
    return sorted(zip(plan.inputs.tolist(), plan.modality.tolist(), strict=True))


def test_a_text_without_a_tokenizer_is_refused_before_anything_is_written(without_files: Path, tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "texts.jsonl", {"text": "the quick brown fox"})
    with pytest.raises(InvalidInputError, match="Pass one as `tokenizer`"):
        capture(str(without_files), texts, tmp_path / "store")
    assert not list((tmp_path / "store").rglob("*.parquet"))


def test_ids_without_a_tokenizer_take_their_special_tokens_from_the_models_files(
    without_files: Path, tmp_path: Path
) -> None:
    # config.json says 0 for begin of text and 2 for its end, generation_config.json no more than that.
    ids = write_lines(tmp_path / "ids.jsonl", {"input_ids": [0, 7, 8, 9, 2]})
    done = capture(str(without_files), ids, tmp_path / "store")
    assert modality(done) == [(0, SPECIAL), (2, SPECIAL), (7, TEXT), (8, TEXT), (9, TEXT)]
    assert special_tokens(done).tolist() == [0, 2]


def test_tokens_marked_special_are_special_in_a_capture(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("qu", add_special_tokens=False)
    assert len(ids) == 1  # a token of the vocabulary that is marked special, so that the model need not grow
    state = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["added_tokens"].append({"id": ids[0], "content": "qu"} | flags)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    texts = write_lines(tmp_path / "texts.jsonl", {"text": "a quick fox"})
    done = capture(str(folder), texts, tmp_path / "store")
    plan = done.block_plan(0)
    assert dict(zip(plan.inputs.tolist(), plan.modality.tolist(), strict=True))[ids[0]] == SPECIAL
    assert set(special_tokens(done).tolist()) == {0, 1, ids[0]}
    assert (plan.modality == TEXT).sum() == len(plan.modality) - 2


@pytest.mark.parametrize("begin", ["auto", "never"])
def test_a_doubled_begin_is_said_before_the_model_runs(tiny_model: Path, tmp_path: Path, begin: str) -> None:
    texts = write_lines(tmp_path / "texts.jsonl", {"text": "<s>the quick fox"}, {"text": "the lazy dog"})
    report, heard = CorpusReport(), []
    report.on_warning = heard.append
    done = capture(str(tiny_model), texts, tmp_path / "store", report=report, begin=begin)
    assert (np.sort(done.block_plan(0).inputs)[:3] == 0).sum() == {"auto": 3, "never": 1}[begin]
    assert [sentence.split(",")[0] for sentence in heard] == ["1 of 2 texts already begin with '<s>'"] * (
        begin == "auto"
    )


def test_in_python_it_is_a_warning(tiny_model: Path, tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "texts.jsonl", {"text": "<s>the quick fox"})
    with pytest.warns(UserWarning, match="it is there twice"):
        capture(str(tiny_model), texts, tmp_path / "store", options=RunOptions(weights=False))
