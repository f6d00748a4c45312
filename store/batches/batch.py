"""One batch: activations of some tokens, and which tokens they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from actstore.store.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Batch:
    """Tokens in the order of training. Arrays are torch tensors, or of NumPy where that was asked for.

    >>> for batch in store.batches("resid.post", 3):
    ...     loss = model(batch.activations)
    """

    activations: Any
    """[token, neuron]; several layers, or sites, side by side: `batch.layer(3)` is the part of one."""
    token: Any
    """[token] the token's slot, int64: as the next ones, the column of this name of `capture.tokens()`."""
    id: Any
    """[token] int32."""
    position: Any
    """[token] in its window, int32."""
    window: Any
    """[token] int32."""
    document: Any
    """[token] int32."""
    labels: dict[str, Any]
    """Label column → [token] number of the token's label among `batches.label_values[column]`, int32."""
    epoch: int
    number: int
    """Of the batch in its epoch, from 0."""
    state: dict[str, Any]
    """What `batches.load_state_dict` takes to go on behind this batch."""
    columns: dict[tuple[str, int], tuple[int, int]]
    """(site, layer) → its first column of `activations`, and the one behind its last."""
    source: int = 0
    """Of mixed batches: which of the sources gave it."""

    def __len__(self) -> int:
        return len(self.token)

    def layer(self, layer: int, site: str | None = None) -> Any:
        """The activations of one layer, a part of `activations` [token, neuron]; `site` where batches have several."""
        places = [place for place in self.columns if place[1] == layer and site in (None, place[0])]
        if len(places) != 1:
            known = ", ".join(f"layer {other} at {name}" for name, other in self.columns)
            what = f"layer {layer}" + (f" at {site}" if site else "")
            raise NotFoundError(f"Expected one layer of this batch, found {len(places)} for {what}. It has {known}.")
        first, stop = self.columns[places[0]]
        return self.activations[:, first:stop]

    def _with_arrays(self, change: Callable[[Any], Any]) -> Batch:
        names = ("activations", "token", "id", "position", "window", "document")
        arrays = {name: change(getattr(self, name)) for name in names}
        return replace(self, labels={name: change(values) for name, values in self.labels.items()}, **arrays)

    def to(self, device: Any, *, non_blocking: bool = False) -> Batch:
        """The batch on a device of torch."""
        return self._with_arrays(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in memory from which a GPU copies by itself; `DataLoader(…, pin_memory=True)` calls it."""
        return self._with_arrays(lambda tensor: tensor.pin_memory())
