"""A capture at precision half whose activations are too large for it, as the command line tells of it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from actstore import capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

NEURON = "L1.N5"
SENTENCE = (
    "of 1 neuron (L1.N5) at mlp.post of capture 'corpus' lie beyond 65,504, the largest float16, and are stored as "
)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One in which a neuron of the last layer, of which nothing else is computed, is a hundred million times as large."""
    folder = tmp_path_factory.mktemp("overflow") / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][5] *= 1e8
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def stores(model: Path, corpus: Path) -> dict[str, Path]:
    """Precision → a store."""
    for precision in ("half", "exact"):
        capture(str(model), corpus, model.parent / precision, precision=precision, context=32, max_tokens=400)
    return {precision: model.parent / precision for precision in ("half", "exact")}


@pytest.mark.parametrize("precision", ["half", "exact"])
def test_a_capture_says_what_overflowed_and_what_to_do(
    cli: Callable[..., Result], model: Path, corpus: Path, tmp_path: Path, precision: str
) -> None:
    done = cli("capture", model, corpus, tmp_path / "store", "--max-tokens", 200, "--precision", precision, "--quiet")
    assert done.status == 0
    told = (
        SENTENCE
        + "infinite: they are counted in the column overflow. Capture with --precision exact to keep every value."
    )
    assert (told in done.err) == (precision == "half")
    assert ("Warning" in done.err) == (precision == "half")


@pytest.mark.parametrize("command", [("info",), ("verify", "--refill", 1)])
def test_info_and_verify_say_so_and_it_is_no_damage(
    cli: Callable[..., Result], stores: dict[str, Path], command: tuple[Any, ...]
) -> None:
    told = cli(command[0], stores["half"], *command[1:])
    assert (told.status, told.err.count(SENTENCE)) == (0, 1)
    assert SENTENCE not in cli(command[0], stores["exact"], *command[1:]).err


def test_machines_are_told_how_many(cli: Callable[..., Result], stores: dict[str, Path]) -> None:
    rows = {
        name: cli("stats", path, "--sort", "overflow", "-k", 2, "--json").json["neurons"]
        for name, path in stores.items()
    }
    assert rows["half"][0]["name"] == NEURON
    n = rows["half"][0]["overflow"]
    assert n > 0
    assert [row["overflow"] for row in (rows["half"][1], *rows["exact"])] == [0, 0, 0]
    info = {name: cli("info", path, "--json").json["captures"]["corpus"]["overflow"] for name, path in stores.items()}
    assert info == {"half": {"mlp.post": {"neurons": 1, "activations": n}}, "exact": {}}


@pytest.mark.parametrize(
    "command",
    [
        ("contributions", "STORE", "--next-tokens"),
        ("coverage", "STORE"),
        ("change", "STORE", "COPY"),
        ("top", "STORE", NEURON),
        ("graphs", "build", "STORE", "--neurons", NEURON),
        ("graphs", "evaluate", "STORE", "--neurons", NEURON),
        ("graphs", "repeats", "STORE"),
        ("export", "STORE", "--output", "out.npy", "--neurons", NEURON),
    ],
    ids=lambda command: " ".join(command[: 2 if command[0] == "graphs" else 1]),
)
def test_whatever_computes_with_the_values_warns(
    cli: Callable[..., Result], stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for precision, n in (("half", 1), ("exact", 0)):
        places = {"STORE": stores[precision], "COPY": tmp_path / f"copy of {precision}"}
        if "COPY" in command:
            shutil.copytree(stores[precision], places["COPY"])
        done = cli(*(places.get(part, part) for part in command), "--quiet")
        assert done.status == 0, done.err
        assert (done.err.count(SENTENCE) > 0) == n


def test_scores_are_finite_and_other_neurons_warn_of_nothing(
    cli: Callable[..., Result], stores: dict[str, Path], tmp_path: Path
) -> None:
    store = stores["half"]
    found = cli("contributions", store, "--next-tokens", "-k", 48, "--json").json
    assert np.isfinite([row["score"] for row in found["neurons"]]).all()
    assert SENTENCE not in cli("top", store, "L1.N4").err
    assert SENTENCE not in cli("export", store, "--output", tmp_path / "other.npy", "--neurons", "L1.N4").err
