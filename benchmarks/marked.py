"""What scripts write into the documentation: the text between `<!-- MARK -->` and `<!-- /MARK -->`, wherever that stands.

And of what it is made: tables, and figures over seeds.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def rewrite(mark: str, text: str, root: Path = ROOT) -> Path:
    """Put `text` between the marks, which stand once in README.md or in a page of docs/; the file they stand in."""
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    marked = [page for page in pages if f"<!-- {mark} -->\n" in page.read_text()]
    if len(marked) != 1:
        found = ", ".join(str(page.relative_to(root)) for page in marked) or "none"
        raise SystemExit(
            f"Expected one page with <!-- {mark} --> and <!-- /{mark} -->, found {found}: add or remove marks."
        )
    page = marked[0]
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    page.write_text(pattern.sub(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", page.read_text()))
    return page


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def spread(values: list[float], form: str = "{:.1f}") -> str:
    """Mean ± standard deviation of those that are no NaN; a dash for none, of one its value alone."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "–"
    shown = form.format(float(np.mean(known)))
    return shown + (f" ± {form.format(float(np.std(known, ddof=1)))}" if len(known) > 1 else "")
