"""What a repair came to: of each damage, whether it is repaired, and how or why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actstore.store.arguments import Typed

if TYPE_CHECKING:
    from actstore.store.damage import Damage


@dataclass(frozen=True)
class RepairOptions(Typed):
    """How a store is repaired."""

    model: Any = None  # a `ModelInput`, which `ModelSource.of` checks
    """Where the model is, or the model in memory; None: where it was captured from."""
    images: str | None = None
    """Where captured images are now, if not where they were."""
    device: str = "auto"
    trust_remote_code: bool = False
    accept_differences: bool = False
    """Whether a block is written anew that comes out with other bytes than were written."""


@dataclass(frozen=True)
class Outcome:
    """One damage, and what was done about it."""

    damage: Damage
    is_repaired: bool
    what: str
    """How it was repaired, or why it was not and what to do."""

    def __str__(self) -> str:
        return f"{self.damage}: {self.what}"


@dataclass(frozen=True)
class RepairReport:
    """What `store.repair()` gives; `is_whole` says whether `verify` finds nothing any more."""

    repaired: tuple[Outcome, ...]
    not_repaired: tuple[Outcome, ...]
    finished: tuple[str, ...] = ()
    """Captures that lacked the last step alone, which was taken: nothing of them was damaged."""

    @property
    def is_whole(self) -> bool:
        """Whether what was looked at is now what its records say."""
        return not self.not_repaired

    def __str__(self) -> str:
        """One line per damage, and per capture that was finished."""
        lines = [f"repaired: {one}" for one in self.repaired] + [f"not repaired: {one}" for one in self.not_repaired]
        lines += [f"finished: capture {name!r}, every block of which was written" for name in self.finished]
        return "\n".join(lines) or "nothing was damaged"
