"""Files of the documentation's site beside its pages: colours of code, the icon, search. A hook of MkDocs.

The theme is ours (docs/theme): MkDocs' own has a dark form only with a script from elsewhere, and searches only where a server
answers. Here everything lies in the site's folder, and works from there.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import mkdocs.contrib.search
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES, Generic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LIGHT, DARK = "default", "github-dark"
"""Styles of Pygments; the contrast of their colours is tested (tests/test_browser_documentation.py)."""
_PLAIN = (Generic.Output, Generic.Error)
"""What commands print is read, not skimmed: it has the colour of text."""
_SHORT_CODE = re.compile(r"<code>(?=[^<]{1,24}</code>)")
"""Of an option, `--name`, no line may end behind a hyphen; what is longer may be divided, lest pages get too wide."""
_TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)


def code_colours() -> str:
    """A style sheet for highlighted code: of each kind of token its colour in light and in dark."""
    light, dark = get_style_by_name(LIGHT), get_style_by_name(DARK)
    return "\n".join(_rules(light, dark)) + "\n"


def _rules(light: type, dark: type) -> Iterator[str]:
    for kind, name in STANDARD_TYPES.items():
        if not name or kind in _PLAIN:
            continue
        by_day, by_night = light.style_for_token(kind), dark.style_for_token(kind)
        rules = []
        if by_day["color"] or by_night["color"]:
            day, night = (f"#{style['color']}" if style["color"] else "var(--ink)" for style in (by_day, by_night))
            rules.append(f"color: light-dark({day}, {night})")
        if by_day["italic"]:
            rules.append("font-style: italic")
        if rules:
            yield f".highlight .{name} {{ {'; '.join(rules)} }}"


def with_scrolling_tables(page: str) -> str:
    """HTML of a page whose tables scroll sideways, each by itself, where they are wider than the window."""
    return _TABLE.sub(lambda found: f'<div class="scroll">{found[0]}</div>', page)


def with_whole_words_of_code(page: str) -> str:
    """HTML of a page in which short pieces of code stay in one line."""
    return _SHORT_CODE.sub('<code class="whole">', page)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the style sheet and the icon of the explorer."""
    from mkdocs.structure.files import File

    icon = (ROOT / "explorer" / "frontend" / "icon.svg").read_text(encoding="utf-8")
    for name, content in (("assets/code.css", code_colours()), ("assets/icon.svg", icon)):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tables of a page in boxes that scroll, and short pieces of code in one line."""
    return with_whole_words_of_code(with_scrolling_tables(html))


def on_post_build(config: MkDocsConfig) -> None:
    """The index of search as a script, which a page opened from a folder may load, and lunr, which reads it."""
    folder = Path(config.site_dir) / "search"
    index = json.loads((folder / "search_index.json").read_text(encoding="utf-8"))
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
    (folder / "search_index.js").write_text(f"window.searchIndex = {text};\n", encoding="utf-8")
    (folder / "search_index.json").unlink()
    lunr = Path(mkdocs.contrib.search.__file__).parent / "templates" / "search" / "lunr.js"
    shutil.copyfile(lunr, folder / "lunr.js")
