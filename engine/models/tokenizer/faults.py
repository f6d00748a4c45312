"""Why a tokenizer can read no text: a default vocabulary, or one of which most pieces are never produced.

transformers returns a default tokenizer where a folder has a config.json and none of the tokenizer's files. It has special
tokens only, and perhaps a mark for spaces or one symbol: every word is unknown, or gives no token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

MIN_TEXTS: Final = 2
"""A vocabulary with fewer tokens for different texts is a default one: those hold at most one, real ones four (nucleotides),
twenty (amino acids) or more."""


def find_fault(vocabulary: pa.Table, unknown: int | None, state: Mapping[str, Any] | None) -> str:
    """What is wrong, as the end of a sentence; "" where nothing is wrong.

    `unknown` is the id of the unknown token, `state` that of tokenizer.json; None where there is none.
    """
    return _empty(vocabulary, unknown) or (_unmerged(state) if state is not None else "")


def _empty(vocabulary: pa.Table, unknown: int | None) -> str:
    by_kind: tuple[set[bytes], set[bytes]] = set(), set()
    for token, content, special in zip(
        *(vocabulary[n].to_pylist() for n in ("token", "bytes", "special")), strict=True
    ):
        by_kind[special or token == unknown].add(content.strip())
    # Default vocabularies may hold a special token twice, one of them marked special.
    usable = by_kind[0] - by_kind[1] - {b""}
    if len(usable) >= MIN_TEXTS:
        return ""
    return (
        f"its vocabulary of {vocabulary.num_rows} tokens holds {len(usable) or 'none'} that stands for text, as where the "
        "tokenizer's own files, such as tokenizer.json, are missing"
    )


def _unmerged(state: Mapping[str, Any]) -> str:
    """What is wrong with a byte-pair model whose merges are missing: it reads every text character by character."""
    model = state["model"]
    if model.get("type") != "BPE" or model.get("merges") or model.get("ignore_merges"):
        return ""
    marks = [model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""]
    added = {item["content"] for item in state.get("added_tokens") or ()}
    pieces = [p.removeprefix(marks[0]).removesuffix(marks[1]) for p in model["vocab"] if p not in added]
    n_long = sum(len(p) > 1 and not (p.startswith("<0x") and len(p) == 6) for p in pieces)
    if n_long <= len(pieces) / 2:
        return ""
    return (
        f"{n_long} of the {len(pieces)} pieces of its vocabulary are longer than a character, and there are no merges to make "
        "them, as where merges.txt is missing"
    )
