"""The bundle is what its source builds to, and asks for nothing that is not in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from actstore.explorer.bundle_files import BUNDLE, FILES, WIDGET

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "build" / "explorer" / "node_modules"
FRONTEND = ROOT / "explorer" / "frontend"


def test_the_bundle_is_small_and_whole() -> None:
    assert {path.name for path in BUNDLE.iterdir()} == {*FILES, WIDGET}
    assert sum((BUNDLE / name).stat().st_size for name in (*FILES, WIDGET)) <= 400_000


def test_nothing_is_fetched_from_elsewhere() -> None:
    for name in (*FILES, WIDGET):
        text = (BUNDLE / name).read_text(encoding="utf-8")
        found = {address for address in re.findall(r"https?://[^\s\"'`)<>]+", text)}
        assert found <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xhtml",
            "http://www.w3.org/1998/Math/MathML",
            "http://www.w3.org/1999/xlink",
        }
        assert "@import" not in text
    assert 'type="module"' not in (BUNDLE / "index.html").read_text(encoding="utf-8")


def test_nothing_is_made_html_of() -> None:
    """What comes from a store is text: no page puts it into the document in another way."""
    for path in sorted(FRONTEND.rglob("*.js*")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"dangerouslySetInnerHTML|innerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
        ), path


def test_releases_are_exact() -> None:
    package = json.loads((FRONTEND / "package.json").read_text(encoding="utf-8"))
    assert all(
        re.fullmatch(r"[\d.]+", release)
        for kind in ("dependencies", "devDependencies")
        for release in package[kind].values()
    )


@pytest.mark.skipif(shutil.which("node") is None or not MODULES.is_dir(), reason="not built here: run `make explorer`")
def test_the_source_builds_to_the_bundle(tmp_path: Path) -> None:
    done = subprocess.run(
        ["node", str(FRONTEND / "build.mjs"), str(tmp_path), str(MODULES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in (*FILES, WIDGET):
        assert (tmp_path / name).read_bytes() == (BUNDLE / name).read_bytes(), (
            f"{name} is not what its source builds to: run `make explorer`"
        )
