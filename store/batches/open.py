"""Batches of a store's capture, their settings checked against what it holds."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from actstore.store.batches.selection import select_tokens
from actstore.store.capture.positions import check_values, warnings_of
from actstore.store.capture.unfinished import logger
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.store.batches.loader import Batches
    from actstore.store.batches.mixed import MixedBatches
    from actstore.store.batches.settings import BatchSettings
    from actstore.store.batches.tensors import TensorBatches
    from actstore.store.capture.captures import Captures
    from actstore.store.capture.reader import Capture


def open_batches(
    store: Captures, capture: str | None, settings: BatchSettings, *, as_numpy: bool = False, device: str = "cpu"
) -> Batches:
    """The batches that `settings` describe: tensors on `device`, or arrays of NumPy where there is no torch or `as_numpy`.

    What a reader of the values should know, such as values beyond the range of float16, the logger `actstore` warns of.
    """
    opened = store.peek(capture)
    _check_captured(opened, settings)
    for site in settings.sites:
        for sentence in warnings_of(opened, site):
            logger.warning(sentence)
    selection, counts = select_tokens(store, opened, settings)
    if not as_numpy and (tensors := _with_torch()) is not None:
        return tensors(opened, settings, selection, counts, device)
    _check_numpy(settings, device)
    from actstore.store.batches.loader import Batches  # here, as below: it loads the compiler, and torch

    return Batches(opened, settings, selection, counts)


def mixed_batches(sources: Sequence[Batches], weights: Sequence[float], seed: int, until: str) -> MixedBatches:
    """Batches of several sources in turn; those of tensors are a dataset of torch, as each source is."""
    from actstore.store.batches.loader import Batches  # here, as above
    from actstore.store.batches.mixed import MixedBatches

    for source in sources:
        if not isinstance(source, Batches):
            raise InvalidInputError(f"Expected the batches of a store, found {type(source).__name__}.")
    tensors: Any = sys.modules.get("actstore.store.batches.tensors")  # loaded, where there are batches of tensors
    are_tensors = tensors is not None and all(isinstance(source, tensors.TensorBatches) for source in sources)
    kind: type[MixedBatches] = tensors.MixedTensorBatches if are_tensors else MixedBatches
    return kind(sources, weights, seed, until)


def _with_torch() -> type[TensorBatches] | None:
    """Batches of tensors; None where there is no torch."""
    try:
        from actstore.store.batches.tensors import TensorBatches
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    return TensorBatches


def _check_captured(capture: Capture, settings: BatchSettings) -> None:
    for site, layer in settings.places:
        check_values(capture, site)
        capture.check_neuron(layer, 0, site)
    columns = capture.record.plan.label_columns
    for name in settings.labels:
        if name not in columns:
            raise InvalidInputError(
                f"Capture {capture.record.name!r} has no label {name!r}. Its labels are: {', '.join(columns) or 'none'}."
            )


def _check_numpy(settings: BatchSettings, device: str) -> None:
    for name, found, advice in (
        ("dtype", settings.dtype == "bfloat16" and "bfloat16", "NumPy has none: pass `dtype` of float32 or float16"),
        ("device", device != "cpu" and device, "arrays of NumPy are on the CPU: leave `device` out"),
    ):
        if found:
            raise InvalidInputError(f"Expected another `{name}` for arrays of NumPy, found {found!r}: {advice}.")


def with_ranks(settings: BatchSettings) -> BatchSettings:
    """The settings with the rank of this process in a distributed run of torch, where there is one."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return settings
    return replace(settings, rank=distributed.get_rank(), ranks=distributed.get_world_size())
