"""Target tokens: from the text that a user writes to the one token that has it, or to the tokens it is cut into.

Reads the store's vocabulary and tokenizer.json; needs no tokenizer library. Knows nothing about contributions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from actstore.store.errors import InvalidInputError
from actstore.store.model.tokenizer import Cutter

if TYPE_CHECKING:
    from actstore.store.model.root import Root


class Target(NamedTuple):
    """A token asked about."""

    token: int
    text: str


def find_target(store: Root, asked: str | int) -> Target:
    """The token with exactly the text that is asked for, or with that id.

    Of several tokens with one text, the ordinary comes before the special one and the one that spells a single byte, then
    the smaller id. `InvalidInputError` where no token has the text, saying which tokens the text is.
    """
    if isinstance(asked, int):
        limit = store.model.n_vocabulary
        if asked < 0 or (limit is not None and asked >= limit):
            raise InvalidInputError(
                f"Token ids of {store.model.name} go from 0 to {(limit or 1) - 1}, found {asked}. Check the id."
            )
        return Target(asked, store.token_text(asked))
    if store.vocabulary is None:
        raise InvalidInputError(
            f"{store.folder} was captured from token ids and knows no text for them: name the target {asked!r} by its id, "
            "an integer."
        )
    cutter = Cutter(store.folder, store.vocabulary)
    token = cutter.known.ids.get(asked.encode())
    if token is None:
        raise InvalidInputError(_refusal(store, cutter, asked))
    return Target(token, store.token_text(token))


def _refusal(store: Root, cutter: Cutter, asked: str) -> str:
    if not asked:
        return "A target is the text of one token, found an empty one. Check `target`."
    tokens, ids = cutter.word(asked), cutter.known.ids
    if not tokens:
        return (
            f"The target {asked!r} is no token of {store.model.name}, and none of its tokens spell it. Check `target`."
        )
    named = ", ".join(f"{store.token_text(t)!r} ({t})" for t in tokens)
    bare = asked.strip(" ")
    others = [f" {asked}", f"{asked} "] if bare == asked else [bare]
    other = next((text for text in others if text and text.encode() in ids), None)
    hint = f", or {other!r}, which is one token" if other is not None else ""
    first = store.token_text(tokens[0])
    is_named = ids.get(first.encode()) == tokens[0]
    offer = repr(first) if is_named else f"by its id, {tokens[0]}"
    return (
        f"The target {asked!r} is not one token of {store.model.name} but {len(tokens)}: {named}. "
        f"Ask for the first, {offer}{hint}."
    )
