"""What is found, put into rows: neurons with their names, scores and top tokens. Knows nothing about how they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.store.model.top_tokens import texts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.multimodal.concepts import Concept
    from actstore.engine.multimodal.result import Multimodal


class Rows:
    """Rankings of a result as lists of `{neuron, score, tokens}`, every neuron's tokens being looked up once."""

    def __init__(self, found: Multimodal) -> None:
        self._found = found
        numbers = np.unique(np.concatenate([ranked.tokens.reshape(-1) for ranked in found.ranked.values()]))
        numbers = numbers[numbers >= 0]
        texts = texts_of(found.capture.folder, found.numbering.pairs(numbers), found.settings.gain)
        self._tokens = dict(zip(numbers.tolist(), texts, strict=True))

    def ranking(self, numbers: NDArray[np.int64], scores: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
        """The neurons of one ranking, best first."""
        there = numbers >= 0
        names = self._found.numbering.names(numbers[there])
        return [
            {"neuron": name, "score": score, "tokens": self._tokens[number].top}
            for name, number, score in zip(names, numbers[there].tolist(), scores[there].tolist(), strict=True)
        ]

    def _at_noun(self, number: int, form: str) -> list[dict[str, Any]]:
        """The same with each neuron's activation at the noun and what it writes there, of −w where it is below zero."""
        ranked = self._found.ranked[form]
        rows = self.ranking(ranked.tokens[number], ranked.values[number])
        activations = self._found.activations(form)[number].tolist()
        written = self._found.written_activations(form)
        for i, (row, neuron) in enumerate(zip(rows, ranked.tokens[number].tolist(), strict=False)):
            row["activation"] = activations[i]
            self._add_written(row, neuron, None if written is None else written[number, i : i + 1])
        return rows

    def _add_written(self, row: dict[str, Any], neuron: int, activations: NDArray[np.float32] | None) -> None:
        """Add `writes`: the tokens that the neuron promotes where it has these activations, null where their signs differ.

        Its bottom tokens stand beside, except where it is above zero throughout.
        """
        own = self._tokens[neuron]
        row["writes"] = None if activations is None else own.written(activations)
        if activations is None or (activations < 0).any() or row["writes"] is None:
            row["bottom_tokens"] = own.bottom

    def noun(self, number: int) -> dict[str, Any]:
        """A noun of a caption: noun, token, text, position, neurons; in several forms `forms` with each, and their overlap."""
        found, noun = self._found, self._found.nouns[number]
        row: dict[str, Any] = {
            "noun": noun.word,
            "token": noun.token,
            "text": found.capture.store.token_text(noun.token),
            "position": noun.position,
            "neurons": self._at_noun(number, found.settings.forms[0]),
        }
        if len(found.ranked) > 1:
            every = {form: ranked.tokens[number] for form, ranked in found.ranked.items()}
            sets = [set(numbers[numbers >= 0].tolist()) for numbers in every.values()]
            row["forms"] = {form: self._at_noun(number, form) for form in every}
            row["overlap"] = len(set.intersection(*sets)) / found.settings.k
        return row

    def captions(self) -> list[dict[str, Any]]:
        """All captions with their nouns."""
        rows: list[dict[str, Any]] = [
            {"document": caption.document, "image": caption.image, "caption": plain(caption.text), "nouns": []}
            for caption in self._found.captions
        ]
        for number, noun in enumerate(self._found.nouns):
            rows[noun.caption]["nouns"].append(self.noun(number))
        return rows

    def concepts(self, every: Sequence[Concept]) -> list[dict[str, Any]]:
        """Nouns over all captions: noun, captions, neurons with the share of the captions that they serve.

        And how a neuron stands at these captions' nouns: its mean activation, at how many it is above and below zero, and
        what it writes at most of them.
        """
        form = self._found.settings.forms[0]
        activations, written = self._found.activations(form), self._found.written_activations(form)
        described = []
        for concept in every:
            rows = self.ranking(concept.neurons, concept.scores)
            for row, neuron, share, place in zip(
                rows, concept.neurons.tolist(), concept.shares.tolist(), concept.places, strict=True
            ):
                row |= {"share": share, "activation": float(activations[place].mean(dtype=np.float64))}
                row |= {
                    "above_zero": int((activations[place] > 0).sum()),
                    "below_zero": int((activations[place] < 0).sum()),
                }
                self._add_written(row, neuron, None if written is None else written[place])
            described.append({"noun": concept.word, "captions": len(concept.occurrences), "neurons": rows})
        return described


def plain(text: str) -> str:
    """A text for people and JSON: bytes that are no text show as U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
