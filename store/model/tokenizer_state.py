"""The steps of a tokenizer.json, for readers without a tokenizer library."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A piece that stands for one byte, in models with byte fallback."""


def steps(step: Mapping[str, Any] | None, plural: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder in order; `plural` is the key of a sequence's steps."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for one in step[plural]:
            yield from steps(one, plural)
    else:
        yield step


def encoding_steps(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All steps before the model."""
    return [*steps(state.get("normalizer"), "normalizers"), *steps(state.get("pre_tokenizer"), "pretokenizers")]


def is_byte_level(state: Mapping[str, Any]) -> bool:
    """Whether the model reads bytes as the characters that GPT-2 maps them to."""
    return any(step["type"] == "ByteLevel" for step in encoding_steps(state))


def space_marks(state: Mapping[str, Any]) -> list[str]:
    """The characters that replace a space, such as "\u2581"; none where spaces are removed or kept."""
    marks: dict[str, None] = {}
    for step in encoding_steps(state):
        if step["type"] == "Metaspace":
            marks[step["replacement"]] = None
        elif step["type"] == "Replace" and step["content"].strip() and _matches_a_space(step["pattern"]):
            marks[step["content"]] = None
    return list(marks)


def word_suffix(state: Mapping[str, Any]) -> str:
    """The suffix of pieces that end a word, such as `</w>`; "" where there is none."""
    decoder = (step["suffix"] for step in steps(state.get("decoder"), "decoders") if step["type"] == "BPEDecoder")
    return str(state["model"].get("end_of_word_suffix") or next(decoder, ""))


def _matches_a_space(pattern: Mapping[str, str]) -> bool:
    if "String" in pattern:
        return pattern["String"] == " "
    try:
        return re.fullmatch(pattern.get("Regex", ""), " ") is not None
    except re.error:  # an Oniguruma pattern that Python does not have; none of those known matches a space
        return False
