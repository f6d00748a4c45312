"""Which windows of a capture test the graph of a neuron, and which are evidence.

The exemplars of a neuron are the windows with its largest activations. A random half of them are test windows, and so are some
ordinary windows, the same for all neurons. Test windows and windows with the same tokens are never evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED, TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.reader import Capture


@dataclass(frozen=True)
class SplitSettings(Typed):
    """How many windows test a graph, and which random draw of them."""

    n_exemplars: int = 20
    """Number of windows with a neuron's largest activations; half of them, rounded down, are test windows."""
    n_ordinary: int = 40
    """Number of windows that test all neurons; at most half of the capture's."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_exemplars < 2:
            raise InvalidInputError(f"`exemplars` must be 2 or more, to build and to test, found {self.n_exemplars}.")
        if self.n_ordinary < 0:
            raise InvalidInputError(f"`ordinary` must be 0 or more, found {self.n_ordinary}.")
        if self.seed < 0:
            raise InvalidInputError(f"`seed` must be 0 or more, found {self.seed}.")


class Exemplars(NamedTuple):
    """The exemplars of a neuron, as indices of the split's windows: those to build from and those to test on."""

    build: NDArray[np.int64]
    test: NDArray[np.int64]


class Windows:
    """The committed windows of some captures of a store, one capture after another: their tokens, and which are duplicates."""

    def __init__(self, captures: Sequence[Capture]) -> None:
        blocks = [capture.plan.block(block) for capture in captures for block in capture.blocks]
        n_inputs = np.concatenate([block.windows["n_inputs"] for block in blocks])
        n_slots = np.concatenate([block.windows["n_slots"] for block in blocks])
        inputs = np.concatenate([block.inputs for block in blocks])
        modality = np.concatenate([block.modality for block in blocks])
        self.number: NDArray[np.int64] = np.concatenate([block.windows["window"] for block in blocks]).astype(np.int64)
        """[window] its number in its capture."""
        self.n_first = sum(
            len(capture.plan.block(block).windows["window"]) for capture in captures[:1] for block in capture.blocks
        )
        """Number of windows of the first capture."""
        self.start: NDArray[np.int64] = np.concatenate([[0], np.cumsum(n_slots, dtype=np.int64)])
        """[window + 1] the first of its tokens, in the order of `Capture.activations`, captures one after another."""
        self.position: NDArray[np.int32] = np.concatenate([block.position for block in blocks])
        """[token] its position in its window."""
        self.text: NDArray[np.bool_] = (modality == TEXT) | (modality == GENERATED)
        """[token] whether it is text: special tokens and images are only context."""
        self._inputs = np.split(inputs, np.cumsum(n_inputs)[:-1])
        first: dict[bytes, int] = {}
        copies = [first.setdefault(ids.tobytes(), i) for i, ids in enumerate(self._inputs)]
        self.first_copy: NDArray[np.int64] = np.array(copies, np.int64)
        """[window] the first window with the same tokens: itself, unless it is a duplicate."""

    def __len__(self) -> int:
        return len(self.number)

    def tokens(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indices of the tokens of some windows, one window after another."""
        starts, sizes = self.start[windows], self.start[windows + 1] - self.start[windows]
        ends = np.cumsum(sizes)
        return np.repeat(starts - ends + sizes, sizes) + np.arange(sizes.sum())

    def inputs(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """The token ids that were read in some windows; the index in them of each window's beginning, and of each token."""
        inputs = [self._inputs[window] for window in windows.tolist()]
        sizes = np.array([len(ids) for ids in inputs], np.int64)
        begins = (np.cumsum(sizes) - sizes).astype(np.int64)
        n_slots = self.start[windows + 1] - self.start[windows]
        positions = np.repeat(begins, n_slots) + self.position[self.tokens(windows)].astype(np.int64)
        ids: NDArray[np.int32] = np.concatenate([np.empty(0, np.int32), *inputs])
        return ids, begins, positions

    def copies_of(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """All windows, of every capture, with the same tokens as any of `windows`, these included."""
        return np.flatnonzero(np.isin(self.first_copy, self.first_copy[windows]))


class Split:
    """The test windows of a capture: ordinary windows for all neurons, and exemplars of each neuron."""

    def __init__(self, windows: Windows, settings: SplitSettings = SplitSettings()) -> None:
        """Draw the ordinary windows from those of the first capture; `InvalidInputError` where it has too few windows."""
        has_text = np.add.reduceat(np.append(windows.text, False), windows.start[:-1]) > 0
        index = np.arange(len(windows))
        usable = np.flatnonzero(has_text & (windows.first_copy == index) & (index < windows.n_first))
        if len(usable) < 4:
            raise InvalidInputError(
                f"An evaluation needs 4 or more different windows of text, found {len(usable)}. Capture more text, or "
                "capture it with a smaller `context`."
            )
        self.windows, self.settings = windows, settings
        rng = np.random.default_rng([settings.seed, 0])
        n_ordinary = min(settings.n_ordinary, len(usable) // 2)
        self.ordinary: NDArray[np.int64] = np.sort(rng.choice(usable, n_ordinary, replace=False))
        """The indices of the ordinary test windows."""
        self._candidates = np.setdiff1d(usable, self.ordinary)

    def exemplars(self, values: NDArray[np.float32], layer: int, neuron: int) -> Exemplars:
        """The exemplars of a neuron by its activations [token]: no duplicates, and no ordinary test windows.

        Only finite activations at text count; ties go to the earlier window. A window without any is no exemplar.
        """
        text_values = np.where(self.windows.text & np.isfinite(values), values, -np.inf).astype(np.float32)
        maxima = np.maximum.reduceat(text_values, self.windows.start[:-1])[self._candidates]
        largest = np.argsort(-maxima, kind="stable")[: self.settings.n_exemplars]
        exemplars = self._candidates[largest[np.isfinite(maxima[largest])]]
        shuffled = np.random.default_rng([self.settings.seed, 1, layer, neuron]).permutation(exemplars)
        n_test = len(shuffled) // 2
        return Exemplars(np.sort(shuffled[n_test:]), np.sort(shuffled[:n_test]))
