"""The documentation in Chromium, opened from its folder: pages fit, are legible in light and dark, and fetch nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
AXE = ROOT / "build" / "explorer" / "node_modules" / "axe-core" / "axe.min.js"
SAMPLE = (
    "index.html", "capture.html", "explorer.html", "glossary.html", "methods/graphs.html", "methods/selectivity.html",
    "notebooks/cluster.html", "notebooks/real-model.html", "operation.html",
)  # fmt: skip
"""Pages of every kind, on which axe-core is tried; on all, and on pages as long as the API's, it takes minutes."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    pytest.importorskip("mkdocs", reason="`make docs` installs what builds the documentation")
    folder = tmp_path_factory.mktemp("site") / "with a space"
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[str]:
    found = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
    assert len(found) > 35
    return found


class Reader:
    """A tab; what it fetches from elsewhere, and what it complains of, is kept."""

    def __init__(self, page: Any, site: Path) -> None:
        self.page, self.site = page, site
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text)
        )
        page.on("request", lambda request: self._look(request.url))

    def _look(self, url: str) -> None:
        if not url.startswith((self.site.as_uri(), "data:")):
            self.complaints.append(f"fetched {url}")

    def open(self, name: str) -> Any:
        self.page.goto((self.site / name).as_uri())
        return self.page


@pytest.fixture
def reader(chromium: Any, site: Path) -> Iterator[Reader]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield (reader := Reader(context.new_page(), site))
    context.close()
    assert reader.complaints == []


@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_fits(reader: Reader, pages: list[str], width: int) -> None:
    reader.page.set_viewport_size({"width": width, "height": 900})
    wide = [
        name for name in pages if reader.open(name).evaluate("() => document.documentElement.scrollWidth > innerWidth")
    ]
    assert wide == []


def test_sections_stand_in_one_line(reader: Reader) -> None:
    links = reader.open("index.html").locator(".sections a")
    assert links.count() > 5
    assert len({round(box["y"]) for box in (links.nth(i).bounding_box() for i in range(links.count()))}) == 1
    last = links.last.bounding_box()
    assert last["x"] + last["width"] < 1280


def test_every_page_is_reached_from_the_first(site: Path, pages: list[str], reader: Reader) -> None:
    """By the list of pages alone."""
    hrefs = reader.open("index.html").locator("#pages a").evaluate_all("(links) => links.map((link) => link.href)")
    assert {str(href).partition("#")[0] for href in hrefs} == {(site / name).as_uri() for name in pages}


def test_colours_follow_the_system_and_what_is_chosen(reader: Reader) -> None:
    def ground() -> str:
        return str(reader.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    reader.page.emulate_media(color_scheme="light")
    reader.open("index.html")
    light = ground()
    reader.page.emulate_media(color_scheme="dark")
    dark = ground()
    assert dark != light
    reader.page.locator("#theme").select_option("light")
    assert ground() == light
    reader.open("read.html")
    assert ground() == light
    assert reader.page.locator("#theme").input_value() == "light"
    reader.page.locator("#theme").select_option("system")
    assert ground() == dark


def test_search_finds_sections_from_a_folder(reader: Reader) -> None:
    page = reader.open("tutorials/first-store.html")
    page.keyboard.press("/")
    page.keyboard.type("gate sign")
    page.locator("#results a").first.wait_for()
    assert page.locator("#results a").count() > 3
    assert "gate" in page.locator("#results").inner_text().lower()
    page.keyboard.press("ArrowDown")
    target = page.evaluate("() => document.activeElement.href")
    page.keyboard.press("Enter")
    page.wait_for_url(target)
    page.locator("#query").fill("zzyzx")
    page.locator("#results", has_text="Nothing about").wait_for()
    page.locator("#query").fill("graphs repeats")
    page.locator("#results a", has_text="actstore graphs repeats").first.wait_for()


def test_pages_are_reached_where_the_window_is_narrow(reader: Reader) -> None:
    reader.page.set_viewport_size({"width": 400, "height": 800})
    page = reader.open("index.html")
    assert not page.locator("#pages").is_visible()
    page.locator("#menu").click()
    page.locator("#pages a", has_text="Glossary").click()
    page.wait_for_url("**/glossary.html")


OPTIONS = {"preload": False, "rules": {"empty-table-header": {"enabled": False}}}
"""A style sheet cannot be fetched from a folder; and the corner of a table of pandas is empty."""
AXE_RUN = """async (options) => {
  const { passes, violations } = await axe.run(document, options);
  const about = (one) => one.nodes.slice(0, 3).map((node) => [one.id, node.html.slice(0, 160), node.any[0]?.message]);
  return [passes.length, violations.flatMap(about)];
}"""


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here: run `make explorer`")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(reader: Reader, scheme: str) -> None:
    reader.page.emulate_media(color_scheme=scheme)
    faults = {}
    for name in SAMPLE:
        reader.open(name).evaluate(AXE.read_text(encoding="utf-8"))
        passes, found = reader.page.evaluate(AXE_RUN, OPTIONS)
        assert passes > 10
        if found:
            faults[name] = found
    assert faults == {}
