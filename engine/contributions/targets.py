"""Target tokens: from the text that a user writes to the one token that has it, or to the tokens it is tokenised into.

Reads the store's vocabulary and tokenizer.json; needs no tokenizer library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from actstore.store.errors import InvalidInputError
from actstore.store.model.tokenizer import StoredTokenizer

if TYPE_CHECKING:
    from actstore.store.model.root import Root


class Target(NamedTuple):
    """A target token."""

    token: int
    text: str


def find_target(store: Root, target: str | int) -> Target:
    """The token with exactly the text of `target`, or with that id.

    Of several tokens with one text, the ordinary comes before the special one and the one that spells a single byte, then
    the smaller id. `InvalidInputError` where no token has the text, saying which tokens the text is.
    """
    if isinstance(target, int):
        limit = store.model.n_vocabulary
        if target < 0 or (limit is not None and target >= limit):
            raise InvalidInputError(
                f"Token ids of {store.model.name} go from 0 to {(limit or 1) - 1}, found {target}. Check the id."
            )
        return Target(target, store.token_text(target))
    if store.vocabulary is None:
        raise InvalidInputError(
            f"{store.folder} was captured from token ids and knows no text for them: name the target {target!r} by its id, "
            "an integer."
        )
    tokenizer = StoredTokenizer(store.folder, store.vocabulary)
    token = tokenizer.vocabulary.ids.get(target.encode())
    if token is None:
        raise InvalidInputError(_refusal(store, tokenizer, target))
    return Target(token, store.token_text(token))


def other_spelling(store: Root, target: Target) -> Target | None:
    """The token of the same word with a space before it, or without where `target` has one; None where there is none.

    Most vocabularies have both: a word within a text begins with the space, at the beginning of a line it does not.
    """
    bare = target.text.lstrip(" ")
    if store.vocabulary is None or not bare:
        return None
    text = bare if bare != target.text else f" {bare}"
    token = StoredTokenizer(store.folder, store.vocabulary).vocabulary.ids.get(text.encode())
    return None if token is None else Target(token, store.token_text(token))


def _refusal(store: Root, tokenizer: StoredTokenizer, target: str) -> str:
    if not target:
        return "A target is the text of one token, found an empty one. Check `target`."
    tokens, ids = tokenizer.encode_word(target), tokenizer.vocabulary.ids
    if not tokens:
        return (
            f"The target {target!r} is no token of {store.model.name}, and none of its tokens spell it. Check `target`."
        )
    named = ", ".join(f"{store.token_text(t)!r} ({t})" for t in tokens)
    bare = target.strip(" ")
    others = [f" {target}", f"{target} "] if bare == target else [bare]
    other = next((text for text in others if text and text.encode() in ids), None)
    hint = f", or {other!r}, which is one token" if other is not None else ""
    first = store.token_text(tokens[0])
    is_named = ids.get(first.encode()) == tokens[0]
    offer = repr(first) if is_named else f"by its id, {tokens[0]}"
    return (
        f"The target {target!r} is not one token of {store.model.name} but {len(tokens)}: {named}. "
        f"Ask for the first, {offer}{hint}."
    )
