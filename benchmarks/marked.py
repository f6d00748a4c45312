"""Text that scripts write into the documentation, between `<!-- MARK -->` and `<!-- /MARK -->`.

Also the Markdown tables and figures that such text consists of, and the commit that it names."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
WRITTEN = (":!README.md", ":!docs", ":!benchmarks/results")
"""What scripts write: changes there are none of the code that was measured."""


def page_with(mark: str, root: Path = ROOT) -> Path:
    """The one page, of README.md and docs/, that has the marks."""
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    marked = [page for page in pages if f"<!-- {mark} -->\n" in page.read_text()]
    if len(marked) != 1:
        names = ", ".join(str(page.relative_to(root)) for page in marked) or "none"
        raise SystemExit(
            f"Expected one page with <!-- {mark} --> and <!-- /{mark} -->, found {names}: add or remove marks."
        )
    return marked[0]


def rewrite(mark: str, text: str, root: Path = ROOT) -> Path:
    """Replace the text between the marks, which must occur once in README.md and docs/; returns the file that has them."""
    page = page_with(mark, root)
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    page.write_text(pattern.sub(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", page.read_text()))
    return page


def commit(root: Path = ROOT) -> str:
    """The commit that is checked out, and whether the code differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN)
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def spread(values: list[float], form: str = "{:.1f}") -> str:
    """Mean ± standard deviation of the values that are not NaN; a dash for no value, the value alone for one."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "–"
    text = form.format(float(np.mean(known)))
    return text + (f" ± {form.format(float(np.std(known, ddof=1))).lstrip('+')}" if len(known) > 1 else "")
