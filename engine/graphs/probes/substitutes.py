"""Substitutes of words as predicted by a masked language model, and those of them that are one token of another model.

The two models need not have the same tokenizer: they exchange texts and the positions of words in them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
import transformers

from actstore.engine.models.checkpoints import first_line, load_config, load_weights
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.errors import InvalidInputError, ModelError
from actstore.store.model.tokenizer import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from actstore.store.model.root import Root

LEAST: Final = 1e-5
"""Minimum probability of a substitute (Foote et al. 2023)."""
BATCH_TOKENS: Final = 4096
N_CANDIDATES: Final = 1000
"""Maximum number of a model's words, the likeliest, that are tried as substitutes."""


class _Word(NamedTuple):
    """A word of a text that is to be masked."""

    before: str
    core: str
    """The word without outer spaces, which stay in the text."""
    after: str

    @classmethod
    def at(cls, text: str, start: int, stop: int) -> _Word:
        core = text[start:stop].strip()
        first = start + text[start:stop].find(core)
        return cls(text[:first], core, text[first + len(core) :])

    @property
    def continues(self) -> bool:
        """Whether it is the continuation of a word."""
        return self.before[-1:].isalnum() and self.core[:1].isalnum()

    @property
    def follows_space(self) -> bool | None:
        """Whether a space is before it; None at the beginning of the text."""
        return self.before[-1].isspace() if self.before else None


@dataclass(frozen=True)
class MaskedModel:
    """A masked language model and its tokenizer."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase

    @classmethod
    def load(cls, name: str, *, device: str = "auto", trust_remote_code: bool = False) -> MaskedModel:
        """The model of a folder or Hub id; `ModelError` where it is no masked language model."""
        config = load_config(name, trust_remote_code=trust_remote_code)
        kind: Any = transformers.MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
        if kind is None:
            raise ModelError(
                f"{name!r} is a {config.model_type}, which fills no masks. Expected a masked language model, "
                "such as distilbert/distilbert-base-cased."
            )
        target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        model = load_weights(
            kind, name, dtype="float32", device=torch.device(target), trust_remote_code=trust_remote_code
        )
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
            raise ModelError(f"The tokenizer of {name!r} cannot be loaded: {first_line(error)}") from error
        if tokenizer.mask_token_id is None or not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer of {name!r} has no mask token, or does not give the positions of tokens in a text."
            )
        if fault := TextTokenizer(tokenizer).fault:
            raise ModelError(f"The tokenizer of {name!r} cannot read text: {fault}.")
        model.eval()  # type: ignore[no-untyped-call]
        return cls(model, tokenizer)

    def substitutes(
        self,
        contexts: Sequence[str],
        spans: Sequence[tuple[int, int]],
        k: int,
        *,
        least: float = LEAST,
        accepts: Callable[[int, str], bool] = lambda number, text: True,
    ) -> list[list[str]]:
        """[context] the k likeliest texts in place of `context[start:stop]`, of probability `least` or more, likeliest first.

        A substitute has the outer spaces and the capitals of the span, and differs from it in more than case. The continuation
        of a word is replaced by continuations of words. A span of spaces only, or of an incomplete character, has none.
        accepts: whether a text may be a substitute in the context of that number. Ties go to the model's smaller token.
        """
        words = [_Word.at(text, *span) for text, span in zip(contexts, spans, strict=True)]
        substitutes: list[list[str]] = [[] for _ in words]
        for batch in self._batches(words):
            ids = torch.tensor([ids for _, ids, _ in batch], device=self.model.device)
            with torch.inference_mode():
                logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            rows = torch.arange(len(batch), device=self.model.device)
            masks = torch.tensor([position for *_, position in batch], device=self.model.device)
            probabilities = logits[rows, masks].float().softmax(-1)
            for (number, *_), row in zip(batch, probabilities.cpu().numpy(), strict=True):
                start, stop = spans[number]
                word = words[number]
                margin = contexts[number][start:stop].split(word.core, 1)
                texts = (margin[0] + text + margin[1] for text in self._texts(word, row, least))
                substitutes[number] = _first_distinct(k, (text for text in texts if accepts(number, text)))
        return substitutes

    def _batches(self, words: Sequence[_Word]) -> Iterable[list[tuple[int, list[int], int]]]:
        """(number, tokens, position of the mask) of each word that can be masked; a batch has one length and no padding."""
        by_length: dict[int, list[tuple[int, list[int], int]]] = {}
        for number, word in enumerate(words):
            if word.core and "\ufffd" not in word.core and (masked := self._mask(word)) is not None:
                by_length.setdefault(len(masked[0]), []).append((number, *masked))
        for length, rows in sorted(by_length.items()):
            size = max(1, BATCH_TOKENS // length)
            for first in range(0, len(rows), size):
                yield rows[first : first + size]

    def _mask(self, word: _Word) -> tuple[list[int], int] | None:
        """The tokens of the text with the word masked, and the position of the mask; None where it is not one token."""
        before, after = word.before, word.after
        encoded = self._encode(before, after)
        if len(encoded["input_ids"]) > self._longest:
            # A character is at most one token, with few exceptions: the text furthest from the mask is left out.
            before, after = before[-(self._longest // 2) + 4 :], after[: self._longest // 2 - 4]
            encoded = self._encode(before, after)
        ids: list[int] = encoded["input_ids"]
        positions = [
            i
            for i, (token, (start, stop)) in enumerate(zip(ids, encoded["offset_mapping"], strict=True))
            if token == self.tokenizer.mask_token_id and start <= len(before) < stop
        ]
        return (ids, positions[0]) if len(positions) == 1 and len(ids) <= self._longest else None

    def _encode(self, before: str, after: str) -> transformers.BatchEncoding:
        text = f"{before}{self.tokenizer.mask_token}{after}"
        encoding: transformers.BatchEncoding = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        return encoding

    @cached_property
    def _longest(self) -> int:
        context = getattr(self.model.config, "max_position_embeddings", None) or 512
        # Models such as RoBERTa number positions from the id of the padding token + 1, which costs two of them.
        return int(min(context - 2, self.tokenizer.model_max_length))

    @cached_property
    def _vocabulary(self) -> tuple[list[str], NDArray[np.bool_], NDArray[np.bool_]]:
        """[token] its text without outer spaces; whether a space is before it; whether it is text that can be a substitute."""
        table = TextTokenizer(self.tokenizer).vocabulary()
        texts = table["text"].to_pylist()
        usable = [
            not special and text.strip() != "" and "\ufffd" not in text and not any(map(str.isspace, text[1:]))
            for text, special in zip(texts, table["special"].to_pylist(), strict=True)
        ]
        usable = [u and i != self.tokenizer.unk_token_id for i, u in enumerate(usable)]
        return [t.strip() for t in texts], np.array([t[:1].isspace() for t in texts]), np.array(usable)

    @cached_property
    def _has_continuations(self) -> bool:
        """Whether the tokenizer marks the continuations of words (WordPiece) instead of their beginnings."""
        model = json.loads(self.tokenizer.backend_tokenizer.to_str())["model"]
        return bool(model.get("continuing_subword_prefix"))

    def _texts(self, word: _Word, probabilities: NDArray[np.float32], least: float) -> Iterable[str]:
        """The texts that may replace the word, likeliest first."""
        texts, spaced, usable = self._vocabulary
        fits = usable & (probabilities[: len(texts)] >= least)
        if self._has_continuations:
            fits &= spaced != word.continues
        elif word.follows_space is not None:
            fits &= spaced == word.follows_space
        candidates = np.flatnonzero(fits)
        order = np.argsort(-probabilities[candidates], kind="stable")[:N_CANDIDATES]
        for token in candidates[order].tolist():
            text = _with_capitals(texts[token], word)
            if text.casefold() != word.core.casefold():
                yield text


def masked_substitutes(
    model: str, contexts: Sequence[str], spans: Sequence[tuple[int, int]], k: int, *, device: str = "auto"
) -> list[list[str]]:
    """The substitutes of each span by the masked language model of a folder or Hub id; see `MaskedModel.substitutes`.

    >>> masked_substitutes("distilbert/distilbert-base-cased", ["The cat sat."], [(3, 7)], k=2)  # in place of " cat"
    """
    return MaskedModel.load(model, device=device).substitutes(contexts, spans, k)


class MaskedSubstitutes:
    """Substitutes of tokens: those that a masked language model predicts and that are one token of the store's model."""

    def __init__(self, model: MaskedModel, store: Root, excluded: frozenset[int]) -> None:
        """Special tokens of the store, and those of `excluded`, are no substitutes."""
        if store.vocabulary is None:
            raise InvalidInputError(
                f"{store.folder} was captured from token ids and has no text that a masked language model could read. Leave "
                "out `substitutes_model`."
            )
        special = store.vocabulary["special"].to_numpy(zero_copy_only=False)
        self._specials = frozenset(store.vocabulary["token"].to_numpy()[special].tolist())
        self._model, self._store, self._excluded = model, store, excluded | self._specials
        self._ids = Vocabulary(store.vocabulary).ids
        self._cache: dict[tuple[bytes, int, int], list[int]] = {}

    def of(self, ids: NDArray[np.int32], position: int, k: int) -> list[int]:
        """The k likeliest substitutes of the token at `position`, likeliest first."""
        return self.of_all([(ids, position)], k)[0]

    def of_all(self, tokens: Sequence[tuple[NDArray[np.int32], int]], k: int) -> list[list[int]]:
        """The substitutes of several tokens, each a window and a position; repeated ones are predicted once."""
        keys = [(ids.tobytes(), position, k) for ids, position in tokens]
        new = {key: one for key, one in zip(keys, tokens, strict=True) if key not in self._cache}
        texts, spans = [], []
        for ids, position in new.values():
            text, start, stop = self._text(ids, position)
            texts.append(text)
            spans.append((start, stop))
        originals = [int(ids[position]) for ids, position in new.values()]

        def accepts(number: int, text: str) -> bool:
            token = self._ids.get(text.encode(), originals[number])
            return token != originals[number] and token not in self._excluded

        predicted = self._model.substitutes(texts, spans, k, accepts=accepts)
        for key, substitutes in zip(new, predicted, strict=True):
            self._cache[key] = [self._ids[text.encode()] for text in substitutes]
        return [self._cache[key] for key in keys]

    def _text(self, ids: NDArray[np.int32], position: int) -> tuple[str, int, int]:
        """The text of a window, and the start and stop of a token in it."""
        parts = [b"" if token in self._specials else self._store.token_bytes(token) for token in ids.tolist()]
        before, own = b"".join(parts[:position]), parts[position]
        texts = [part.decode(errors="replace") for part in (before, own, b"".join(parts[position + 1 :]))]
        return "".join(texts), len(texts[0]), len(texts[0]) + len(texts[1])


def _with_capitals(text: str, word: _Word) -> str:
    """A text with the capitals of the word that it replaces."""
    if len(word.core) > 1 and word.core.isupper():
        return text.upper()
    return text[:1].upper() + text[1:] if word.core[:1].isupper() else text


def _first_distinct(k: int, texts: Iterable[str]) -> list[str]:
    """The first k distinct texts."""
    distinct: dict[str, None] = {}
    for text in texts:
        if len(distinct) == k:
            break
        distinct.setdefault(text)
    return list(distinct)
