"""Prompts and scorers of activation patching: texts as token ids that two models share, and what a generation is scored by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.engine.change.activation_patching import REFUSALS, Contains, LogLikelihood
from actstore.engine.change.scorers import SCORERS
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.change.activation_patching import Scorer
    from actstore.engine.models.load import LoadedModel
    from actstore.store.model.root import Root


def encode_prompts(
    texts: Sequence[str], model: str, other: str, loaded: LoadedModel, *, trust_remote_code: bool
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Token ids of every prompt, with the tokenizer's special tokens in front, and the tokens that end a generation."""
    tokenizer, others = (TextTokenizer.load(name, trust_remote_code=trust_remote_code) for name in (model, other))
    if tokenizer.fingerprint != others.fingerprint:
        raise InvalidInputError(
            f"{model} and {other} have different tokenizers: their token ids differ in meaning. Name a model and its "
            "fine-tuned copy."
        )
    config = getattr(loaded.model, "generation_config", None) or loaded.model.config
    end = getattr(config, "eos_token_id", None)
    stop = tuple(end) if isinstance(end, list) else () if end is None else (int(end),)
    return [[*tokenizer.prefix, *ids.tolist()] for ids in tokenizer.encode(list(texts))], stop


def make_scorer(name: str, pattern: str | None, other: LoadedModel, store: Root) -> Scorer:
    """The scorer of a key of `SCORERS`; `regex` needs a `pattern`, `likelihood` is that under `other`.

    `InvalidInputError` for another name, and for a pattern that is missing or means nothing to the scorer.
    """
    if name not in SCORERS:
        raise InvalidInputError(f"`scorer` is one of {', '.join(SCORERS)}, found {name!r}.")
    if (name == "regex") != (pattern is not None):
        need = "needs one" if name == "regex" else "takes none"
        raise InvalidInputError(f"`pattern` is the regular expression of the scorer regex; {name} {need}.")
    if name == "likelihood":
        return LogLikelihood(other)
    return Contains(REFUSALS if pattern is None else pattern, store.text)
