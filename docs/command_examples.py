"""Examples of every command for the page of the command line, with their output, from the pages on which tests run them.

Nothing is made up here: a page shows what a command printed (`demo/tour.py` writes it there), and the example is that block.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parent
SUBJECTS = {
    "demo": "install.md",
    "inspect": "capture.md",
    "capture": "capture.md",
    "sizes": "scale.md",
    "plan": "scale.md",
    "fill": "scale.md",
    "finish": "scale.md",
    "import": "neighbours.md",
    "info": "read.md",
    "verify": "capture.md",
    "repair": "capture.md",
    "copy": "locations.md",
    "reorder": "capture.md",
    "top": "read.md",
    "stats": "read.md",
    "sql": "read.md",
    "export": "read.md",
    "serve": "explorer.md",
    "site": "explorer.md",
    "contributions": "methods/contributions.md",
    "attribute": "methods/naica.md",
    "naica": "methods/naica.md",
    "questions": "methods/naica.md",
    "knowledge": "methods/knowledge.md",
    "selectivity": "methods/selectivity.md",
    "change": "methods/change.md",
    "coverage": "methods/coverage.md",
    "coactivation": "methods/coactivation.md",
    "graphs": "methods/graphs.md",
    "explain": "explanations.md",
    "multimodal": "methods/multimodal.md",
    "edit": "methods/edit.md",
}
"""The page on which a command, or a group of commands, is explained; its examples are taken from there first."""
_FENCE = re.compile(
    r"^```console\n(?P<block>.*?)^```\n(?:\n!\[(?P<about>[^\]]*)\]\((?P<picture>[^)]+)\))?", re.MULTILINE | re.DOTALL
)
_HEADING = re.compile(r"^#{1,4} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A command line and what it printed, on a page."""

    page: str
    place: str
    """The anchor of the heading under which it stands."""
    command: str
    """Such as `graphs show`."""
    block: str
    picture: str | None
    """Path of the picture that it drew, below docs/."""
    about: str
    """What the picture shows."""

    @property
    def has_output(self) -> bool:
        """Whether the command printed something."""
        return any(not line.startswith("$ ") for line in self.block.splitlines())


def anchor_of(heading: str) -> str:
    """The anchor that Python-Markdown gives a heading, which is not there where the tests run."""
    plain = unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def command_of(line: str, groups: dict[str, list[str]]) -> str:
    """Which command a command line runs: `naica facts.actstore` is `naica show`. `groups`: group → its subcommands."""
    words = shlex.split(line)[1:]
    if words[0] not in groups:
        return words[0]
    return f"{words[0]} {words[1]}" if words[1] in groups[words[0]] else f"{words[0]} show"


def examples_of(page: str, groups: dict[str, list[str]]) -> Iterator[Example]:
    """Every command that a page shows with its output, in its order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        first = found["block"].split("\n", 1)[0]
        if not first.startswith("$ actstore "):
            continue
        heading = [match[1] for match in _HEADING.finditer(text, 0, found.start())][-1]
        picture = found["picture"] and posixpath.normpath(posixpath.join(posixpath.dirname(page), found["picture"]))
        place = anchor_of(heading)
        yield Example(page, place, command_of(first[2:], groups), found["block"], picture, found["about"] or "")


@cache
def _pages() -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))


def example_for(command: str, groups: dict[str, list[str]]) -> Example | None:
    """The example of a command: of its own page if that has one, with output; and with the picture that it draws there."""
    own = SUBJECTS[command.split()[0]]
    pages = dict.fromkeys((own, *_pages()))
    found = [one for page in pages for one in examples_of(page, groups) if one.command == command]
    if not found:
        return None
    best = min(
        found, key=lambda one: (one.page != own, not one.has_output, "--dry-run" in one.block, one.picture is None)
    )
    drawing = next((one for one in found if one.page == best.page and one.picture), None)
    if best.picture or drawing is None:
        return best
    return replace(best, block=best.block + drawing.block, picture=drawing.picture, about=drawing.about)


def title_of(page: str) -> str:
    """The heading of a page."""
    found = _HEADING.search((DOCS / page).read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def as_markdown(example: Example) -> str:
    """An example with a link to where it stands, and the picture that it drew."""
    parts = [
        f"**On the demo model**, from [{title_of(example.page)}]({example.page}#{example.place}):",
        f"```console\n{example.block}```",
    ]
    if example.picture:
        parts.append(f"![{example.about}]({example.picture})")
    return "\n\n".join(parts) + "\n\n"
