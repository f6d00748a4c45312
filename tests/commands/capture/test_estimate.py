"""`actstore capture --dry-run` as people and machines use it."""

from __future__ import annotations

import functools
import re
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

SMALL = ("--context", "16", "--max-tokens", "600", "--memory", "32KB")


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore capture …` in this process."""
    return functools.partial(cli, "capture")


def test_people_get_a_few_lines_and_machines_the_same_numbers(
    cli: Callable[..., Result], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shown = cli(tiny_model, corpus, store, *SMALL, "--dry-run")
    assert (shown.status, shown.err) == (0, "")
    value = cli(tiny_model, corpus, store, *SMALL, "--dry-run", "--json").json
    assert list(tmp_path.iterdir()) == []
    lines = shown.out.splitlines()
    assert lines[0] == f"{tiny_model} over {corpus} into {store}, capture 'corpus': a dry run, nothing is written."
    said = {line.split()[0]: line.split(maxsplit=1)[1].rstrip() for line in lines[2:]}
    assert said["corpus"] == f"{value['n_documents']:,} documents, {value['n_tokens']:,} tokens to store"
    assert (
        said["plan"]
        == f"{value['n_windows']:,} windows in {value['n_blocks']:,} blocks of {value['block_slots']} slots"
    )
    assert said["sites"] == "mlp.post at precision exact"
    assert re.fullmatch(r"about \d.* [kM]B, \d.* kB of it for weights; \d.* are free", said["disk"])
    assert re.fullmatch(r"\d.* kB for the model, \d.* kB for block buffers", said["memory"])
    assert re.fullmatch(r"about \d+ s on \S+ in float32: planning \d+ s, loading \d+ s, capturing \d+ s", said["time"])
    assert re.fullmatch(r"one batch of \d+ tokens in \S+ s", said["measured"])
    real = cli(tiny_model, corpus, store, *SMALL, "--json").json["captures"]["corpus"]
    assert (real["tokens"], real["documents"], real["windows"], real["blocks"]["planned"]) == tuple(
        value[name] for name in ("n_tokens", "n_documents", "n_windows", "n_blocks")
    )


def test_a_disk_that_is_too_small_is_said_and_the_numbers_still_come(
    cli: Callable[..., Result], tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    done = cli(tiny_model, corpus, tmp_path / "store", *SMALL, "--dry-run", "--json")
    assert done.status == 0
    assert re.search(r"Warning: The capture needs about .* has 10 B free: `actstore capture` will refuse it", done.err)
    assert (done.json["fits"], done.json["free_nbytes"]) == (False, 10)


def test_mistakes_are_refused_in_a_sentence(
    refused: Callable[..., str], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    asked = (tiny_model, corpus, tmp_path / "store", "--dry-run")
    assert "Leave --resume out" in refused(*asked, "--resume")
    assert "layer" in refused(*asked, "--layers", "0,99").lower()
    assert list(tmp_path.iterdir()) == []
