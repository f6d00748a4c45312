"""What `store.verify` does: every checksum of a store, and where that is asked for, values against the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.engine.devices.device import check_device
from actstore.engine.workers.scan import Scan, executor_of
from actstore.store.reader import Store
from actstore.store.verify import (
    open_captures,
    reading_once,
    record_verified,
    verify_captures,
    verify_graphs,
    verify_root,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.store.damage import Damage
    from actstore.store.storage.folder import Folder


def verify_store(
    folder: Folder, capture: str | None, workers: int | None, on: str, refill: int, how: Mapping[str, Any]
) -> list[Damage]:
    """The damage of a capture, or of the store with all its captures; `refill` blocks of each are computed again.

    `how`: further arguments of `refill_captures`.
    """
    check_device(how["device"])
    store, scan = Store(reading_once(folder)), Scan(executor_of(workers, on))
    captures, damage = open_captures(store, capture)
    damage += [] if capture else verify_root(store.folder)
    for opened, found in zip(captures, verify_captures(captures, run=scan), strict=True):
        damage += found
        record_verified(opened, found)
    if refill:
        from actstore.engine.verify.refill import refill_captures  # only here: it loads the model libraries

        damage += refill_captures(captures, refill, damage, named=bool(capture), **how)[1]
    return [*damage, *verify_graphs(store.folder, capture)[1]]
