"""Padding that no mask names is run as it stands, and said; padding that a mask names leaves the activations alone."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actstore.engine.capture.api import capture
from actstore.engine.capture.padding import PaddingCount
from actstore.engine.inputs.corpus import CorpusReport
from actstore.engine.inputs.documents import Document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

PAD = 1
"""Of the tiny model's tokenizer."""
PLAIN = [[0, 40, 41, 42, 43, 44], [0, 50, 51]]
SENTENCE = (
    "Documents that begin or end with padding tokens (id {}) and no attention_mask that masks them: {}. The padding is run, "
    "stored and counted like any other token; give an attention_mask beside the ids, or leave the padding out."
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def observe(count: PaddingCount, ids: NDArray[np.int64]) -> None:
    count.observe(Document("a", ids=ids), ids)


def padded(left: int, width: int = 10, mask: bool = True) -> list[dict[str, Any]]:
    """The plain documents with `left` tokens of padding before them, and padding up to `width` after them."""
    rows = []
    for ids in PLAIN:
        right = width - left - len(ids)
        row = {"input_ids": [PAD] * left + ids + [PAD] * right}
        rows.append(row | ({"attention_mask": [0] * left + [1] * len(ids) + [0] * right} if mask else {}))
    return rows


@pytest.mark.parametrize("left", [0, 3])
def test_masked_padding_changes_no_activation(tiny_model: Path, tmp_path: Path, left: int) -> None:
    plain = write(tmp_path / "plain.jsonl", [{"input_ids": ids} for ids in PLAIN])
    masked = write(tmp_path / "masked.jsonl", padded(left))
    said: list[str] = []
    report = CorpusReport(on_warning=said.append)
    expected, found = (capture(str(tiny_model), path, tmp_path / path.stem, report=report) for path in (plain, masked))
    assert found.record.plan.n_tokens == expected.record.plan.n_tokens == 9
    assert found.record.plan.corpus_fingerprint == expected.record.plan.corpus_fingerprint
    for neuron in range(4):
        np.testing.assert_array_equal(found.activations(1, neuron), expected.activations(1, neuron))
    assert said == []


@pytest.mark.parametrize("left", [0, 3])
def test_padding_without_a_mask_is_said_once_with_a_count(
    cli: Callable[..., Any], tiny_model: Path, tmp_path: Path, left: int
) -> None:
    path = write(tmp_path / "a.jsonl", [*padded(left, mask=False), {"input_ids": PLAIN[0]}])
    with pytest.warns(UserWarning, match="padding") as caught:
        done = capture(str(tiny_model), path, tmp_path / "python")
    assert [str(warning.message) for warning in caught] == [SENTENCE.format(PAD, 2)]
    assert done.record.plan.n_tokens == 26
    said = cli("capture", tiny_model, path, tmp_path / "command", "--quiet", "--json")
    assert said.status == 0
    assert said.err == f"Warning: {SENTENCE.format(PAD, 2)}\n"


def test_the_configuration_names_the_padding_where_there_is_no_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("tokenizer*"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"pad_token_id": 7}))
    path = write(tmp_path / "a.jsonl", [{"input_ids": [*PLAIN[0], 7]}])
    said: list[str] = []
    report = CorpusReport(on_warning=said.append)
    capture(str(model), path, tmp_path / "store", report=report)
    assert said == [SENTENCE.format(7, 1)]


def test_documents_that_max_tokens_leaves_out_are_not_counted(tiny_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = CorpusReport(on_warning=said.append)
    path = write(tmp_path / "a.jsonl", padded(0, mask=False) * 5)
    capture(str(tiny_model), path, tmp_path / "store", report=report, max_tokens=25)
    assert said == [SENTENCE.format(PAD, 3)]


@pytest.mark.parametrize(
    ("names", "ids", "n"),
    [
        ({"pad_token_id": 9}, [1, 2, 9], 1),
        ({"pad_token_id": 9}, [9, 1, 2], 1),
        ({"pad_token_id": 9}, [1, 9, 2], 0),
        ({"pad_token_id": 9}, [9], 1),
        ({"pad_token_id": 9}, [], 0),
        # A token that ends or opens a text stands there once by right.
        ({"pad_token_id": 9, "eos_token_id": 9}, [1, 9], 0),
        ({"pad_token_id": 9, "eos_token_id": 9}, [1, 9, 9], 1),
        ({"pad_token_id": 9, "bos_token_id": 9}, [9, 1], 0),
        ({"pad_token_id": 9, "bos_token_id": 9}, [9, 9, 1], 1),
        ({"pad_token_id": 9, "unk_token_id": 9}, [1, 9], 0),
        ({"pad_token_id": None, "eos_token_id": 8}, [1, 8, 8], 1),
        ({"pad_token_id": None, "eos_token_id": [7, 8]}, [1, 8], 0),
        ({"pad_token_id": None, "eos_token_id": [7, 8]}, [8, 8, 1], 1),
        ({"pad_token_id": None}, [0, 0, 0], 0),
    ],
)
def test_what_counts_as_padding(names: dict[str, Any], ids: list[int], n: int) -> None:
    count = PaddingCount(SimpleNamespace(**names))
    observe(count, np.array(ids, np.int64))
    assert count.n_documents.total() == n


def test_text_has_no_padding_and_nothing_known_counts_nothing() -> None:
    count = PaddingCount(SimpleNamespace(pad_token_id=0))
    count.observe(Document("a", text="\0"), np.zeros(1, np.int64))
    assert not count.conclude("here", 1)
    unknown = PaddingCount(None)
    observe(unknown, np.zeros(3, np.int64))
    assert not unknown.conclude("here", 1)
