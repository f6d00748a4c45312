"""Where an iteration over batches is, and going on from there."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Resumable:
    """Batches that go on where an earlier iteration was."""

    def __init__(self) -> None:
        self.epoch = 0
        """The epoch that the next iteration begins with."""
        self._first = 0
        self._state = self._state_at(0)

    @property
    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What decides which tokens come in which order."""

    def _state_at(self, n_taken: int) -> dict[str, Any]:
        return {"first_epoch": self.epoch, "batch": n_taken, "of": self._identity}

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with `epoch`: for loaders whose workers do not stay, and so do not count epochs."""
        if not 0 <= epoch < 1 << 31:
            raise InvalidInputError(f"Expected `epoch` to be between 0 and 2³¹ - 1, found {epoch}.")
        self.epoch, self._first = epoch, 0
        self._state = self._state_at(0)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest iteration of this process is. Beside the workers of a loader, a batch's own `state` says it."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next iteration where `state` says; `InvalidInputError` where it is one of other tokens or another order."""
        mine = self._state_at(0)
        for name, value in mine["of"].items():
            found = state.get("of", {}).get(name)
            if found != value:
                raise InvalidInputError(
                    f"Expected a state of these batches, found one of other batches: its {name} is {found!r}, here {value!r}. "
                    "Make the batches with the settings that the state was made with."
                )
        self.epoch, self._first = int(state["first_epoch"]), int(state["batch"])
        self._state = self._state_at(self._first)
