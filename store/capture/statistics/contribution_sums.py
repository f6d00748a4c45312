"""Contributions that a capture added up while the model ran: of each block, the sums of every neuron by label.

A capture whose settings say so has, beside each block's statistics, `blocks/N.contributions.safetensors.zst`: what every
neuron contributed to the next tokens of the block's positions, summed by the values of one label column. Added up over the
blocks, in their order, they are what `actstore.engine.contributions.rank` makes of stored activations, whether any are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.kernels.contribution.sums import ContributionSums
from actstore.store.capture.commits import read_file
from actstore.store.capture.statistics.tensors import damaged_tensors, decode_tensors, encode_tensors
from actstore.store.layout import block_contributions_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

NEXT: Final = "next"
"""The setting `contributions` of captures that have such sums: to the token that comes next."""
_COUNT: Final = "count"
_OF_LAYER: Final = ("total", "magnitude", "non_finite")


def sums_by(record: CaptureRecord) -> tuple[bool, str | None]:
    """Whether a capture has such sums, and the label column that they are by; None where they are of all positions."""
    return record.settings.get("contributions") == NEXT, record.settings.get("by")


def label_ids(record: CaptureRecord, by: str | None) -> dict[int, str | None]:
    """The ids, ascending, and the texts of a label column's values: the groups of sums; one without text, without a column."""
    return (
        {0: None} if by is None else {i: value for i, (column, value) in enumerate(record.plan.labels) if column == by}
    )


def encode_sums(layers: Mapping[int, ContributionSums], count: NDArray[np.int64]) -> bytes:
    """The sums of a block: of each layer [group, neuron], and the positions of each group, which are the same for all."""
    arrays: dict[str, NDArray[Any]] = {_COUNT: count}
    for layer, sums in layers.items():
        arrays |= {f"{layer}/{name}": getattr(sums, name) for name in _OF_LAYER}
    return encode_tensors(arrays)


def read_sums(folder: Folder, record: CaptureRecord, layer_widths: Mapping[int, int], blocks: list[int]) -> (
    dict[int, ContributionSums]
):  # fmt: skip
    """Layer → the sums over some committed blocks; `FormatError` where one of them is damaged.

    layer_widths: of the layers that have sums: those whose neurons write to the logits.
    """
    n_groups = len(label_ids(record, record.settings.get("by")))
    total = {layer: ContributionSums.empty(n_groups, width) for layer, width in layer_widths.items()}
    most = 25 * n_groups * (1 + sum(layer_widths.values())) + (1 << 20)  # three arrays of 8 bytes, and a header
    for block in blocks:
        key = block_contributions_key(record.name, block)
        arrays = decode_tensors(read_file(folder, record, block, key), f"{folder}/{key}", most)
        try:
            count = arrays[_COUNT].astype(np.int64)
            for layer, sums in total.items():
                totals, magnitudes, non_finite = (arrays[f"{layer}/{name}"] for name in _OF_LAYER)
                sums.merge(ContributionSums(totals, magnitudes, count, non_finite.astype(np.int64)))
        except (KeyError, ValueError, TypeError) as error:
            raise damaged_tensors(f"{folder}/{key}", error) from None
    return total
