"""What a shell offers for names that lie in the store: captures, labels, sites, edits, graphs, and the layers of neurons."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import actstore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def store(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("completion") / "store"
    for name, label in (("main", "language"), ("other", "topic")):
        lines = corpus.read_text().replace("language", label).splitlines()[:6]
        (target.parent / "corpus.jsonl").write_text("\n".join(lines))
        actstore.capture(
            str(tiny_model), str(target.parent / "corpus.jsonl"), target, name=name, label_columns=[label],
            sites=["mlp.post", "resid.post"],
        )  # fmt: skip
    opened = actstore.open(target)
    opened.graphs.build(neurons="L0.N1", capture="main", name="mine")
    return target


@pytest.fixture
def offered(store: Path) -> Callable[[str], list[str]]:
    """What a shell is offered at the end of a command line."""

    def run(line: str) -> list[str]:
        words = line.replace("S ", f"{store} ")
        environment = os.environ | {
            "COMP_WORDS": f"actstore {words}",
            "COMP_CWORD": str(len(words.split(" "))),
            "_ACTSTORE_COMPLETE": "complete_bash",
        }
        program = "from actstore.cli import application; application()(prog_name='actstore')"
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        return done.stdout.split()

    return run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("top S L", ["L0.N", "L1.N"]),
        ("top S l1", ["l1.N"]),
        ("export S --neurons L0.N3,L", ["L0.N3,L0.N", "L0.N3,L1.N"]),
        ("stats S --capture ", ["main", "other"]),
        ("stats S --capture o", ["other"]),
        ("selectivity S --by ", ["language", "topic"]),
        ("top S L0.N1 --site ", ["mlp.post", "resid.post"]),
        ("graphs show S L0.N1 --name ", ["mine"]),
        ("top /nowhere --capture ", []),
    ],
)
def test_names_in_the_store_are_offered(offered: Callable[[str], list[str]], line: str, expected: list[str]) -> None:
    assert offered(line) == expected


def test_a_neuron_is_named_in_capital_or_small_letters(cli: Callable[..., object], store: Path) -> None:
    for line in (("top", store, "l0.n1", "--capture", "main"), ("graphs", "show", store, "l0.n1", "--name", "mine")):
        assert cli(*line, "--json").json["neuron"] == "L0.N1"  # type: ignore[attr-defined]
