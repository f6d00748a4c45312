"""The metadata of the Zarr groups around a store's arrays: actstore reads past them, programs that read Zarr need them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from actstore.store.errors import FormatError, NotFoundError, finding
from actstore.store.files.block_arrays import block_arrays
from actstore.store.layout import GATE_SIGN, groups_above, plan_key, statistics_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.store.files.records import CaptureRecord
    from actstore.store.storage.folder import Folder

CAPTURES: Final = "captures"
"""The group above all captures."""
EMPTY_GROUP: Final = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def groups_of_capture(record: CaptureRecord) -> list[str]:
    """The keys of the groups in a capture, whose own is its record."""
    name = record.name
    statistics = [
        *(statistics_key(name, site, "mean") for site in record.sites),
        *(statistics_key(name, GATE_SIGN, f"{layer}/positives") for layer in record.gate_sign),
        statistics_key(name, "tokens", "by_label"),
    ]
    plan = [plan_key(name, "inputs/ids"), plan_key(name, "tokens/ids")]
    return groups_above([*(spec.key for spec in block_arrays(record)), *plan, *statistics])


def damaged_group(folder: Folder, group: str) -> str | None:
    """What is wrong with a group's metadata, if it has any: stores of earlier versions may lack some."""
    try:
        found = folder.read_json(f"{group}/zarr.json")
    except NotFoundError:
        return None
    except FormatError as error:
        return finding(error)
    # A group need not have attributes; what Zarr itself wrote may say that there is no consolidated metadata.
    if {"attributes": {}} | {key: value for key, value in found.items() if value is not None} == EMPTY_GROUP:
        return None
    return "is not the metadata of a group"


def write_group(folder: Folder, group: str) -> None:
    """Write a group's metadata, with the bytes that Zarr writes."""
    folder.write(f"{group}/zarr.json", json.dumps(EMPTY_GROUP, indent=2).encode())


def damaged_groups(folder: Folder, record: CaptureRecord) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of a capture's groups."""
    for group in groups_of_capture(record):
        if (what := damaged_group(folder, group)) is not None:
            yield f"{group}/zarr.json".removeprefix(f"captures/{record.name}/"), what
