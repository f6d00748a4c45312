"""What a query for contributions reads from a store: activations, weights, labels and scales, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np

from actstore.engine.contributions.next_tokens import NextTokens, Place
from actstore.engine.devices.device import HOST, Device
from actstore.engine.devices.stream import read_values, stream_values
from actstore.store.arguments import Typed, argument
from actstore.store.capture.statistics.contribution_sums import label_ids, read_sums, sums_by
from actstore.store.capture.tokens.write_scale import block_scale
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import SPECIAL
from actstore.store.model.directions import WriteDirections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.contributions.targets import Target
    from actstore.engine.devices.device import Array
    from actstore.kernels.contribution.sums import ContributionSums
    from actstore.store.reader import Capture, Store

SITE: Final = "mlp.post"


def _as_place(value: object) -> object:
    """A tuple of two or three numbers as the place it names; anything else as it is."""
    if isinstance(value, tuple) and not isinstance(value, Place) and len(value) in (2, 3):
        numbers = value[:2] if value[2:] == (None,) else value
        return Place(*argument("at", numbers, tuple[int, ...]))
    return value


@dataclass(frozen=True)
class ContributionQuery(Typed):
    """What is asked of a capture, beside the targets; `Store.contributions` takes the same."""

    k: int = 20
    """Neurons given for each target and label."""
    capture: str | None = None
    at: Annotated[str | Place | None, _as_place] = None
    """One place: the position whose prediction is looked at, as `DOC:POS`, `DOC:POS@WINDOW` or a `Place`."""
    by: str | None = None
    """A label column: a ranking for each of its values."""
    everywhere: bool = False
    """Over all positions of text, not those alone that the target follows."""
    gain: bool = True
    """With the final norm's gain. Without: the form of Pan et al. (2024)."""
    logits: bool = False
    """Divided by the final norm's rms: in units of the logit. Needs a capture of the last layer's `resid.post`."""


class Source:
    """The capture, the weights and the options of a query, read piece by piece."""

    def __init__(self, store: Store, capture: Capture, query: ContributionQuery, device: Device = HOST) -> None:
        """`device`: what sums up the contributions of a layer, and where weights and activations are for it."""
        self.store, self.capture, self.query, self.device = store, capture, query, device
        self.directions = WriteDirections.of_store(store.folder, gain=query.gain)
        self.labels = _label_ids(capture, query.by)
        self.next_tokens = NextTokens(capture)
        self.block_scale: Callable[[int], NDArray[np.float32] | None] = lru_cache(maxsize=16)(self._block_scale)
        if SITE not in capture.record.sites:
            raise NotFoundError(
                f"Capture {capture.record.name!r} has no site {SITE!r}, which contributions are of. "
                f"Its sites are: {', '.join(capture.record.sites)}."
            )

    def __reduce__(self) -> tuple[type[Source], tuple[Store, Capture, ContributionQuery, Device]]:
        """Of what it is: a worker reads it anew."""
        return Source, (self.store, self.capture, self.query, self.device)

    @property
    def n_labels(self) -> int:
        """Number of rankings per target; 1 without a label column."""
        return len(self.labels)

    @property
    def layers(self) -> dict[int, bool]:
        """Each captured layer that writes to the stream that the head reads, and whether it is an expert."""
        # The neurons of an encoder, or of a vision tower, write to another residual stream than the head reads.
        head_layers = {layer.layer: layer for layer in self.store.model.head_layers}
        captured = [layer for layer in self.capture.record.layers(SITE) if layer in head_layers]
        return {layer: head_layers[layer].expert is not None for layer in captured}

    def unembedding(self, targets: Sequence[Target]) -> Tensor:
        """The unembedding's rows of the targets [target, d_model]; all of it without targets."""
        try:
            return self.directions.unembedding([target.token for target in targets] or None)
        except IndexError as error:
            raise InvalidInputError(f"The unembedding has no token {error}. Check the id.") from None

    def values(self, layer: int, block: int) -> NDArray[Any]:
        """A block of activations [neuron, token] in a format that the kernels take."""
        return read_values(self.capture, layer, block, SITE)

    def stream(self, layer: int, blocks: Sequence[int]) -> Iterator[Array]:
        """The same of some blocks, one after the other, on the device."""
        return stream_values(self.capture, [(layer, block) for block in blocks], SITE, self.device)

    def scale(self, layer: int, block: int) -> NDArray[np.float32] | None:
        """What the contributions of a layer are multiplied with at every slot of a block; None for 1.

        The layer's own scale (a norm after it, a routing weight), unless the form is the paper's, times `block_scale`.
        """
        own = block_scale(self.capture, layer, block) if self.query.gain else None
        of_block = self.block_scale(block)
        if own is None or of_block is None:
            return of_block if own is None else own
        return own * of_block

    def is_scaled(self, layer: int) -> bool:
        """Whether the contributions of a layer are not its activations times numbers that are the same at all positions."""
        return self.query.logits or (self.query.gain and layer in self.capture.record.write_scale)

    def _block_scale(self, block: int) -> NDArray[np.float32] | None:
        """1 / rms of the final norm's input at every slot, 0 where there is none; None unless `logits` is set."""
        if not self.query.logits or not self.directions.norm.is_there:
            return None
        sites, last = self.capture.record.sites, self.store.model.head_layers[-1].block
        layers = self.capture.record.layers("resid.post") if "resid.post" in sites else {}
        layer = next((n.layer for n in self.store.model.head_layers if n.block == last and n.layer in layers), None)
        if layer is None:
            raise NotFoundError(
                f"Capture {self.capture.record.name!r} does not hold the residual stream before the final norm, whose rms "
                "`logits` divides by. Capture with the sites mlp.post and resid.post."
            )
        stream = self.capture.block_values(layer, block, "resid.post", saturated=True)
        if self.directions.norm.centres:
            stream = stream - stream.mean(axis=0, dtype=np.float64)
        rms = np.sqrt(np.square(stream, dtype=np.float64).mean(axis=0) + self.directions.norm.epsilon)
        with np.errstate(divide="ignore"):
            inverse = 1 / rms
        return np.where(np.isfinite(inverse), inverse, 0).astype(np.float32)

    @property
    def is_summed(self) -> bool:
        """Whether the capture has sums to next tokens that answer the query."""
        has_sums, by = sums_by(self.capture.record)
        return has_sums and not self.query.logits and self.query.gain and self.query.by in (by, None)

    def summed_while_capturing(self) -> dict[int, ContributionSums] | None:
        """Layer → the sums to next tokens that the capture has of the query; None where they must be made of activations."""
        if not self.is_summed:
            return None
        _, by = sums_by(self.capture.record)
        widths = self.capture.record.layers(SITE)
        layers = read_sums(
            self.capture.folder, self.capture.record, {n: widths[n] for n in self.layers}, [*self.capture.blocks]
        )
        if self.query.by == by:
            return layers
        return {layer: sums.over_groups() for layer, sums in layers.items()}

    def slot_labels(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of every used slot of a block: which of `labels` it has, and whether it is counted, not being a special token."""
        return slot_labels(self.capture, self.query.by, self.labels, block)


def slot_labels(
    capture: Capture, by: str | None, labels: Mapping[int, str | None], block: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of every used slot of a block: which of the `labels` of a column it has, and whether it is no special token."""
    plan = capture.block_plan(block)
    window = np.repeat(np.arange(len(plan.windows["window"])), plan.windows["n_slots"])
    if by is None:
        of_slots = np.zeros(len(window), np.int64)
    else:
        column = capture.record.plan.label_columns.index(by)
        ids = np.fromiter(labels, np.int64)
        of_slots = np.searchsorted(ids, plan.labels[window, column]).astype(np.int64)
    return of_slots, plan.modality != SPECIAL


def _label_ids(capture: Capture, by: str | None) -> dict[int, str | None]:
    """As `label_ids`; `InvalidInputError` where the capture has no such column."""
    plan = capture.record.plan
    if by is not None and by not in plan.label_columns:
        known = ", ".join(plan.label_columns) or "none"
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has no label {by!r}. Its labels are: {known}. Check `by`."
        )
    return label_ids(capture.record, by)
