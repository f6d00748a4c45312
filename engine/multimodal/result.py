"""What finding multi-modal neurons gives: the nouns of captions, and each noun's ranked neurons."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.files.precision import widened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.multimodal.captions import Caption
    from actstore.kernels.top_k.api import TopK
    from actstore.store.capture.reader import Capture
    from actstore.store.neurons import NeuronIndex

FORMS: Final = {"post": "mlp.post", "gate": "mlp.gate"}
"""What stands for a neuron's activation: A_post, which its write vector is multiplied with; A_gate, as in the paper's code."""
MAPS: Final = ("contribution", "activation")
"""What a map can show of neurons: what they contribute to a noun, or their activations, whatever their sign."""
BY: Final = ("contribution", "activation", "random")

Form = Literal["post", "gate"]


@dataclass(frozen=True)
class FindSettings(Typed):
    """How neurons are found."""

    k: int = 20
    """Neurons a noun."""
    nouns: str = "auto"
    """See `nouns.noun_finder`."""
    forms: tuple[Form, ...] = ("post",)
    gain: bool = True
    """With the final norm's gain. Without: the form of Pan et al. (2024)."""
    by: Literal["contribution", "activation", "random"] = "contribution"
    """What neurons are ranked by: their contribution, or, as baselines, their activation alone, or a draw for each noun."""
    seed: int = 0
    """Of the draws."""
    documents: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise InvalidInputError(f"At least one neuron must be asked for, found {self.k}. Mend -k.")
        if self.by not in BY or not self.forms or set(self.forms) - set(FORMS):
            raise InvalidInputError(
                f"Neurons are ranked by {', '.join(BY)} in the forms {', '.join(FORMS)}: found {self.by!r}, {self.forms}."
            )


class Noun(NamedTuple):
    """A noun of a caption, where it comes first."""

    caption: int
    """Which of the captions."""
    word: str
    """In small letters."""
    token: int
    """Its first sub-token."""
    position: int
    """The position of the window that predicts it."""


@dataclass(frozen=True, eq=False)
class Multimodal:
    """The nouns of a capture's captions, and each one's neurons."""

    capture: Capture
    settings: FindSettings
    found_by: str
    """How nouns were told from other words, for people."""
    captions: list[Caption]
    nouns: list[Noun]
    """In the order of captions and, in each, of the text."""
    numbering: NeuronIndex
    ranked: dict[str, TopK] = field(default_factory=dict)
    """Form → scores and neurons' numbers [noun, k], descending; -inf and -1 where there are fewer."""

    @property
    def first(self) -> TopK:
        """The ranking in the form asked for first."""
        return self.ranked[self.settings.forms[0]]

    @cached_property
    def sets(self) -> list[frozenset[int]]:
        """Of each noun the set of its neurons' numbers."""
        return [frozenset(row[row >= 0].tolist()) for row in self.first.tokens]

    def neurons_of(self, number: int) -> list[tuple[int, int]]:
        """The neurons (layer, index) of a noun in the form asked for first, best first."""
        row = self.first.tokens[number]
        return self.numbering.pairs(row[row >= 0])

    def activations(self, form: str | None = None) -> NDArray[np.float32]:
        """The activation of every neuron of a ranking where its noun is predicted [noun, k]; NaN where there is no neuron.

        Read from the store once more, when first asked for.
        """
        form = form or self.settings.forms[0]
        if form not in self._activations:
            self._activations[form] = _read_activations(self, self.ranked[form].tokens, FORMS[form])
        return self._activations[form]

    def written_activations(self, form: str) -> NDArray[np.float32] | None:
        """What each neuron of a ranking multiplies its write vector with where its noun is predicted [noun, k].

        `A_post`, whichever form ranked it: a gate says nothing of the sign of what a gated neuron writes. None where the
        capture lacks it.
        """
        if form == "post":
            return self.activations(form)
        if FORMS["post"] not in self.capture.record.sites:
            return None
        if "written" not in self._activations:
            self._activations["written"] = _read_activations(self, self.ranked[form].tokens, FORMS["post"])
        return self._activations["written"]

    def products_of(self, number: int) -> list[float]:
        """What one unit of activation of each of a noun's neurons adds to the noun: score / activation, of a ranking by score.

        With them an activation anywhere, at an image patch say, becomes a contribution to the noun.
        """
        scores, activations = self.first.values[number], self.activations()[number]
        there = self.first.tokens[number] >= 0
        products = np.divide(scores, activations, out=np.zeros_like(scores), where=there & (activations != 0))
        found: list[float] = products[there].tolist()
        return found

    @cached_property
    def _activations(self) -> dict[str, NDArray[np.float32]]:
        return {}

    def with_ranking(self, ranked: TopK) -> Multimodal:
        """The same nouns with other neurons."""
        return Multimodal(
            self.capture, self.settings, self.found_by, self.captions, self.nouns, self.numbering,
            {self.settings.forms[0]: ranked},
        )  # fmt: skip


def read_block(capture: Capture, layer: int, block: int, site: str) -> NDArray[Any]:
    """A block's activations [neuron, token], widened only where that needs a scale for each neuron."""
    if capture.record.encoding.decode_parameters:
        return capture.block_values(layer, block, site)
    return capture.raw_block(layer, block, site, saturated=True)


def _read_activations(found: Multimodal, numbers: NDArray[np.int64], site: str) -> NDArray[np.float32]:
    activations = np.full(numbers.shape, np.nan, np.float32)
    numbering, capture = found.numbering, found.capture
    captions = [found.captions[noun.caption] for noun in found.nouns]
    block_of = np.array([caption.block for caption in captions], np.int64)
    offset = np.array([c.offsets[n.position] for c, n in zip(captions, found.nouns, strict=True)], np.int64)
    for layer, start, stop in zip(numbering.layers, numbering.starts[:-1], numbering.starts[1:], strict=True):
        here = (numbers >= start) & (numbers < stop)
        for block in np.unique(block_of[here.any(axis=1)]).tolist():
            row, place = np.nonzero(here & (block_of == block)[:, None])
            values = read_block(capture, int(layer), block, site)
            activations[row, place] = widened(values[numbers[row, place] - start, offset[row]])
    return activations
