import glob
import os
from pathlib import Path

import pytest

from actstore.engine.inputs.corpus import CorpusOptions, read_corpus
from actstore.engine.inputs.globs import matching_paths


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("a.txt", "b.md", "x/a.txt", "x/y/a.txt", "x/y/z/c.txt", "[w]/a.txt", ".hidden/a.txt", "x/.h.txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    monkeypatch.chdir(tmp_path / "tree")
    return tmp_path / "tree"


PATTERNS = [
    "*.txt", "**", "**/*.txt", "x/**/*.txt", "**/a.txt", "**/y/*.txt", "**/y/**/*.txt", "./**/*.txt", "*/a.txt", "?/**", "**/",
    "x/**/", "nothing/**", "x/**/z/c.txt", "[[]w]/**/*.txt", "../tree/**/*.txt", "x//**//*.txt",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_the_files_that_glob_matches_without_links(tree, pattern, absolute):
    pattern = f"{glob.escape(str(tree))}/{pattern}" if absolute else pattern
    expected = {os.path.normpath(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file()}
    found = [str(p) for p in matching_paths(pattern) if p.is_file()]
    assert {os.path.normpath(p) for p in found} == (expected if not pattern.endswith("/") else set())
    assert len(found) == len(set(found))


def test_links_that_lead_upwards(tree):
    for name in ("x/up", "x/y/up", "x/y/z/top"):
        (tree / name).symlink_to(tree, target_is_directory=True)
    assert [str(p) for p in matching_paths("**/*.txt")] == ["[w]/a.txt", "a.txt", "x/a.txt", "x/y/a.txt", "x/y/z/c.txt"]
    documents = [d.source for d in read_corpus("**/*.txt", CorpusOptions())]
    assert len(documents) == 5


def test_a_link_to_a_file_is_a_file(tree):
    (tree / "x/link.txt").symlink_to(tree / "a.txt")
    assert Path("x/link.txt") in matching_paths("**/*.txt")


def test_a_link_that_is_named_is_followed(tree):
    (tree / "link").symlink_to(tree / "x", target_is_directory=True)
    assert Path("link/a.txt") in matching_paths("link/*.txt")
    assert Path("link/y/a.txt") in matching_paths("link/**/*.txt")
