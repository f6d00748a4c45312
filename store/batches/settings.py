"""What batches hold and in which order they come; importing it loads neither torch nor the compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actstore.store.arguments import Typed
from actstore.store.capture.positions import POSITIONS
from actstore.store.errors import InvalidInputError

DTYPES: Final = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""The formats of activations in batches → their dtype in NumPy, which has no bfloat16 and holds its bits."""
NORMALISATIONS: Final = {
    "neuron": "(x - mean) / std of each neuron",
    "norm": "x * sqrt(n / E|x|²), n the number of neurons of a layer: squared norms of tokens are n in the mean",
}
"""The values of `normalize` → what becomes of an activation x, by the capture's statistics."""
LARGEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True)
class BatchSettings(Typed):
    """What batches hold and in which order they come."""

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    batch: int = 4096
    """Tokens of a batch."""
    shuffle: bool = True
    seed: int = 0
    window: int = 4
    """Blocks whose tokens are permuted together."""
    labels: tuple[str, ...] = ()
    """Label columns that batches have."""
    where: str | None = None
    """A condition of SQL on the columns of the documents table."""
    positions: str = "counted"
    """A key of `store.capture.positions.POSITIONS`."""
    skip: int = 0
    """Positions at the beginning of each window that are left out."""
    dtype: str = "float32"
    normalize: str | None = None
    """A key of `NORMALISATIONS`."""
    epochs: int = 1
    """Epochs that one iteration passes."""
    drop_last: bool = False
    rank: int = 0
    ranks: int = 1
    threads: int = 1
    """Threads that read the next window while batches of this one are taken; with 0, it is read when it is needed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("batch", 1), ("window", 1), ("skip", 0), ("epochs", 1), ("ranks", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"Expected `{name}` to be {least} or more, found {getattr(self, name)}.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InvalidInputError(f"Expected `seed` to be between 0 and 2⁶³ - 1, found {self.seed}.")
        if not 0 <= self.rank < self.ranks:
            raise InvalidInputError(f"Expected `rank` to be one of 0 to {self.ranks - 1}, found {self.rank}.")
        for name, known in (("dtype", DTYPES), ("positions", POSITIONS), ("normalize", NORMALISATIONS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InvalidInputError(f"Expected `{name}` to be one of {', '.join(known)}, found {value!r}.")
        for name in ("sites", "layers"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InvalidInputError(f"Expected `{name}` to name one or several, each once, found {values}.")

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """(site, layer) of what stands side by side in a batch, from its first column on."""
        return tuple((site, layer) for site in self.sites for layer in self.layers)
