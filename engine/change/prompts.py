"""Prompts and scorers of activation patching: texts as token ids that two models share, and what a generation is scored by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.engine.change.activation_patching import REFUSALS, Contains, LogLikelihood
from actstore.engine.change.own_scorer import OwnScorer, load_function
from actstore.engine.change.scorers import SCORERS
from actstore.engine.models.generation.text import end_tokens
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.change.activation_patching import Scorer
    from actstore.engine.change.own_scorer import TextScore
    from actstore.engine.models.load import LoadedModel
    from actstore.store.model.root import Root


def encode_prompts(
    texts: Sequence[str],
    model: str,
    other: str,
    loaded: LoadedModel,
    *,
    trust_remote_code: bool,
    chat: bool | None = None,
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Token ids of every prompt, and the tokens that end a generation.

    Prompts are in the chat template of the tokenizer where it has one (None) or it is to be used (`chat`), else plain with the
    tokenizer's special tokens in front. `InvalidInputError` where there is no template to use, or tokenizers differ.
    """
    tokenizer, others = (TextTokenizer.load(name, trust_remote_code=trust_remote_code) for name in (model, other))
    if tokenizer.fingerprint != others.fingerprint:
        raise InvalidInputError(
            f"{model} and {other} have different tokenizers: their token ids differ in meaning. Name a model and its "
            "fine-tuned copy."
        )
    stop = tuple(sorted(end_tokens(loaded)))
    if chat and tokenizer.chat_template is None:
        raise InvalidInputError(f"{model} has no chat template with its tokenizer. Leave `chat` out.")
    if chat is False or tokenizer.chat_template is None:
        return [[*tokenizer.prefix, *ids.tolist()] for ids in tokenizer.encode(list(texts))], stop
    return [ids.tolist() for ids in tokenizer.encode([tokenizer.in_chat_template(text) for text in texts])], stop


def check_scorer(scorer: str | TextScore, pattern: str | None, function: str | None) -> None:
    """Raise `InvalidInputError` for another name, and for a pattern or function that is missing or means nothing to it."""
    if callable(scorer):
        scorer = "a function"
    elif scorer not in SCORERS:
        raise InvalidInputError(f"`scorer` is one of {', '.join(SCORERS)}, found {scorer!r}.")
    if (scorer == "regex") != (pattern is not None):
        need = "needs one" if scorer == "regex" else "takes none"
        raise InvalidInputError(f"`pattern` is the regular expression of the scorer regex; {scorer} {need}.")
    if (scorer == "function") != (function is not None):
        need = "needs it" if scorer == "function" else "takes none"
        raise InvalidInputError(f"`function` is the name of the scorer function, as module:name; {scorer} {need}.")


def make_scorer(
    scorer: str | TextScore, pattern: str | None, function: str | None, other: LoadedModel, store: Root
) -> Scorer:
    """The scorer of a key of `SCORERS`, or a function of the texts of prompt and generation.

    `regex` needs a `pattern`, `function` the name of one; `likelihood` is that under `other`. Errors as of `check_scorer`.
    """
    check_scorer(scorer, pattern, function)
    if callable(scorer):
        return OwnScorer(scorer, store.text)
    if function is not None:
        return OwnScorer(load_function(function), store.text)
    if scorer == "likelihood":
        return LogLikelihood(other)
    return Contains(REFUSALS if pattern is None else pattern, store.text)
