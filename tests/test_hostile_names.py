"""Names from outside, with rich's markup and terminals' control sequences in them, through every command that shows them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from actstore.display import terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Result

CONTROLS = {chr(code) for code in (*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029)} - {"\n"}
NAME = "n[/a][bold]\x1b]0;x\x07\x9b31m"
SHOWN = "n[/a][bold]␛]0;x␇\ufffd31m"


@pytest.fixture(scope="module")
def hostile(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Model, corpus and store: folders, files, label values and tokens have such names."""
    from actstore.engine.capture.api import capture

    folder = tmp_path_factory.mktemp("hostile")
    model, corpus, store = folder / f"model {NAME}", folder / f"corpus {NAME}.jsonl", folder / f"store {NAME}"
    corpus.parent.mkdir()
    shutil.copytree(tiny_model, model)
    rows = [{"text": f"one [/a] two \x1b]0;x\x07 three {i % 3}", "topic": f"{NAME} {i % 2}"} for i in range(12)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    capture(str(model), corpus, store, label_columns=("topic",), sites=("mlp.post", "resid.post"))
    return model, corpus, store


def _checked(done: Result, status: int = 0) -> str:
    assert done.status == status, done
    shown = done.out + done.err
    assert not CONTROLS & set(shown), sorted(CONTROLS & set(shown))
    return shown


def test_what_reads_a_store_shows_names_as_they_are(
    cli: Callable[..., Result], hostile: tuple[Path, Path, Path]
) -> None:
    model, _, store = hostile
    assert SHOWN in _checked(cli("info", store))
    assert SHOWN in _checked(cli("inspect", model))
    assert SHOWN in _checked(cli("sql", store, f'select 1 as "{NAME}", topic from documents'))
    assert SHOWN in _checked(cli("stats", store, "--by", "topic"))
    assert SHOWN in _checked(cli("selectivity", store, "--by", "topic", "--share", 0.2))
    assert SHOWN in _checked(cli("coverage", store, "--by", "topic"))
    _checked(cli("verify", store))
    _checked(cli("top", store, "L0.N1"))
    _checked(cli("contributions", store, "--target", " one", "--everywhere"))


def test_what_makes_something_shows_names_as_they_are(
    cli: Callable[..., Result], hostile: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, corpus, store = hostile
    assert SHOWN in _checked(cli("capture", model, corpus, tmp_path / NAME, "--label", "topic"))
    (tmp_path / NAME).parent.mkdir(exist_ok=True)
    assert SHOWN in _checked(cli("export", store, "--output", tmp_path / f"{NAME}.npy", "--neurons", "L0.N1"))
    for line in (("build", "--neurons", "L0.N1"), ("show", "L0.N1"), ("search", "--activating", " one"), ("repeats",)):
        _checked(cli("graphs", line[0], store, *line[1:]))
    shutil.rmtree(store / "graphs")
    _checked(cli("edit", "suppress", store, "--neurons", "L0.N1", "--name", f"edit {NAME.replace('/', '')}"))
    assert "edit n[a][bold]␛]0;x␇" in _checked(cli("edit", "list", store))
    shutil.rmtree(store / "edits")


@pytest.mark.parametrize(
    "line",
    [
        ("info", NAME), ("capture", NAME, NAME, NAME), ("inspect", NAME), ("top", NAME, NAME), ("sql", NAME, NAME),
        (NAME,), ("graphs", NAME), ("naica", NAME), ("info", f"--{NAME}"), ("top", NAME, "L0.N1", "-k", NAME),
        ("top", NAME, "L0.N1", "--site", NAME),
    ],
    ids=lambda line: "-".join(word for word in line if word != NAME).replace(NAME, "NAME") or "NAME",
)  # fmt: skip
def test_complaints_show_names_as_they_are(cli: Callable[..., Result], line: tuple[str, ...]) -> None:
    _checked(cli(*line), status=2)


def test_messages_about_what_is_inside_show_it_as_it_is(
    cli: Callable[..., Result], hostile: tuple[Path, Path, Path]
) -> None:
    model, corpus, store = hostile
    for line in (
        ("info", store / NAME), ("top", store, NAME), ("top", store, "L0.N1", "--capture", NAME),
        ("edit", "delete", store, NAME),
        ("stats", store, "--by", NAME), ("graphs", "show", store, "L0.N1"),
        ("capture", model, corpus, store, "--name", NAME), ("capture", model, corpus, store / "x", "--label", NAME),
        ("export", store, "--output", NAME), ("edit", "show", store, NAME), ("contributions", store, "--target", NAME),
    ):  # fmt: skip
        assert "Error: " in _checked(cli(*line), status=2)


def test_json_is_json_and_no_control_sequence(cli: Callable[..., Result], hostile: tuple[Path, Path, Path]) -> None:
    _, _, store = hostile
    for line in (("info", store), ("sql", store, f'select topic as "{NAME}" from documents'), ("top", store, "L0.N1")):
        done = cli(*line, "--json")
        assert not CONTROLS & set(done.out)
        assert "n[/a]" in json.dumps(done.json) or line[0] == "top"
    assert cli("sql", store, f'select 1 as "{NAME}"', "--json").json["columns"] == [NAME]


def test_notebooks_show_names_as_they_are(hostile: tuple[Path, Path, Path]) -> None:
    from actstore.store.reader import Store

    store = Store(hostile[2])
    for shown in (store._repr_html_(), store.capture()._repr_html_(), store.neuron(0, 1)._repr_html_()):
        assert not CONTROLS & set(shown)
    assert "<b>" in store._repr_html_()
    assert terminal.visible(NAME) in store._repr_html_().replace("&#x27;", "'")
