"""What a method answers: a table to look at and to work with, and the method's own object for whoever needs more."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from actstore.store.table import Table

Details = TypeVar("Details")


@dataclass(frozen=True, repr=False)
class Answer(Generic[Details]):
    """The answer of a method. Prints as its table, in a terminal and in a notebook."""

    table: Table
    """One row per neuron, label, layer or whatever the method is about; its columns are in the method's docstring."""
    details: Details
    """The method's own object, with arrays over all neurons."""
    warnings: tuple[str, ...] = field(default=())
    """Reasons to doubt the answer, a sentence each."""

    def __repr__(self) -> str:
        return "\n".join([str(self.table), *(f"Warning: {warning}" for warning in self.warnings)])

    def _repr_html_(self) -> str:
        warnings = (f"<div>Warning: {escape(warning)}</div>" for warning in self.warnings)
        return "".join([self.table._repr_html_(), *warnings])
