"""The stored attributions of a questions file: every neuron's score, prompt by prompt.

Made by `actstore attribute`, read here without model or transformers, one block at a time. Scores are "flat": the neurons of
all attributed layers side by side, layers ascending.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.store.calls import checks
from actstore.store.capture.questions.answers import Answers, has_attributions
from actstore.store.capture.questions.attribution_kinds import ACTIVATION, KINDS, attributed_scope, attributed_site
from actstore.store.capture.statistics.capture_statistics import layer_offsets
from actstore.store.capture.tokens.write_scale import block_scale
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import weights_key
from actstore.store.neurons import NeuronIndex
from actstore.store.storage.listing import is_readable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.store.capture.captures import Captures
    from actstore.store.capture.reader import Capture

_CACHED_BLOCKS: Final = 2


def open_attributions(store: Captures, name: str | None = None) -> Attributions:
    """The attributions of a capture by name; without one, of the only capture that has any.

    Raises `NotFoundError` for a name that is not there, `InvalidInputError` where nothing, or not one thing only, is meant.
    """
    if name is not None:
        return Attributions(store.capture(name))
    made = [known for known in store.captures if has_attributions(store.peek(known))]
    if len(made) != 1:
        what = f"captures of questions {', '.join(made)}: choose one with `capture`" if made else (
            "no attributions. Make them with `actstore.attribute(model, questions, store)`"
        )  # fmt: skip
        raise InvalidInputError(f"{store.folder} holds {what}.")
    return Attributions(store.capture(made[0]))


@checks
class Attributions(Answers):
    """The attributions of a capture that `actstore attribute` made, beside its answers: of what is committed of it."""

    def __init__(self, capture: Capture) -> None:
        """Read those of `capture`; `InvalidInputError` where it has none."""
        super().__init__(capture)
        self.site = attributed_site(capture.record)
        """Whose activations were attributed to."""
        self.scope = attributed_scope(capture.record)
        """Which activations were attributed to: those where the answer is predicted, or those of the whole sequence."""
        self._offsets = layer_offsets(capture.record, self.site)
        self._numbering = NeuronIndex(capture.record.layers(self.site))
        self.n_neurons = len(self._numbering)
        """Over all attributed layers."""
        self._cache: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.capture,)

    def __repr__(self) -> str:
        return f"Attributions({self.capture.record.name!r}: {len(self.queries)} queries, {', '.join(self.kinds)})"

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of scores that this capture gives, of those in `attribution_kinds.KINDS`.

        "gradient" is gradient × activation. "contribution" is what a neuron adds to the logit of the right letter,
        `ā · s · w · (γ ⊙ u)` (w without its mean where the final norm takes it away, s what the position multiplies the
        layer's output with), but for 1 / rms of the residual stream, one factor per prompt; it needs the store's weights. At a
        mask there is none: heads of masked models transform the stream before the unembedding. Of a whole sequence there are
        no gradients, and no contributions.
        """
        sites = self.capture.record.sites
        folder = self.capture.folder
        parts = ("unembedding", *(f"layer-{layer}" for layer in self._offsets))
        has_weights = (
            self.site == ACTIVATION
            and not self.at_mask
            and self.scope == "position"
            and all(is_readable(folder, weights_key(part)) for part in parts)
        )
        return tuple(
            name
            for name, kind in KINDS.items()
            if all(self._named(site) in sites for site in kind.sites) and (has_weights or not kind.uses_weights)
        )

    def _named(self, site: str) -> str:
        """A site of a kind of scores as this capture names it."""
        return self.site if site == ACTIVATION else site

    @property
    def at_mask(self) -> bool:
        """Whether scores are at the masks of prompts, and not at their last positions."""
        return self.capture.record.plan.settings.get("positions") == "mask"

    def expect_neurons(self, use: str) -> None:
        """Raise `InvalidInputError` unless scores are of MLP neurons where the answer is predicted, as `use` takes them."""
        if self.site == ACTIVATION and self.scope == "position":
            return
        what = self.site if self.site != ACTIVATION else "the activations of whole sequences"
        raise InvalidInputError(
            f"{use}, and capture {self.capture.record.name!r} attributes to {what}. Name a capture made at mlp.post, of the "
            "position alone."
        )

    def locate(self, flat: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Layers, and indices in them, of neurons by their place among all attributed ones."""
        return self._numbering.locate(flat)

    def neuron_names(self, flat: NDArray[np.int64]) -> list[str]:
        """The names, such as L3.N17, of neurons by their place among all attributed ones."""
        return self._numbering.names(flat)

    def prompt_scores(
        self, kind: str, rows: range | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(rows of `prompts`, scores [prompt, neuron]) of one block after another; every row once, ascending.

        `rows`: only these. Raises `InvalidInputError` for a kind that is not among `kinds`, naming what makes it.
        """
        self._check_kind(kind)
        rows = range(len(self._prompt_documents)) if rows is None else rows
        blocks = self._slot_of_document[self._prompt_documents[rows.start : rows.stop]]
        for block in np.unique(blocks // self.capture.record.plan.block_slots).tolist():
            documents = self._block_documents(block)
            row_of = self._row_of_document[documents]
            slots = np.flatnonzero((row_of >= rows.start) & (row_of < rows.stop))
            # Within a block prompts may lie in any order; across blocks they ascend.
            slots = slots[np.argsort(documents[slots], kind="stable")]
            yield row_of[slots], self._block_scores(kind, block)[slots]

    def query_scores(
        self, kind: str, queries: range | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(rows of `queries`, scores [query, neuron]): those of a query's prompts added in their order, nothing divided.

        Every query of the range, or of all, once, in order. Sums are in float64, so that borders of blocks change no bit.
        """
        n_prompts, rows = self._counts, None
        if queries is not None:
            ends = np.cumsum([0, *n_prompts]).tolist()
            rows = range(ends[queries.start], ends[queries.stop])
        open_query, total = -1, np.zeros(self.n_neurons)
        n_added = 0
        query_of = np.repeat(np.arange(len(n_prompts)), n_prompts)
        for read, scores in self.prompt_scores(kind, rows):
            done: list[int] = []
            sums: list[NDArray[np.float32]] = []
            for query, score in zip(query_of[read].tolist(), scores, strict=True):
                if query != open_query:
                    open_query, n_added = query, 0
                    total[:] = 0
                total += score
                n_added += 1
                if n_added == n_prompts[query]:
                    done.append(query)
                    sums.append(total.astype(np.float32))
            if done:
                yield np.array(done, np.int64), np.stack(sums)

    def scores_of(self, query: int, kind: str) -> NDArray[np.float32]:
        """The scores [prompt, neuron] of one query's prompts, by its row in `queries`."""
        self._check_kind(kind)
        if not 0 <= query < len(self._counts):
            raise NotFoundError(f"There are queries 0 to {len(self._counts) - 1}, found {query}.")
        first = int(self._starts[query])
        found = np.empty((int(self._counts[query]), self.n_neurons), np.float32)
        slots = self._slot_of_document[first : first + len(found)]
        size = self.capture.record.plan.block_slots
        for row, slot in enumerate(slots.tolist()):
            found[row] = self._cached_scores(kind, slot // size)[slot % size]
        return found

    def _check_kind(self, kind: str) -> None:
        if kind in self.kinds:
            return
        if kind not in KINDS:
            raise InvalidInputError(f"Scores are one of {', '.join(KINDS)}: found {kind!r}.")
        if self.site != ACTIVATION and KINDS[kind].uses_weights:
            raise InvalidInputError(
                f"Scores of kind {kind!r} are what MLP neurons write, and capture {self.capture.record.name!r} attributes to "
                f"{self.site}. Choose one of {', '.join(self.kinds)}."
            )
        if self.scope != "position" and kind != "ig":
            raise InvalidInputError(
                f"Capture {self.capture.record.name!r} attributes to whole sequences, which have no scores of kind {kind!r}. "
                f"Choose one of {', '.join(self.kinds)}."
            )
        if self.at_mask and KINDS[kind].uses_weights:
            raise InvalidInputError(
                f"Scores of kind {kind!r} are terms of a logit that the residual stream alone decides, and the head of a "
                f"masked model transforms it first. Choose one of {', '.join(self.kinds)}."
            )
        raise InvalidInputError(
            f"Capture {self.capture.record.name!r} has no scores of kind {kind!r}: it has {', '.join(self.kinds)}. "
            f"Run `actstore.attribute(…)` again with {KINDS[kind].requirement}, under another `name`."
        )

    def _cached_scores(self, kind: str, block: int) -> NDArray[np.float32]:
        key = kind, block
        if key not in self._cache:
            while len(self._cache) >= _CACHED_BLOCKS:
                self._cache.popitem(last=False)
            self._cache[key] = self._block_scores(kind, block)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _block_scores(self, kind: str, block: int) -> NDArray[np.float32]:
        """The scores [prompt, neuron] of a block, in the order of its slots."""
        documents = self._block_documents(block)
        scores = np.empty((len(documents), self.n_neurons), np.float32)
        for layer, rows in self._offsets.items():
            first, *others = KINDS[kind].sites
            values = self._values(layer, block, first, len(documents))
            for site in others:
                values = values * self._values(layer, block, site, len(documents))
            if KINDS[kind].uses_weights:
                values = values * self._directions[self._target_row[documents], rows].T
                if (scale := block_scale(self.capture, layer, block)) is not None:
                    values = values * scale[: len(documents)]
            scores[:, rows] = values.T
        return scores

    def _values(self, layer: int, block: int, site: str, n: int) -> NDArray[np.float32]:
        return self.capture.block_values(layer, block, self._named(site))[:, :n]

    def _block_documents(self, block: int) -> NDArray[np.int64]:
        """The document of each slot of a block that holds one."""
        documents: NDArray[np.int64] = self.capture.block_plan(block).windows["document"].astype(np.int64)
        return documents

    @cached_property
    def _target_row(self) -> NDArray[np.int64]:
        """Which row of `_directions` belongs to each document's target."""
        _, rows = np.unique(self._documents["target"].to_numpy(), return_inverse=True)
        return rows.astype(np.int64)

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        """`w · (γ ⊙ u)` [target, neuron] of every distinct target, which are few."""
        from actstore.store.model.directions import WriteDirections  # only here: it loads torch

        directions = WriteDirections.of_store(self.capture.folder)
        targets = np.unique(self._documents["target"].to_numpy())
        weighted = directions.targets(targets.tolist())
        products = np.empty((len(targets), self.n_neurons), np.float32)
        for layer, rows in self._offsets.items():
            products[:, rows] = (weighted @ directions.vectors(layer).float().T).numpy()
        return products
