"""What the documentation's site is made of beside its pages: colours of code, boxes of tables, code that stays in one line."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hook() -> Any:
    pytest.importorskip("mkdocs", reason="`make docs` installs what builds the documentation")
    return load("site_files")


def test_each_table_has_a_box_of_its_own(hook: Any) -> None:
    page = '<p>a</p><table>\n<tr><td>1</td></tr>\n</table><p>b</p><table border="1"></table>'
    boxed = hook.with_scrolling_tables(page)
    assert boxed.count('<div class="scroll"><table') == 2
    assert boxed.count("</table></div>") == 2
    assert boxed.replace('<div class="scroll">', "").replace("</div>", "") == page


def test_short_code_stays_in_one_line_and_long_code_may_not(hook: Any) -> None:
    long_code = "a.module.with.a.path::and_a_name"
    page = f'<code>--in-place</code><code>{long_code}</code><pre><code class="x">a</code></pre>'
    assert hook.with_whole_words_of_code(page) == page.replace("<code>--", '<code class="whole">--')


def test_every_kind_of_token_has_a_colour_for_either_scheme(hook: Any) -> None:
    rules = dict(
        re.findall(r"^\.highlight \.(\w+) \{ color: (light-dark\([^)]*\)\)?|[^;}]*)", hook.code_colours(), re.MULTILINE)
    )
    assert {"k", "s2", "c1", "mi", "nf"} <= set(rules)
    assert all(value.startswith("light-dark(") for value in rules.values())
    assert "go" not in rules  # what commands print has the colour of text


def test_patterns_of_docstrings_are_code() -> None:
    pytest.importorskip("griffe", reason="`make docs` installs what builds the documentation")
    as_markdown = load("docstrings").as_markdown
    assert as_markdown('such as "*.py" ["*"]') == 'such as `"*.py"` [`"*"`]'
    assert as_markdown('with "cut" [a * b]') == 'with "cut" [a * b]'
    assert as_markdown(">>> 1\n>>> 2") == "```python\n>>> 1\n>>> 2\n```"
