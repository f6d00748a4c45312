"""Which neurons carry each noun of each caption: ranked over all layers of the language model, from a store alone.

    s[neuron](noun) = a[neuron] · (w[neuron] · (γ ⊙ u[noun]))

a is the neuron's activation at the position that predicts the noun's first sub-token, where the noun first comes in the
answer; w its write vector, u the token's unembedding, γ the final norm's gain: the neuron's direct additive term in the
token's logit, up to 1/rms, which is one number a position (Pan et al. 2024, arXiv 2311.07470, who leave γ out, and whose code
takes the gate for a). How that is computed is `ranker`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from actstore.engine.multimodal.captions import read_captions
from actstore.engine.multimodal.nouns import noun_finder
from actstore.engine.multimodal.ranker import Ranker, read_block
from actstore.kernels.top_k.api import TopK
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import decode_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from actstore.engine.multimodal.captions import Caption
    from actstore.store.files.records import ModelRecord
    from actstore.store.reader import Capture

FORMS: Final = {"post": "mlp.post", "gate": "mlp.gate"}
"""What stands for a neuron's activation: A_post, which its write vector is multiplied with; A_gate, as in the paper's code."""
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


class Numbering:
    """All neurons of the layers looked at, counted through: layer after layer."""

    def __init__(self, layers: dict[int, int]) -> None:
        """`layers`: layer → neurons, ascending."""
        self.layers = np.array(list(layers), np.int64)
        self.widths = np.array(list(layers.values()), np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.widths)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Layers and indices of neurons given by number."""
        place = np.searchsorted(self.starts, numbers, side="right") - 1
        return self.layers[place], numbers - self.starts[place]

    def number(self, layer: int, index: int) -> int:
        """The number of a neuron."""
        return int(self.starts[np.searchsorted(self.layers, layer)]) + index

    def pairs(self, numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
        """The same as a list of (layer, index)."""
        layers, indices = self.locate(numbers)
        return list(zip(layers.tolist(), indices.tolist(), strict=True))

    def names(self, numbers: NDArray[np.int64]) -> list[str]:
        """Names such as L3.N17."""
        return [f"L{layer}.N{index}" for layer, index in self.pairs(numbers)]


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
    numbering: Numbering
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


def language_layers(model: ModelRecord) -> list[int]:
    """The layers that write to the stream which the unembedding reads: of a composite model, the language model's."""
    stacks = [layer.stack for layer in model.layers if layer.stack not in ("vision", "projector", "apart")]
    return [layer.layer for layer in model.layers if stacks and layer.stack == stacks[-1]]


def find_multimodal(
    capture: Capture,
    settings: FindSettings | None = None,
    on_layer: Callable[[int, int], None] = lambda done, n_layers: None,
) -> Multimodal:
    """The neurons of every noun of every committed document's caption, over all captured layers of the language model.

    Scores are signed, ties go to the smaller layer and neuron, activations that are NaN never win. Captions without a noun
    stay among the captions. `on_layer` is told how many layers of how many are done.

    `NotFoundError` where the capture lacks a site, values or weights; `InvalidInputError` where it holds no answers, or not
    the positions that predict them.
    """
    settings = settings or FindSettings()
    finder = noun_finder(settings.nouns)
    captions = read_captions(capture, settings.documents)
    nouns = [
        noun for i, caption in enumerate(captions) for noun in _nouns_of(capture, i, caption, finder.first_of_each)
    ]
    numbering = _number(capture, settings.forms)
    found = Multimodal(capture, settings, finder.name, captions, nouns, numbering)
    for form in settings.forms:
        found.ranked[form] = (
            _draw(len(nouns), len(numbering), settings)
            if settings.by == "random"
            else Ranker(found, FORMS[form]).rank(on_layer)
        )
    return found


def _nouns_of(capture: Capture, number: int, caption: Caption, find: Callable[[str], Sequence[Any]]) -> list[Noun]:
    nouns = []
    for word in find(caption.text):
        token = caption.token_at(word.start)
        position = caption.predicting(token)
        if caption.offsets[position] < 0:
            kept = capture.record.plan.settings.get("positions", "all")
            raise InvalidInputError(
                f"Capture {capture.record.name!r} did not keep position {position} of document {caption.document}, which "
                f"predicts {word.word!r}: it was made with --positions {kept}. Capture again with --positions generated or all."
            )
        nouns.append(Noun(number, word.word, int(caption.ids[token]), position))
    return nouns


def _number(capture: Capture, forms: Sequence[str]) -> Numbering:
    wanted = language_layers(capture.store.model)
    for form in forms:
        if FORMS[form] not in capture.record.sites:
            raise NotFoundError(
                f"Capture {capture.record.name!r} has no site {FORMS[form]!r}, which the form {form!r} reads. Its sites are: "
                f"{', '.join(capture.record.sites)}. Capture with --site {FORMS[form]}, or take another --form."
            )
    widths = [capture.record.layers(FORMS[form]) for form in forms]
    layers = [layer for layer in wanted if all(layer in found for found in widths)]
    if not layers:
        raise NotFoundError(
            f"Capture {capture.record.name!r} holds no layer of the language model, whose neurons write words. Capture that "
            "part of the model."
        )
    return Numbering({layer: widths[0][layer] for layer in layers})


def _draw(n_nouns: int, n_neurons: int, settings: FindSettings) -> TopK:
    """As many neurons for each noun by lot."""
    rng = np.random.default_rng(settings.seed)
    k = min(settings.k, n_neurons)
    rows = [rng.choice(n_neurons, k, replace=False) for _ in range(n_nouns)]
    scores = np.broadcast_to(np.linspace(1, 0, k, endpoint=False, dtype=np.float32), (n_nouns, k))
    return TopK(scores.copy(), np.array(rows, np.int64).reshape(n_nouns, k))


def draw_alike(found: Multimodal, seed: int = 0) -> Multimodal:
    """The same nouns with neurons at random: as many of each layer as each noun has; a stricter chance than any neuron's."""
    rng, numbering = np.random.default_rng(seed), found.numbering
    drawn = np.full(found.first.tokens.shape, -1, np.int64)
    for row, numbers in enumerate(found.first.tokens):
        place = np.searchsorted(numbering.starts, numbers[numbers >= 0], side="right") - 1
        for layer, n in zip(*np.unique(place, return_counts=True), strict=True):
            start, stop = numbering.starts[layer], numbering.starts[layer + 1]
            drawn[row, : len(place)][place == layer] = start + rng.choice(stop - start, n, replace=False)
    return found.with_ranking(TopK(found.first.values, drawn))


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
            activations[row, place] = decode_values(values[numbers[row, place] - start, offset[row]], None)
    return activations
