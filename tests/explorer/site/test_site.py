"""A site: its documents are the server's, it is continued where it stopped, and it replaces nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import actstore
from actstore.explorer.bundle_files import bundle_file
from actstore.explorer.site.files import file_of, unpacked
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    PageOf = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def made(planted_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sites") / "site"
    return folder, actstore.site(planted_path, folder, capture="corpus", k=4)


def document(folder: Path, *parts: str) -> Any:
    file, name = file_of(parts)
    found = unpacked((folder / "data" / f"{file}.js").read_bytes())
    return found if name is None else found[name]


def test_documents_are_those_of_the_server(made: tuple[Path, Any], planted: actstore.Store, page: PageOf) -> None:
    folder, _ = made
    for name in ("L0.N1", "L1.N0", "L1.N39"):
        assert document(folder, "neuron", "corpus", "mlp.post", name) == page(
            planted, f"neuron/corpus/mlp.post/{name}?exemplars=4"
        )
    overview = document(folder, "overview", "corpus", "mlp.post")
    assert overview == page(planted, "overview/corpus/mlp.post")
    for one in overview["statistics"]:
        assert document(folder, "column", "corpus", "mlp.post", one["name"])["n"] == 45
    tokens = document(folder, "token-list", "corpus", "mlp.post")["tokens"]
    for one in tokens[:5]:
        found, served = (
            document(folder, "token", "corpus", "mlp.post", str(one["token"])),
            page(planted, f"token/corpus/mlp.post/{one['token']}"),
        )
        assert {key: value for key, value in found.items() if key != "graphs"} == {
            k: v for k, v in served.items() if k != "graphs"
        }


def test_what_was_said_is_what_was_written(made: tuple[Path, Any]) -> None:
    folder, report = made
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert report.nbytes == sum(path.stat().st_size for path in files)
    assert report.estimate.files == len(files)
    assert report.estimate.neurons == 45
    assert 0.5 * report.nbytes < report.estimate.nbytes < 2 * report.nbytes


def test_the_first_page_tells_the_front_end_where_it_is(made: tuple[Path, Any], planted_path: Path) -> None:
    folder, _ = made
    index = (folder / "index.html").read_bytes()
    assert index.index(b'src="data/site.js"') < index.index(b'src="explorer.js"')
    assert (folder / "explorer.js").read_bytes() == bundle_file("explorer.js")[0]
    about = json.loads((folder / "data" / "site.js").read_text().removeprefix("actstoreSite="))
    assert list(about["store"]["captures"]) == ["corpus"]
    assert about["store"]["store"] == planted_path.name  # and not where it lies on a disk
    assert str(planted_path.parent) not in (folder / "data" / "site.js").read_text()


def test_graphs_and_questions_have_files(text_path: Path, tmp_path: Path, page: PageOf, text: actstore.Store) -> None:
    actstore.site(text_path, tmp_path / "corpus", ["L1.N3"], capture="corpus")
    assert document(tmp_path / "corpus", "graph", "graphs", "L1.N3") == page(text, "graph/graphs/L1.N3?paths=12")
    with pytest.raises(KeyError):
        document(tmp_path / "corpus", "graph", "graphs", "L1.N4")
    actstore.site(text_path, tmp_path / "questions", ["L1.N3"], capture="questions")
    assert document(tmp_path / "questions", "questions", "questions", "by=animal")["labels"] == ["fox", "dog"]
    assert document(tmp_path / "questions", "prompts", "questions", "2")["prompts"]


def test_an_interrupted_site_is_continued_and_only_with_the_same(planted_path: Path, tmp_path: Path) -> None:
    folder, done = tmp_path / "site", []

    def stop(n: int, _: int) -> None:
        done.append(n)
        if n == 5:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"capture": "corpus", "layers": [1]}
    with pytest.raises(KeyboardInterrupt):
        actstore.site(planted_path, folder, **settings, on_file=stop)
    assert not (folder / "index.html").exists()
    with pytest.raises(InvalidInputError, match="`resume=True`"):
        actstore.site(planted_path, folder, **settings)
    with pytest.raises(InvalidInputError, match="other neurons, settings"):
        actstore.site(planted_path, folder, capture="corpus", resume=True)
    report = actstore.site(planted_path, folder, **settings, resume=True)
    assert report.written == report.estimate.files - len(done) - 6
    whole = actstore.site(planted_path, tmp_path / "whole", **settings)
    assert report.nbytes == whole.nbytes
    for path in (tmp_path / "whole").rglob("*"):
        assert path.is_dir() or (folder / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_nothing_is_written_over(planted_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="no site of actstore"):
        actstore.site(planted_path, tmp_path / "mine", capture="corpus")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInputError, match="is a file"):
        actstore.site(planted_path, tmp_path / "file", capture="corpus")
    with pytest.raises(InvalidInputError, match=r"1 or more, found 0"):
        actstore.site(planted_path, tmp_path / "new", capture="corpus", k=0)
    assert not (tmp_path / "new").exists()


def test_the_command_says_how_large_it_will_be(cli: Callable[..., Any], planted_path: Path, tmp_path: Path) -> None:
    asked = ("site", planted_path, tmp_path / "site", "--capture", "corpus", "--neurons", "L1.N3,L1.N4")
    told = cli(*asked, "--dry-run")
    assert told.status == 0
    assert "2 neurons: about" in told.out
    assert not (tmp_path / "site").exists()
    found = cli(*asked, "--json", "--quiet").json
    assert (found["neurons"], found["folder"]) == (2, str(tmp_path / "site"))
    assert found["bytes"] > 0
    assert "Continue it with --resume" in cli(*asked).err
