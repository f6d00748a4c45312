"""The result of finding multi-modal neurons: the nouns of captions, and each noun's ranked neurons."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from actstore.store.arguments import Typed
from actstore.store.capture.tokens.write_scale import block_scale
from actstore.store.errors import InvalidInputError
from actstore.store.files.precision import widened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.multimodal.captions import Caption
    from actstore.kernels.top_k.api import TopK
    from actstore.store.capture.reader import Capture
    from actstore.store.neurons import NeuronIndex


@dataclass(frozen=True)
class Form:
    """What is taken for a neuron's activation."""

    site: str
    help: str


FORMS: Final = {
    "post": Form("mlp.post", "A_post, which the write vector is multiplied with"),
    "gate": Form("mlp.gate", "A_gate, as in the paper's code"),
}


@dataclass(frozen=True)
class FindSettings(Typed):
    """How neurons are found."""

    k: int = 20
    """Number of neurons per noun."""
    nouns: str = "auto"
    """See `nouns.noun_finder`."""
    forms: tuple[str, ...] = ("post",)
    """Keys of `FORMS`."""
    gain: bool = True
    """With the final norm's gain; without it, scores are those of Pan et al. (2024)."""
    by: str = "contribution"
    """What neurons are ranked by: a key of `rankings.RANKINGS`, which `find_multimodal` looks it up in."""
    seed: int = 0
    """Random seed of the random ranking."""
    documents: tuple[int, ...] | None = None
    """The documents whose captions are read; None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise InvalidInputError(f"`k` is at least 1, found {self.k}.")
        if not self.forms or set(self.forms) - set(FORMS):
            raise InvalidInputError(f"`forms` are one or more of {', '.join(FORMS)}, found {self.forms}.")


class Noun(NamedTuple):
    """A noun of a caption, where it first occurs."""

    caption: int
    """Number of the caption."""
    word: str
    """In lower case."""
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
    """How nouns were found, in words."""
    captions: list[Caption]
    nouns: list[Noun]
    """In the order of captions and, in each, of the text."""
    numbering: NeuronIndex
    ranked: dict[str, TopK] = field(default_factory=dict)
    """Form → scores and neurons' numbers [noun, k], descending; -inf and -1 where there are fewer neurons."""

    @property
    def first(self) -> TopK:
        """The ranking in the first of the settings' forms."""
        return self.ranked[self.settings.forms[0]]

    @cached_property
    def sets(self) -> list[frozenset[int]]:
        """The set of neurons' numbers of each noun, in the first form."""
        return [frozenset(row[row >= 0].tolist()) for row in self.first.tokens]

    def neurons_of(self, number: int) -> list[tuple[int, int]]:
        """The neurons (layer, index) of a noun in the first form, best first."""
        row = self.first.tokens[number]
        return self.numbering.pairs(row[row >= 0])

    def activations(self, form: str | None = None) -> NDArray[np.float32]:
        """The activation of every neuron of a ranking where its noun is predicted [noun, k]; NaN where there is no neuron.

        Read from the store at the first call, and cached.
        """
        form = form or self.settings.forms[0]
        if form not in self._activations:
            self._activations[form] = _read_activations(self, self.ranked[form].tokens, FORMS[form].site)
        return self._activations[form]

    def written_activations(self, form: str) -> NDArray[np.float32] | None:
        """What each neuron of a ranking multiplies its write vector with where its noun is predicted [noun, k].

        `A_post`, whichever form ranked it: the sign of a gate is not the sign of what a gated neuron writes. None where the
        capture lacks it.
        """
        if form == "post":
            return self.activations(form)
        if FORMS["post"].site not in self.capture.record.sites:
            return None
        if "written" not in self._activations:
            self._activations["written"] = _read_activations(self, self.ranked[form].tokens, FORMS["post"].site)
        return self._activations["written"]

    def products_of(self, number: int) -> list[float]:
        """What one unit of activation of each of a noun's neurons adds to the noun's logit: score / activation.

        With it, an activation at any position, such as an image patch, becomes a contribution to the noun, once it is
        multiplied with the scale there (`store.capture.tokens.write_scale`): that of the noun's position is taken out. Of a
        ranking by contribution.
        """
        scores, activations = self.first.values[number], self.activations()[number] * self._scales_at(number)
        is_neuron = self.first.tokens[number] >= 0
        products = np.divide(scores, activations, out=np.zeros_like(scores), where=is_neuron & (activations != 0))
        listed: list[float] = products[is_neuron].tolist()
        return listed

    def _scales_at(self, number: int) -> NDArray[np.float32]:
        """The scale of each of a noun's neurons at the noun's position; 1 where there is none [k]."""
        scales = np.ones(len(self.first.tokens[number]), np.float32)
        noun = self.nouns[number]
        caption = self.captions[noun.caption]
        for place, (layer, _) in enumerate(self.neurons_of(number) if self.settings.gain else ()):
            scale = block_scale(self.capture, layer, caption.block)
            if scale is not None:
                scales[place] = scale[caption.offsets[noun.position]]
        return scales

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
    """A block's activations [neuron, token], decoded only where that needs a scale per neuron."""
    if capture.record.encoding.decode_parameters:
        return capture.block_values(layer, block, site)
    return capture.raw_block(layer, block, site, saturated=True)


def _read_activations(result: Multimodal, numbers: NDArray[np.int64], site: str) -> NDArray[np.float32]:
    activations = np.full(numbers.shape, np.nan, np.float32)
    numbering, capture = result.numbering, result.capture
    captions = [result.captions[noun.caption] for noun in result.nouns]
    block_of = np.array([caption.block for caption in captions], np.int64)
    offset = np.array([c.offsets[n.position] for c, n in zip(captions, result.nouns, strict=True)], np.int64)
    for layer, start, stop in zip(numbering.layers, numbering.starts[:-1], numbering.starts[1:], strict=True):
        in_layer = (numbers >= start) & (numbers < stop)
        for block in np.unique(block_of[in_layer.any(axis=1)]).tolist():
            noun, rank = np.nonzero(in_layer & (block_of == block)[:, None])
            values = read_block(capture, int(layer), block, site)
            activations[noun, rank] = widened(values[numbers[noun, rank] - start, offset[noun]])
    return activations
