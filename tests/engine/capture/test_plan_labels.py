"""A label column of one value tells nothing apart, and that is said when it is planned."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

import actstore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]


def write(path: Path, values: list[str | None]) -> Path:
    rows = [
        {"text": f"one two three {i}"} | ({} if value is None else {"topic": value}) for i, value in enumerate(values)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("values", "is_warned"), [(["a", "a"], True), (["a", None], True), (["a", "b"], False), (["a", "b", None], False)]
)
def test_a_label_column_of_one_value_is_warned_of(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, values: list[str | None], is_warned: bool
) -> None:
    corpus = write(tmp_path / "corpus.jsonl", values)
    with caplog.at_level(logging.WARNING, "actstore"):
        actstore.capture(str(tiny_model), str(corpus), tmp_path / "store", label_columns=["topic"])
    sentence = (
        f"Every labelled document of {corpus} has the value 'a' in the label column 'topic': statistics per label cannot tell "
        "labels apart."
    )
    assert [record.getMessage() for record in caplog.records] == [sentence] * is_warned


def test_the_command_says_it_on_standard_error(cli: Callable[..., Result], tiny_model: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", ["a", "a"])
    for extra in (("--dry-run",), ("--json", "--quiet")):
        done = cli("capture", tiny_model, corpus, tmp_path / "store", "--label", "topic", *extra)
        assert done.status == 0
        assert done.err.count("Warning: Every labelled document of") == 1
        assert "cannot tell labels apart.\n" in done.err
