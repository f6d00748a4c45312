"""Docstrings as Markdown: their `>>>` examples become Python blocks. An extension of Griffe, which reads the sources."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^>>> .*(?:\n(?:>>>|\.\.\.) .*)*", re.MULTILINE)


_PATTERN = re.compile(r'"[^"\n`]*\*[^"\n`]*"')
"""A text in quotes with an asterisk, such as "*.py": two of them would be italics."""


def as_markdown(docstring: str) -> str:
    """A docstring with each run of `>>>` lines fenced, and quoted patterns as code."""
    fenced = _EXAMPLE.sub(lambda found: f"```python\n{found[0]}\n```", docstring)
    return _PATTERN.sub(lambda found: f"`{found[0]}`", fenced)


class Examples(Extension):
    """Fences the examples of every docstring as it is read."""

    def on_instance(self, *, obj: Object, **_kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
