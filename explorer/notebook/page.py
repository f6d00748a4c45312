"""The explorer as one text, for a frame that may reach nothing: the bundle is in it, and a policy lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from actstore.explorer.bundle_files import bundle_text


def notebook_page(route: str, *, card: bool) -> str:
    """The page that opens at a route, such as `#/0/neuron/corpus/mlp.post/L3.N17`; a card lacks the frame around it."""
    script, style = (bundle_text(name) for name in ("explorer.js", "explorer.css"))
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        f'<!doctype html><html lang="en" data-form="notebook" data-route="{escape(route)}"{" data-card" if card else ""}>'
        f'<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>actstore</title><style>{style}</style></head>"
        f'<body><div id="explorer"></div><script>{script}</script></body></html>'
    )


def _source(text: str) -> str:
    """A text as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
