"""What a `reorder` that was killed has left in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.engine.repair.outcome import Outcome
from actstore.store.damage import Damage
from actstore.store.errors import ReadOnlyError
from actstore.store.transfer.interrupted import SCRATCH, clear_remains, put_back, remains

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder


def repair_reorder(folder: Folder, capture: str | None) -> list[Outcome]:
    """Put captures, or one, back in their places, and remove what lies beside them; what was done.

    What another process is writing stays, and is no damage. `ReadOnlyError` where one is about to put a capture in its place.
    """
    if folder.local_path() is None:  # where captures are not put into another order
        return []
    outcomes = [
        Outcome(_damage(name, "a `reorder` that was killed had moved it aside"), True, "put back in its place")
        for name in put_back(folder, capture)
    ]
    for name in remains(folder, capture):
        damage = _damage(name, "left by a `reorder` that was killed")
        try:
            is_removed = clear_remains(folder, name)
        except ReadOnlyError:
            continue
        kept = f"capture {name!r} cannot be read, and this may be what is left of it: restore the capture, and repair again"
        outcomes.append(Outcome(damage, is_removed, "removed" if is_removed else kept))
    return outcomes


def _damage(name: str, what: str) -> Damage:
    return Damage(name, None, None, None, f"{SCRATCH}/{name}", what)
