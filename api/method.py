"""What the methods of a store have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from actstore.store.reader import Store


class Method:
    """A method of a store, which may be called itself and may have further ones."""

    _reached_as: ClassVar[str]
    """How users reach it, such as `store.naica`; messages name it so."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        names = [name for name in dir(self) if not name.startswith("_")]
        calls = ["(…)"] * callable(self) + [f".{name}" for name in names]
        return f"{type(self).__name__} of {self._store.folder}: {', '.join(calls)}"
