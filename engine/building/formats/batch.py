"""What every reader of a layout gives: arrays of some sequences, and what is known of their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actstore.store.arguments import Typed

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Batch:
    """The arguments of one `CaptureBuilder.add`."""

    activations: Mapping[Any, Any]
    ids: Any = None
    source: str | list[str] | None = None


@dataclass(frozen=True)
class ReadOptions(Typed):
    """What a layout does not say of itself."""

    ids: Any = None
    """Token ids of a cache in memory."""
    hooks: tuple[str, ...] = ()
    """Hooks to take, by name or by its end: `attn.hook_z`. All that have a site of a model unless said."""
    layers: tuple[int, ...] | None = None
    """Only these layers; of hidden states per sample, the numbers under which they were asked for."""
