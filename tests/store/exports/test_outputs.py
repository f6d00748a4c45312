"""Where results may be written: on this machine, in a folder that is there; anything else is refused before the work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import actstore
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_file, output_folder, output_path

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def store(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("outputs") / "store"
    actstore.capture(str(tiny_model), corpus, target, context=16, max_tokens=300, label_columns=["language"])
    return target


OUTPUTS = (output_path, output_file, output_folder)


@pytest.mark.parametrize("check", OUTPUTS)
@pytest.mark.parametrize(
    "given",
    ["s3://bucket/l3.parquet", "gs://b/x", "abfss://c@a.dfs.core.windows.net/x", "file:///tmp/x", "https://h/x.svg"],
)
def test_a_url_is_refused_as_it_was_written(check: Callable[[Any], Path], given: str) -> None:
    for one in (given, Path(given)):
        with pytest.raises(InvalidInputError, match=f"found {re.escape(given.replace(':///', '://'))}. Name a path"):
            check(one)


def test_paths_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("at:noon").mkdir()
    for given in ("new", "./new", "a:b", "at:noon/new", str(tmp_path / "new")):
        assert [check(given) for check in OUTPUTS] == [Path(given)] * 3
    assert output_folder("no/folder/yet") == Path("no/folder/yet")
    assert output_path("at:noon") == output_folder("at:noon") == Path("at:noon")
    assert output_file("file") == Path("file")
    for check, given, found in (
        (output_path, "no/file", "The folder of no/file does not exist. Make it first, or write elsewhere."),
        (output_file, "no/file", "The folder of no/file does not exist. Make it first, or write elsewhere."),
        (output_file, "at:noon", "Expected a file to write, found the folder at:noon. Name a file in it."),
        (output_folder, "file", "Expected a folder to write into, found the file file. Name another."),
    ):
        with pytest.raises(InvalidInputError, match=f"^{re.escape(found)}$"):
            check(given)


@pytest.mark.parametrize(
    "command",
    [
        "export STORE --neurons L0.N1 --output URL.parquet",
        "export STORE --neurons L0.N1 --format delphi --output URL",
        "site STORE URL",
        "demo URL",
        "coverage STORE --output URL.json",
        "coactivation STORE L0.N1 --output URL.parquet",
        "graphs show STORE L0.N1 --output URL.svg",
        "multimodal STORE --output URL",
        "multimodal saliency STORE --output URL",
        "multimodal map STORE L0.N1 --document 0 --output URL.png",
        "multimodal shuffle . --output URL",
        "naica STORE --output URL.svg",
        "selectivity STORE --by language --overlap-map URL.svg",
        "edit evaluate STORE name --output URL.parquet",
    ],
)
def test_no_command_writes_into_a_folder_called_like_a_url(
    command: str, refused: Callable[..., str], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command.replace("STORE", str(store)).replace("URL", "s3://bucket/x").split()
    assert "found s3://bucket/x" in refused(*words)
    assert not list(tmp_path.iterdir())


def test_in_python(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    opened = actstore.open(store)
    for write in (
        lambda: opened.export("s3://bucket/x.parquet", ["L0.N1"]),
        lambda: opened.coverage(output="s3://bucket/x.json"),
        lambda: actstore.site(opened, "s3://bucket/x"),
        lambda: actstore.write_demo("s3://bucket/x"),
    ):
        with pytest.raises(InvalidInputError, match="found s3://bucket/x"):
            write()
    assert not list(tmp_path.iterdir())
