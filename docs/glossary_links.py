"""Words of the glossary, linked to it where they first appear on a page. A hook of MkDocs.

The first column of the glossary's tables says which words these are. Only text is looked at: no code, heading, link, table of
contents or figure. A word of everyday English, which a page may use in its everyday sense, is in `EVERYDAY` and not linked.
"""

from __future__ import annotations

import html
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

GLOSSARY = Path(__file__).with_name("glossary.md")
EVERYDAY = {
    "block", "capture", "cluster", "control", "detection", "edit", "explanation", "fires", "gain", "here",
    "importance", "label", "map", "margin", "mask", "neuron", "overlap", "patch", "path", "plan", "position",
    "precision", "prediction", "probes", "promoted", "query", "reference", "reliability", "request", "share", "site",
    "slot", "statistics", "store", "subset", "target", "threshold", "up", "window",
}  # fmt: skip
"""Words that mean what a reader takes them for, or that every page has."""
_ROW = re.compile(r"^\| (?!here \|)(?!---)([^|]+?) \|", re.MULTILINE)
_TAG = re.compile(r"(<[^>]+>)")
_NOT_TEXT = "a|code|pre|h[1-6]|figcaption|script|style|svg|th"
_OPEN, _CLOSE = re.compile(rf"<({_NOT_TEXT})\b"), re.compile(rf"</({_NOT_TEXT})>")


def anchor(term: str) -> str:
    """The name of a word's place on the glossary's page."""
    return "term-" + re.sub(r"\W+", "-", term.lower()).strip("-")


@cache
def terms() -> dict[str, str]:
    """Each word, in lower case, and the place where it is explained: of a cell `promoted, suppressed tokens`, both words."""
    found: dict[str, str] = {}
    for cell in _ROW.findall(GLOSSARY.read_text(encoding="utf-8")):
        place = anchor(cell)
        for word in re.split(r"[,;]", re.sub(r"\(.*?\)|`[^`]*`", "", cell)):
            if len(name := word.strip().lower()) > 2 and name not in EVERYDAY:
                found.setdefault(name, place)
    return found


def with_links(page: str, to_glossary: str) -> str:
    """HTML of a page in which each word of the glossary is a link where it first appears, also in its plural."""
    words = sorted(terms(), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, words))})(s?)(?![\w-])", re.IGNORECASE)
    seen: set[str] = set()

    def link(match: re.Match[str]) -> str:
        place = terms()[match[1].lower()]
        if place in seen:
            return match[0]
        seen.add(place)
        return f'<a class="term" href="{html.escape(to_glossary)}#{place}">{match[0]}</a>'

    parts, closed_by = [], ""
    for part in _TAG.split(page):
        if part.startswith("<"):
            if not closed_by and (opened := _OPEN.match(part)):
                closed_by = opened[1]
            elif closed_by and (shut := _CLOSE.match(part)) and shut[1] == closed_by:
                closed_by = ""
        elif not closed_by:
            part = pattern.sub(link, part)
        parts.append(part)
    return "".join(parts)


def with_anchors(markdown: str) -> str:
    """The glossary with a place that can be linked to in each row."""
    return _ROW.sub(lambda row: f'| <span id="{anchor(row[1])}"></span>{row[1]} |', markdown)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Anchors, on the glossary's own page."""
    return with_anchors(markdown) if page.file.src_uri == "glossary.md" else markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links, on all others that are written by hand."""
    glossary = files.get_file_from_path("glossary.md")
    if glossary is None or page.file.src_uri in ("glossary.md", "api.md", "command-line.md"):
        return html
    return with_links(html, glossary.url_relative_to(page.file))
