"""Results as rows for tables and JSON: neurons with their names, scores and top tokens; answers by image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.multimodal.captions import read_captions
from actstore.store.errors import InvalidInputError
from actstore.store.model.top_tokens import texts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.multimodal.concepts import Concept
    from actstore.engine.multimodal.result import Multimodal
    from actstore.store.capture.reader import Capture


class Rows:
    """Rankings of a result as lists of `{neuron, score, tokens}`; each neuron's tokens are read once."""

    def __init__(self, result: Multimodal) -> None:
        self._result = result
        numbers = np.unique(np.concatenate([ranked.tokens.reshape(-1) for ranked in result.ranked.values()]))
        numbers = numbers[numbers >= 0]
        texts = texts_of(result.capture.folder, result.numbering.pairs(numbers), result.settings.gain)
        self._tokens = dict(zip(numbers.tolist(), texts, strict=True))

    def ranking(self, numbers: NDArray[np.int64], scores: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
        """The neurons of one ranking, best first."""
        is_neuron = numbers >= 0
        names = self._result.numbering.names(numbers[is_neuron])
        return [
            {"neuron": name, "score": score, "tokens": self._tokens[number].top}
            for name, number, score in zip(names, numbers[is_neuron].tolist(), scores[is_neuron].tolist(), strict=True)
        ]

    def _at_noun(self, number: int, form: str) -> list[dict[str, Any]]:
        """A noun's ranking in one form, with activations and what each neuron writes there: of −w where it is below zero."""
        ranked = self._result.ranked[form]
        rows = self.ranking(ranked.tokens[number], ranked.values[number])
        activations = self._result.activations(form)[number].tolist()
        written = self._result.written_activations(form)
        for i, (row, neuron) in enumerate(zip(rows, ranked.tokens[number].tolist(), strict=False)):
            row["activation"] = activations[i]
            self._add_written(row, neuron, None if written is None else written[number, i : i + 1])
        return rows

    def _add_written(self, row: dict[str, Any], neuron: int, activations: NDArray[np.float32] | None) -> None:
        """Add `writes`: the tokens that the neuron promotes where it has these activations, null where their signs differ.

        And its bottom tokens, except where all activations are above zero.
        """
        tokens = self._tokens[neuron]
        row["writes"] = None if activations is None else tokens.written(activations)
        if activations is None or (activations < 0).any() or row["writes"] is None:
            row["bottom_tokens"] = tokens.bottom

    def noun(self, number: int) -> dict[str, Any]:
        """A noun of a caption: noun, token, text, position, neurons; of several forms also `forms`, and their overlap."""
        result, noun = self._result, self._result.nouns[number]
        row: dict[str, Any] = {
            "noun": noun.word,
            "token": noun.token,
            "text": result.capture.store.token_text(noun.token),
            "position": noun.position,
            "neurons": self._at_noun(number, result.settings.forms[0]),
        }
        if len(result.ranked) > 1:
            rankings = [ranked.tokens[number] for ranked in result.ranked.values()]
            sets = [set(numbers[numbers >= 0].tolist()) for numbers in rankings]
            row["forms"] = {form: self._at_noun(number, form) for form in result.ranked}
            row["overlap"] = len(set.intersection(*sets)) / result.settings.k
        return row

    def captions(self) -> list[dict[str, Any]]:
        """All captions with their nouns."""
        rows: list[dict[str, Any]] = [
            {"document": caption.document, "image": caption.image, "caption": plain(caption.text), "nouns": []}
            for caption in self._result.captions
        ]
        for number, noun in enumerate(self._result.nouns):
            rows[noun.caption]["nouns"].append(self.noun(number))
        return rows

    def concepts(self, concepts: Sequence[Concept]) -> list[dict[str, Any]]:
        """Nouns over all captions: noun, captions, neurons with the share of the captions in whose top k they are.

        And of each neuron at these captions' nouns: its mean activation, the number of nouns at which it is above and below
        zero, and what it writes.
        """
        form = self._result.settings.forms[0]
        activations, written = self._result.activations(form), self._result.written_activations(form)
        described = []
        for concept in concepts:
            rows = self.ranking(concept.neurons, concept.scores)
            for row, neuron, share, at in zip(
                rows, concept.neurons.tolist(), concept.shares.tolist(), concept.places, strict=True
            ):
                row |= {"share": share, "activation": float(activations[at].mean(dtype=np.float64))}
                row |= {
                    "above_zero": int((activations[at] > 0).sum()),
                    "below_zero": int((activations[at] < 0).sum()),
                }
                self._add_written(row, neuron, None if written is None else written[at])
            described.append({"noun": concept.word, "captions": len(concept.occurrences), "neurons": rows})
        return described


def plain(text: str) -> str:
    """A text for people and JSON: bytes that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


def answers_by_image(capture: Capture) -> dict[str, dict[str, Any]]:
    """File name without suffix → `prompt` and `caption`, of a capture's documents: captions of the same images elsewhere."""
    rows = capture.documents().to_pylist()
    answers = {}
    for caption in read_captions(capture):
        if caption.image is None:
            raise InvalidInputError(
                f"Capture {capture.record.name!r} holds no images. Name one of images with `capture`."
            )
        row = rows[caption.document]
        answers[Path(caption.image).stem] = {"prompt": row.get("prompt"), "caption": plain(caption.text)}
    return answers
