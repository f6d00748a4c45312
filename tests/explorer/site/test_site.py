"""A site: its documents are the server's, it is continued where it stopped, and it replaces nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import actstore
from actstore.explorer.bundle_files import bundle_file
from actstore.explorer.pages.change import change_page
from actstore.explorer.pages.numbers import short
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


def as_file(served: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """A server's document with excerpts as files have them: what is shown, activations in three digits."""
    shown = ("value", "document", "position", "source", "tokens", "pivot")
    return served | {
        kind: [{key: one[key] for key in shown} | {"activations": short(one["activations"], 3)} for one in served[kind]]
        for kind in kinds
    }


def test_documents_are_those_of_the_server(made: tuple[Path, Any], planted: actstore.Store, page: PageOf) -> None:
    folder, _ = made
    for name in ("L0.N1", "L1.N0", "L1.N39"):
        served = page(planted, f"neuron/corpus/mlp.post/{name}?exemplars=4")
        assert document(folder, "neuron", "corpus", "mlp.post", name) == as_file(served, "exemplars")
        others = page(planted, f"others/corpus/mlp.post/{name}")
        assert document(folder, "others", "corpus", "mlp.post", name) == as_file(others, "lowest", "random")
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


def test_texts_have_their_own_neurons(made: tuple[Path, Any], planted: actstore.Store, page: PageOf) -> None:
    folder, _ = made
    listed = document(folder, "document-list", "corpus")
    assert listed["documents"] == page(planted, "documents/corpus")["documents"]
    n_neurons = 0
    for row in listed["documents"]:
        found = document(folder, "text", "corpus", "mlp.post", str(row["document"]))
        names = found["peaks"]
        assert names == [one["neuron"] for one in found["neurons"]]
        served = page(planted, f"text/corpus/mlp.post/{row['document']}?neurons={','.join(names)}")
        assert names == served["peaks"][:8]
        assert found | {"neurons": [], "peaks": []} == served | {"neurons": [], "peaks": []}
        for mine, theirs in zip(found["neurons"], served["neurons"], strict=True):
            assert mine["values"] == pytest.approx(theirs["values"], rel=6e-3)  # three digits
        n_neurons += len(names)
    assert n_neurons > 5


def test_lists_of_other_neurons_are_the_server_s(
    text_path: Path, text: actstore.Store, tmp_path: Path, page: PageOf
) -> None:
    """Computed for all neurons at once, and page by page: the same neurons, the same numbers."""
    names = ["L1.N3", "L0.N1", "L0.N7"]
    actstore.site(text_path, tmp_path / "site", names, capture="corpus")
    for name in names:
        for parts in (("similar", "graphs", name), ("coactive", "corpus", "mlp.post", name)):
            found, served = document(tmp_path / "site", *parts), page(text, "/".join(parts))
            assert found["neurons"] or parts[0] == "similar"
            assert [one["neuron"] for one in found["neurons"]] == [one["neuron"] for one in served["neurons"]]
            for mine, theirs in zip(found["neurons"], served["neurons"], strict=True):
                assert mine.keys() == theirs.keys()
                assert {k: v for k, v in mine.items() if k != "neuron"} == pytest.approx(
                    {k: v for k, v in theirs.items() if k != "neuron"}, rel=1e-3, abs=1e-4
                )
    assert document(tmp_path / "site", "similar", "graphs", "L1.N3")["neurons"]
    with pytest.raises(KeyError):
        document(tmp_path / "site", "coactive", "corpus", "mlp.post", "L0.N2")


def about_site(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "data" / "site.js").read_text().removeprefix("actstoreSite="))
    return found


def test_parts_are_left_out_and_the_page_says_so(text_path: Path, tmp_path: Path) -> None:
    actstore.site(
        text_path, tmp_path / "site", ["L1.N3"], capture="corpus", texts=2, without=["coactive", "others", "similar"]
    )
    about = about_site(tmp_path / "site")
    assert not {"coactive", "others", "similar"} & set(about["pages"])
    assert about["reasons"].keys() == {"coactive", "others", "similar"}
    assert len(about["texts"]) == 2
    assert not (tmp_path / "site" / "data" / "coactive").exists()
    actstore.site(text_path, tmp_path / "short", ["L1.N3"], capture="corpus", texts=0)
    assert "text" not in about_site(tmp_path / "short")["pages"]
    with pytest.raises(InvalidInputError, match=r"`without` names parts of a site: others, similar, .* found graphs"):
        actstore.site(text_path, tmp_path / "new", capture="corpus", without=["graphs"])
    with pytest.raises(InvalidInputError, match="`texts` is a number of documents"):
        actstore.site(text_path, tmp_path / "new", capture="corpus", texts=-1)


def build_pair(path: Path) -> actstore.Store:
    """Two captures on the same tokens."""
    values = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    with actstore.CaptureBuilder(path, model_name="pair") as builder:
        builder.add({("resid.post", 0): values}, texts=list("abcdef"), source="s")
    with actstore.CaptureBuilder(path, "later", tokens_of="corpus") as builder:
        builder.add({("resid.post", 0): values + np.array([0, 0, 2, 0], np.float32)})
    return actstore.open(path)


def test_two_captures_are_compared(tmp_path: Path, page: PageOf) -> None:
    store, folder = build_pair(tmp_path / "pair.actstore"), tmp_path / "site"
    actstore.site(store, folder, capture="corpus", site="resid.post", compare="later")
    about = about_site(folder)
    assert list(about["store"]["captures"]) == ["corpus", "later"]
    assert about["store"]["captures"]["later"]["compared"]
    for capture in ("corpus", "later"):
        assert document(folder, "column", capture, "resid.post", "max") == page(
            store, f"column/{capture}/resid.post/max"
        )
    change = document(folder, "change", "corpus", "resid.post")
    assert change == change_page(store, "corpus", "resid.post", other=store, other_capture="later")
    assert change["neurons"][0] == {"neuron": "L0.N2", "score": 2.0}


def test_captures_that_cannot_be_compared_are_refused_or_said(text_path: Path, tmp_path: Path) -> None:
    actstore.site(text_path, tmp_path / "other", ["L1.N3"], capture="corpus", compare="probes-mask", texts=0)
    about = about_site(tmp_path / "other")
    assert "change" not in about["pages"]
    assert "same tokens" in about["reasons"]["change"]
    for wrong in ("corpus", "int8"):
        with pytest.raises(InvalidInputError, match=f"same layers at mlp.post, found '{wrong}'"):
            actstore.site(text_path, tmp_path / "new", capture="corpus", compare=wrong)


def test_what_would_take_hours_is_left_out_with_a_word(
    text_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore.explorer.site.neighbours.TOKENS_OF_PAIRS", 1000)
    monkeypatch.setattr("actstore.explorer.pages.sets.PAIRS", 100)
    actstore.site(text_path, tmp_path / "site", ["L1.N3"], capture="corpus")
    about = about_site(tmp_path / "site")
    assert {"coactive", "similar"} & set(about["pages"]) == set()
    assert "24 neurons" in about["reasons"]["coactive"]
    assert "hours" in about["reasons"]["similar"]


def test_a_capture_without_values_has_what_there_is(text_path: Path, tmp_path: Path) -> None:
    actstore.site(text_path, tmp_path / "site", ["L1.N3"], capture="statistics")
    about = about_site(tmp_path / "site")
    assert not {"coactive", "others", "maps"} & set(about["pages"])
    assert "precision none" in about["reasons"]["coactive"]
    found = document(tmp_path / "site", "text", "statistics", "mlp.post", str(about["texts"][0]))
    assert found["tokens"]
    assert found["neurons"] == []


@pytest.mark.usefixtures("pictures")
def test_images_are_files_of_the_site(image_path: Path, tmp_path: Path, page: PageOf) -> None:
    report = actstore.site(image_path, tmp_path / "site", capture="corpus")
    store = actstore.open(image_path)
    found = document(tmp_path / "site", "maps", "corpus", "mlp.post", "L1.N3")
    assert found == page(store, "maps/corpus/mlp.post/L1.N3")
    for one in found["maps"]:
        assert one["image"]
        file = tmp_path / "site" / "data" / "image" / "corpus" / f"{one['document']}.webp"
        with Image.open(file) as picture:
            size = picture.size
        assert size == (one["width"], one["height"])
    assert 0.5 * report.nbytes < report.estimate.nbytes < 2 * report.nbytes


def test_images_that_are_gone_leave_the_map(image_path: Path, tmp_path: Path) -> None:
    actstore.site(image_path, tmp_path / "site", ["L1.N3"], capture="corpus")
    found = document(tmp_path / "site", "maps", "corpus", "mlp.post", "L1.N3")
    assert [one["image"] for one in found["maps"]] == [False, False]
    assert not (tmp_path / "site" / "data" / "image").exists()


@pytest.mark.slow
def test_several_processes_make_the_same_and_are_continued(text_path: Path, tmp_path: Path) -> None:
    def stop(n: int, _: int) -> None:
        if n == 3:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"capture": "corpus", "workers": 2}
    with pytest.raises(KeyboardInterrupt):
        actstore.site(text_path, tmp_path / "site", **settings, on_file=stop)
    assert not (tmp_path / "site" / "index.html").exists()
    actstore.site(text_path, tmp_path / "site", **settings, resume=True)
    actstore.site(text_path, tmp_path / "whole", capture="corpus")
    made, expected = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "site", tmp_path / "whole")
    )
    assert made == expected


@pytest.mark.slow
def test_a_command_that_is_interrupted_says_how_to_go_on(text_path: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "actstore.cli",
        "site",
        str(text_path),
        str(tmp_path / "site"),
        "--capture",
        "corpus",
    ]
    with subprocess.Popen([*command, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (tmp_path / "site" / "data" / "neuron").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if process.returncode:  # it may have been done by then
        assert not (tmp_path / "site" / "index.html").exists()
    done = subprocess.run([*command, "--resume", "--json", "--quiet"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["neurons"] == 24
    assert (tmp_path / "site" / "index.html").exists()


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
    with pytest.raises(InvalidInputError, match="found the file"):
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
