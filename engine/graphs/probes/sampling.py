"""Windows of text drawn from the model itself: the cheapest way to more contexts in which neurons fire or do not.

A window begins with the first tokens of a window of a capture, drawn at random, and goes on as the model predicts, until it
is full or a special token ends it. Its tokens follow from the seed and its number: a window's random numbers are its own, and
windows run in batches of a fixed size, so that a run that was interrupted ends as one that was not. Knows nothing about what
is made of the windows.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from actstore.engine.graphs.probes.stepping import Steps, narrow_attention
from actstore.kernels.jit import default_threads
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.store.reader import Capture

BATCH_NBYTES: Final = 1 << 28
"""Bytes of keys, values and logits that a batch may take."""
MAX_BATCH: Final = 1024
SHORTER: Final = 0.05
"""Share of tokens by which windows are expected to end early, so that no batch is drawn for a rest."""
SMALL_PRODUCT: Final = 1 << 18
"""Weights of a projection up to which a batch runs on one core, beside others."""


@dataclass(frozen=True)
class SampleSettings(Typed):
    """Everything that decides which tokens are drawn."""

    n_tokens: int = 300_000
    """Windows are drawn until they hold so many."""
    window: int = 128
    """Longest window. On a small model, windows of 256 cost twice as much a token, for .003 of F1."""
    temperature: float = 1.0
    seed: int = 0
    prompt: int = 2
    """Tokens that a window takes over from the beginning of one of the capture's, special ones included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_tokens < 1:
            raise InvalidInputError(f"--sample is a number of tokens, at least 1, found {self.n_tokens}.")
        if self.window < 2:
            raise InvalidInputError(f"A sampled window holds at least 2 tokens, found {self.window}. Raise --window.")
        if not 0 < self.temperature < np.inf:
            raise InvalidInputError(f"--temperature is a number above 0, found {self.temperature}.")
        if not 0 <= self.seed < 1 << 64:
            raise InvalidInputError(f"--seed is a whole number, 0 or more, found {self.seed}.")
        if not 0 < self.prompt < self.window:
            raise InvalidInputError(
                f"A window of {self.window} begins with 1 to {self.window - 1} given tokens, found "
                f"{self.prompt}. Mend --prompt."
            )


class Sampled(NamedTuple):
    """A batch of sampled windows."""

    ids: NDArray[np.int32]
    """[window, position]; what lies behind a window's end means nothing."""
    lengths: NDArray[np.int32]
    """[window]"""


def prompts_of(capture: Capture, length: int) -> NDArray[np.int32]:
    """The first `length` tokens of every window of a capture that has as many; shape [window, position]."""
    windows, inputs = capture.windows(), capture.plan.array("inputs/ids")
    starts = windows["input_start"].to_numpy()[windows["n_inputs"].to_numpy() >= length]
    if not len(starts):
        raise InvalidInputError(
            f"No window of capture {capture.record.name!r} has the {length} tokens with which sampled windows are to begin. "
            "Lower --prompt."
        )
    prompts: NDArray[np.int32] = inputs[starts[:, None] + np.arange(length)]
    return prompts


class Sampler:
    """Draws windows from a model."""

    def __init__(
        self, model: LoadedModel, prompts: NDArray[np.int32], ends: frozenset[int], settings: SampleSettings
    ) -> None:
        """Windows begin with one of `prompts` [prompt, position]; a token of `ends` ends one and is no part of it.

        `ModelError` for a model that does not continue a text.
        """
        spec = model.spec
        if spec.kind != "causal" or not spec.causal:
            raise ModelError(
                f"expected a model that continues a text, and {spec.name} does not ({spec.kind}): windows cannot be sampled "
                "from it; capture more text instead"
            )
        if spec.context is not None and settings.window > spec.context:
            raise InvalidInputError(
                f"{spec.name} reads at most {spec.context} tokens at once, found a window of {settings.window}. Lower --window."
            )
        self._model, self._prompts, self._settings = model, prompts, settings
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=model.device)
        self.batch_size = _batch_size(model, settings)
        """Windows of a batch; it changes their rounding, and with it what is drawn."""
        self._small = model.device.type == "cpu" and all(s.neurons * s.d_model <= SMALL_PRODUCT for s in spec.layers)

    def batches(self, load: Callable[[int], Sampled | None], save: Callable[[int, Sampled], None]) -> Iterator[Sampled]:
        """Batch after batch, in order, until they hold the tokens wanted: loaded where an earlier run saved it, else drawn.

        What is drawn is saved. Of a small model on a CPU, as many batches as there are cores run at once, each on one, and
        none of which it is sure that it will not be needed.
        """

        def make(number: int) -> Sampled:
            if (known := load(number)) is not None:
                return known
            drawn = self.draw(number)
            save(number, drawn)
            return drawn

        wanted, numbers = self._settings.n_tokens, itertools.count()
        with narrow_attention(self._model):
            if not self._small:
                while wanted > 0:
                    yield (batch := make(next(numbers)))
                    wanted -= int(batch.lengths.sum())
                return
            n_threads = default_threads()
            with one_core_each(), ThreadPoolExecutor(n_threads, thread_name_prefix="actstore-sample") as pool:
                waiting: deque[Future[Sampled]] = deque()
                full = self.batch_size * self._settings.window
                try:
                    while wanted > 0:
                        while len(waiting) < min(n_threads, -(-wanted // full)):
                            waiting.append(pool.submit(make, next(numbers)))
                        yield (batch := waiting.popleft().result())
                        wanted -= int(batch.lengths.sum())
                finally:
                    for future in waiting:
                        future.cancel()

    def draw(self, number: int) -> Sampled:
        """The windows of batch `number`."""
        settings, device = self._settings, self._model.device
        first = number * self.batch_size
        streams = [
            np.random.Generator(np.random.Philox(key=[settings.seed, window]))
            for window in range(first, first + self.batch_size)
        ]
        chosen = np.array([int(stream.integers(len(self._prompts))) for stream in streams])
        uniform = np.stack([stream.random(settings.window - settings.prompt) for stream in streams])
        thresholds = torch.from_numpy(uniform).to(device)
        ids = np.zeros((self.batch_size, settings.window), np.int32)
        ids[:, : settings.prompt] = self._prompts[chosen]
        lengths = np.full(self.batch_size, settings.window, np.int32)
        rows, left = np.arange(self.batch_size), None
        given = torch.from_numpy(ids[:, : settings.prompt].astype(np.int64)).to(device)
        steps = Steps(self._model, settings.window, threads=1 if self._small else None)
        with torch.inference_mode():
            for position in range(settings.prompt, settings.window):
                logits = steps.step(given, left).float()
                tokens = _pick(logits / settings.temperature, thresholds[rows, position - settings.prompt])
                ends = torch.isin(tokens, self._ends).cpu().numpy()
                lengths[rows[ends]] = position
                ids[rows, position] = tokens.cpu().numpy()
                alive, left = lengths[rows] > position, None
                if not alive.any():
                    break
                # Leaving rows out costs a copy of all keys and values.
                if alive.sum() < 0.75 * len(rows):
                    left = torch.from_numpy(np.flatnonzero(alive)).to(device)
                    rows, tokens = rows[alive], tokens[left]
                given = tokens[:, None]
        return Sampled(ids, lengths)


def take_tokens(batches: Iterator[Sampled], n_tokens: int) -> Iterator[NDArray[np.int32]]:
    """The windows of the batches, the last one cut, that hold `n_tokens` together; windows of nothing but a prompt count."""
    left = n_tokens
    for batch in batches:
        for row, length in zip(batch.ids, batch.lengths.tolist(), strict=True):
            yield row[: min(length, left)]
            left -= length
            if left <= 0:
                return


def _pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token [window] at which the summed probability first passes `uniform` [window], in double precision."""
    summed = torch.softmax(logits.double(), -1).cumsum(-1)
    return torch.searchsorted(summed, uniform[:, None] * summed[:, -1:], right=True)[:, 0].clamp(
        max=logits.shape[1] - 1
    )


def _batch_size(model: LoadedModel, settings: SampleSettings) -> int:
    """Windows of a batch: as many in each as there must be, whose keys, values and last logits fit `BATCH_NBYTES`.

    As if there were as many heads of keys as of queries.
    """
    n_blocks = len({spec.block for spec in model.spec.layers})
    kept = 2 * n_blocks * model.spec.d_model * settings.window * model.dtype.itemsize
    fitting = BATCH_NBYTES // (kept + 24 * (model.spec.n_vocabulary or 0))
    largest = max(1, min(MAX_BATCH, fitting))
    wanted = math.ceil((1 + SHORTER) * settings.n_tokens / settings.window)
    return math.ceil(wanted / math.ceil(wanted / largest))


@contextmanager
def one_core_each() -> Iterator[None]:
    """While open, every thread's products run on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
