"""One neuron as users handle it: activations, statistics, exemplars with their context."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actstore.kernels.pack.statistics import HISTOGRAM_EDGES
from actstore.store import hooks
from actstore.store.arguments import argument
from actstore.store.calls import checks
from actstore.store.capture.patches import patch_texts
from actstore.store.capture.statistics.exemplars import CONTEXT, EXEMPLAR_LISTS, read_exemplars
from actstore.store.capture.statistics.neuron_table import read_neuron_row
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import SPECIAL
from actstore.store.neurons import neuron_name
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.capture.captures import Captures
    from actstore.store.capture.reader import Capture
    from actstore.store.hooks import Shown

EXEMPLARS = pa.schema(
    [
        ("value", pa.float32()),
        ("document", pa.int32()),
        ("position", pa.int32()),
        ("token", pa.string()),
        ("text", pa.string()),
        ("slot", pa.int64()),
        ("window", pa.int32()),
        ("source", pa.string()),
        ("tokens", pa.list_(pa.string())),
        ("activations", pa.list_(pa.float32())),
        ("pivot", pa.int32()),
    ],
    metadata={
        "position": "of the token at which the value was taken, in the window the model read",
        "token": "its text",
        "text": "the text around it",
        "slot": "its place in the capture: the `token` column of the tokens table",
        "tokens": "texts of the tokens around it; activations alongside, null where none is stored",
        "pivot": "index of the token in tokens",
    },
)


@checks
class Neuron:
    """Neuron `index` of `layer`, in every capture of a store."""

    def __init__(self, store: Captures, layer: int, index: int) -> None:
        self.store, self.layer, self.index = store, layer, index

    @property
    def name(self) -> str:
        """`L3.N17`."""
        return neuron_name(self.layer, self.index)

    def __repr__(self) -> str:
        return f"Neuron({self.name} of {self.store.model.name}, {self.store.model.layers[self.layer].module})"

    def _repr_html_(self) -> str:
        return hooks.notebook_html(self)

    def show(self, k: int = 10, capture: str | None = None, site: str = "mlp.post", context: int = 16) -> Shown:
        """What there is to see of the neuron: statistics, histogram, the k best exemplars highlighted by activation.

        A notebook shows it as a table, `print` as text, rich in colours; `.html()` gives the table.

        >>> store.neuron("L3.N17").show(k=20)
        """
        return hooks.show_neuron(self, k, capture, site, context)

    def explore(self, capture: str | None = None, site: str = "mlp.post", height: int = 900) -> Any:
        """The neuron's page of the explorer as a card below a cell of a notebook, at most `height` pixels high.

        A widget where anywidget is installed, elsewhere what `show` gives; see `Store.explore`.

        >>> store.neuron("L3.N17").explore()
        """
        name, pixels = argument("capture", capture, str | None), argument("height", height, int)
        return hooks.explore(self.store, self, name, argument("site", site, str), pixels, card=True)

    def activations(self, capture: str | None = None, site: str = "mlp.post") -> NDArray[np.float32]:
        """The neuron over every committed token of a capture, in the order of `capture.tokens()`."""
        return self.store.capture(capture).activations(self.layer, self.index, site)

    def write_vector(self) -> NDArray[np.float32]:
        """What the neuron adds to the residual stream per unit of activation, as the model has it: float32 [d_model].

        `W_out[layer, index]` in TransformerLens, where weights are neither folded nor centred. Needs torch; `NotFoundError`
        where the store was made without weights.
        """
        from actstore.store.model.weights import read_rows  # only here: it loads torch

        rows = read_rows(self.store.folder, f"layer-{self.layer}", "write_vectors", [self.index])
        vector: NDArray[np.float32] = rows[0].float().numpy()
        return vector

    def statistics(self, capture: str | None = None, site: str = "mlp.post") -> dict[str, Any]:
        """Count, mean, std, min, max, quantiles … of the neuron in a capture, by name."""
        source = self.store.capture(capture)
        source.check_neuron(self.layer, self.index, site)
        if source.is_finished:
            return read_neuron_row(source, "neurons", site, self.layer, self.index)
        table = source.neurons().to_arrow()
        is_neuron = (table["site"].cast(pa.string()).to_numpy(zero_copy_only=False) == site) & (
            (table["layer"].to_numpy() == self.layer) & (table["neuron"].to_numpy() == self.index)
        )
        rows: list[dict[str, Any]] = table.filter(pa.array(is_neuron)).to_pylist()
        return rows[0]

    def histogram(
        self, capture: str | None = None, site: str = "mlp.post"
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Counts [bin] of the neuron's values, and the bins' edges [bin + 1]."""
        source = self.store.capture(capture)
        source.check_neuron(self.layer, self.index, site)
        if (stored := self._stored(source, site)) is not None:
            return np.array(stored["histogram"], np.int64), HISTOGRAM_EDGES
        statistics = source.layer_statistics(self.layer, site)
        return statistics.histogram[self.index], HISTOGRAM_EDGES

    def exemplars(self, k: int = 20, capture: str | None = None, site: str = "mlp.post", context: int = 24) -> Table:
        """The k windows in which the neuron is highest, best first, with `context` tokens on either side; see `EXEMPLARS`.

        Ties go to the earlier token. Beyond the exemplars recorded at capture time they are found among the stored values.
        """
        k, context = argument("k", k, int), argument("context", context, int)
        if k < 1:
            raise InvalidInputError(f"At least one exemplar must be asked for, found {k}.")
        if context < 0:
            raise InvalidInputError(f"context is a number of tokens on either side, 0 or more, found {context}.")
        source = self.store.capture(capture)
        source.check_neuron(self.layer, self.index, site)
        if (stored := self._stored(source, site, k, context)) is not None:
            n = min(k, len(stored["tokens"]))
            rows = [self._stored_exemplar(source, site, stored, rank, context) for rank in range(n)]
            return Table(pa.Table.from_pylist(rows, schema=EXEMPLARS))
        statistics = source.layer_statistics(self.layer, site)
        values, tokens = statistics.exemplar_values[self.index], statistics.exemplar_tokens[self.index]
        n_known = int((tokens >= 0).sum())
        if k > n_known and n_known == len(tokens) and source.record.encoding.keeps_values:
            values, tokens = self._search(source, site, k, values, tokens)
        rows = [
            self._exemplar(source, site, float(value), int(token), context)
            for value, token in zip(values[:k], tokens[:k], strict=True)
            if token >= 0
        ]
        return Table(pa.Table.from_pylist(rows, schema=EXEMPLARS))

    def excerpts(
        self, tokens: Sequence[int], capture: str | None = None, site: str = "mlp.post", context: int = 24
    ) -> Table:
        """The text around some tokens, each a `token` of `capture.tokens()`, with the columns of `exemplars`, in their order.

        `value` is the stored activation; `InvalidInputError` where the capture stores none (precision `none`).
        """
        context = argument("context", context, int)
        if context < 0:
            raise InvalidInputError(f"context is a number of tokens on either side, 0 or more, found {context}.")
        source = self.store.capture(capture)
        source.check_neuron(self.layer, self.index, site)
        if not source.record.encoding.keeps_values:
            raise InvalidInputError(
                f"Capture {source.record.name!r} has precision none: it stores no activations, and `excerpts` reads them. "
                "Use `exemplars`, or name another `capture`."
            )
        rows = []
        for token in argument("tokens", tokens, tuple[int, ...]):
            block, slot = divmod(token, source.record.plan.block_slots)
            if block not in source.blocks or not slot < source.used_slots[block]:
                raise NotFoundError(f"Capture {source.record.name!r} has no token {token}. Take one of `tokens()`.")
            value = float(source.block_row(self.layer, self.index, block, site, saturated=True)[slot])
            rows.append(self._exemplar(source, site, value, token, context))
        return Table(pa.Table.from_pylist(rows, schema=EXEMPLARS))

    def _stored(self, source: Capture, site: str, k: int = 0, context: int = 0) -> dict[str, Any] | None:
        """The neuron's row of the table of exemplars; None where there is none, or it has fewer or less around them."""
        if context > CONTEXT or not source.is_finished:
            return None
        stored, record = read_exemplars(source, site, self.layer, self.index), source.record
        if stored is None or not record.encoding.keeps_values:
            return stored
        n_known = len(stored["tokens"])  # fewer than were to be kept: there are no others
        return stored if k <= n_known or n_known < record.n_exemplars else None

    def _search(
        self, source: Capture, site: str, k: int, values: NDArray[np.float32], tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The recorded exemplars `values` and `tokens`, then the largest stored values of other windows: k in all.

        The recorded ones go first because they are exact, which stored values need not be.
        """
        found_values, found_tokens = [], []
        for block in source.blocks:
            plan = source.block_plan(block)
            first_token = block * source.record.plan.block_slots
            row = source.block_row(self.layer, self.index, block, site, saturated=True)[: len(plan.position)]
            unfit = (plan.modality == SPECIAL) | ~np.isfinite(row)
            if not source.record.encoding.keeps_every_value:
                unfit |= row == 0  # dropped: what it was is not known
            row = np.where(unfit, -np.inf, row)
            starts = np.cumsum([0, *plan.windows["n_slots"][:-1]])
            maxima = np.maximum.reduceat(row, starts)
            known_slots = tokens[(tokens >= first_token) & (tokens < first_token + len(row))] - first_token
            window = np.repeat(np.arange(len(starts)), plan.windows["n_slots"])
            maxima[window[known_slots]] = -np.inf
            # The first slot of each window that attains its maximum.
            hits = np.flatnonzero((row == maxima[window]) & (row > -np.inf))
            _, first = np.unique(window[hits], return_index=True)
            found_values.append(row[hits[first]])
            found_tokens.append(hits[first] + first_token)
        if not found_values:  # no block is committed yet
            return values, tokens
        others, places = np.concatenate(found_values), np.concatenate(found_tokens)
        order = np.lexsort((places, -others))[: k - len(tokens)]
        return np.concatenate([values, others[order]]), np.concatenate([tokens, places[order]])

    def _exemplar(self, source: Capture, site: str, value: float, token: int, context: int) -> dict[str, Any]:
        block, slot = divmod(token, source.record.plan.block_slots)
        plan = source.block_plan(block)
        slot_starts = np.cumsum([0, *plan.windows["n_slots"]])
        window = int(np.searchsorted(slot_starts, slot, side="right")) - 1
        n_inputs = plan.windows["n_inputs"]
        begin = int(n_inputs[:window].sum())
        ids = plan.inputs[begin : begin + int(n_inputs[window])]
        position = int(plan.position[slot])
        document = int(plan.windows["document"][window])
        images = self._image_texts(source, block, int(plan.windows["window"][window]), document)
        if source.record.of_tower:  # what stands beside a patch is no text
            context = 0
        first, last = max(0, position - context), min(len(ids), position + context + 1)
        pieces = [
            images[at].encode() if at in images else self.store.token_bytes(int(ids[at])) for at in range(first, last)
        ]
        tokens = [piece.decode(errors="replace") for piece in pieces]
        return {
            "value": value,
            "document": document,
            "position": position,
            "token": tokens[position - first],
            "text": b"".join(pieces).decode(errors="replace"),
            "slot": token,
            "window": int(plan.windows["window"][window]),
            "source": source.document_source(document),
            "tokens": tokens,
            "activations": self._around(
                source, site, block, slice(*slot_starts[window : window + 2].tolist()), first, last
            ),
            "pivot": position - first,
        }

    def _stored_exemplar(
        self, source: Capture, site: str, stored: dict[str, Any], rank: int, context: int
    ) -> dict[str, Any]:
        """As `_exemplar`, of a row of the table of exemplars."""
        of = {name: stored[name][rank] for name in EXEMPLAR_LISTS}
        first = max(0, of["before"] - context)
        around = slice(first, of["before"] + context + 1)
        pieces = [self.store.token_bytes(token) for token in of["ids"][around]]
        tokens = [piece.decode(errors="replace") for piece in pieces]
        activations: list[float | None] | None = None
        if source.record.encoding.keeps_values:
            block, slot = divmod(of["tokens"], source.record.plan.block_slots)
            row = source.block_row(self.layer, self.index, block, site, saturated=True)
            kept = np.array(of["kept"])
            # Kept positions of a window have slots that follow one another.
            slots = slot + np.cumsum(kept) - int(kept[: of["before"] + 1].sum())
            values = np.where(kept, row[np.where(kept, slots, 0)], np.nan)[around]
            activations = [value if value == value else None for value in values.tolist()]
        return {
            "value": of["values"],
            "document": of["documents"],
            "position": of["positions"],
            "token": tokens[of["before"] - first],
            "text": b"".join(pieces).decode(errors="replace"),
            "slot": of["tokens"],
            "window": of["windows"],
            "source": of["sources"],
            "tokens": tokens,
            "activations": activations,
            "pivot": of["before"] - first,
        }

    @staticmethod
    def _image_texts(source: Capture, block: int, window: int, document: int) -> dict[int, str]:
        """What to print for the positions of a window that stand for a part of an image; nothing in a capture of text."""
        if not source.record.of_images:
            return {}
        name = PurePath(source.document_image(document)).name if source.record.of_tower else None
        return patch_texts(source.block_patches(block), window, name)

    def _around(
        self, source: Capture, site: str, block: int, slots: slice, first: int, last: int
    ) -> list[float | None] | None:
        if not source.record.encoding.keeps_values:
            return None
        around: list[float | None] = [None] * (last - first)
        row = source.block_row(self.layer, self.index, block, site, saturated=True)[slots]
        for position, value in zip(source.block_plan(block).position[slots].tolist(), row.tolist(), strict=True):
            if first <= position < last and value == value:
                around[position - first] = value
        return around
