"""Windows of text drawn from a model: the cheapest way to more contexts in which neurons fire or do not.

A window begins with the first tokens of a random window of a capture, and continues with tokens drawn from the model's
predictions until it is full or a special token ends it. Its tokens depend only on the seed and its number: each window has
random numbers of its own, and windows run in batches of a fixed size, so that an interrupted run ends with the same windows.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from actstore.engine.graphs.probes.stepping import Steps, narrow_attention
from actstore.kernels.jit import default_threads
from actstore.kernels.torch_threads import torch_threads
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.store.reader import Capture

BATCH_NBYTES: Final = 1 << 28
"""Maximum number of bytes of keys, values and logits per batch."""
MAX_BATCH: Final = 1024
"""Maximum number of windows per batch."""
SHORTER: Final = 0.05
"""Expected share of tokens that are missing because windows end early: without it a further batch would often be needed."""
SMALL_PRODUCT: Final = 1 << 18
"""Maximum number of weights of a projection for which a batch runs on one core, in parallel with other batches."""


@dataclass(frozen=True)
class SampleSettings(Typed):
    """The settings that determine which tokens are drawn."""

    n_tokens: int = 300_000
    """Number of tokens of all windows."""
    window: int = 128
    """Maximum number of tokens per window. On a small model, 256 cost twice as much per token and gain 0.003 of F1."""
    temperature: float = 1.0
    seed: int = 0
    """Random seed."""
    prompt: int = 2
    """Number of tokens that a window takes from the beginning of one of the capture's, special tokens included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_tokens < 1:
            raise InvalidInputError(f"`sample` must be 1 token or more, found {self.n_tokens}.")
        if self.window < 2:
            raise InvalidInputError(f"`window` must be 2 tokens or more, found {self.window}.")
        if not 0 < self.temperature < np.inf:
            raise InvalidInputError(f"`temperature` must be above 0 and finite, found {self.temperature}.")
        if not 0 <= self.seed < 1 << 64:
            raise InvalidInputError(f"`seed` must be 0 or more and below 2**64, found {self.seed}.")
        if not 0 < self.prompt < self.window:
            raise InvalidInputError(
                f"`prompt` must be from 1 to {self.window - 1} for windows of {self.window} tokens, found {self.prompt}."
            )


class Sampled(NamedTuple):
    """A batch of sampled windows."""

    ids: NDArray[np.int32]
    """[window, position]; values behind the end of a window are undefined."""
    lengths: NDArray[np.int32]
    """[window]"""


def prompts_of(capture: Capture, length: int) -> NDArray[np.int32]:
    """The first `length` tokens of every window of a capture with as many or more; shape [window, position]."""
    windows, inputs = capture.windows(), capture.plan.array("inputs/ids")
    starts = windows["input_start"].to_numpy()[windows["n_inputs"].to_numpy() >= length]
    if not len(starts):
        raise InvalidInputError(
            f"No window of capture {capture.record.name!r} has the {length} tokens with which sampled windows begin. "
            "Pass a smaller `prompt`."
        )
    prompts: NDArray[np.int32] = inputs[starts[:, None] + np.arange(length)]
    return prompts


class Sampler:
    """Draws windows from a model."""

    def __init__(
        self, model: LoadedModel, prompts: NDArray[np.int32], ends: frozenset[int], settings: SampleSettings
    ) -> None:
        """Windows begin with one of `prompts` [prompt, position]; a token of `ends` ends a window and is not part of it.

        `ModelError` for a model that does not predict the next token.
        """
        spec = model.spec
        if spec.kind != "causal" or not spec.causal:
            raise ModelError(
                f"expected a model that continues a text, and {spec.name} does not ({spec.kind}): windows cannot be sampled "
                "from it; capture more text instead"
            )
        if spec.context is not None and settings.window > spec.context:
            raise InvalidInputError(
                f"{spec.name} reads at most {spec.context} tokens at once, found `window` {settings.window}. "
                "Pass a smaller one."
            )
        self._model, self._prompts, self._settings = model, prompts, settings
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=model.device)
        self.batch_size = _batch_size(model, settings)
        """Number of windows per batch; it changes the rounding of logits, and with it the tokens that are drawn."""
        self._small = model.device.type == "cpu" and all(s.neurons * s.d_model <= SMALL_PRODUCT for s in spec.layers)

    def batches(self, load: Callable[[int], Sampled | None], save: Callable[[int, Sampled], None]) -> Iterator[Sampled]:
        """The batches in order, until they have `n_tokens` tokens: loaded where an earlier run saved them, else drawn.

        What is drawn is saved. Of a small model on a CPU, as many batches as there are cores run in parallel, each on one core;
        no batch is begun that is certain not to be needed.
        """

        def make(number: int) -> Sampled:
            if (saved := load(number)) is not None:
                return saved
            batch = self.draw(number)
            save(number, batch)
            return batch

        n_missing, numbers = self._settings.n_tokens, itertools.count()
        with narrow_attention(self._model):
            if not self._small:
                while n_missing > 0:
                    yield (batch := make(next(numbers)))
                    n_missing -= int(batch.lengths.sum())
                return
            n_threads = default_threads()
            with torch_threads(1), ThreadPoolExecutor(n_threads, thread_name_prefix="actstore-sample") as pool:
                pending: deque[Future[Sampled]] = deque()
                full = self.batch_size * self._settings.window
                try:
                    while n_missing > 0:
                        while len(pending) < min(n_threads, -(-n_missing // full)):
                            pending.append(pool.submit(make, next(numbers)))
                        yield (batch := pending.popleft().result())
                        n_missing -= int(batch.lengths.sum())
                finally:
                    for future in pending:
                        future.cancel()

    def draw(self, number: int) -> Sampled:
        """The windows of batch `number`."""
        settings, device = self._settings, self._model.device
        first = number * self.batch_size
        streams = [
            np.random.Generator(np.random.Philox(key=[settings.seed, window]))
            for window in range(first, first + self.batch_size)
        ]
        prompt_index = np.array([int(stream.integers(len(self._prompts))) for stream in streams])
        uniform = np.stack([stream.random(settings.window - settings.prompt) for stream in streams])
        thresholds = torch.from_numpy(uniform).to(device)
        ids = np.zeros((self.batch_size, settings.window), np.int32)
        ids[:, : settings.prompt] = self._prompts[prompt_index]
        lengths = np.full(self.batch_size, settings.window, np.int32)
        rows, selection = np.arange(self.batch_size), None  # the windows that have not ended
        new_tokens = torch.from_numpy(ids[:, : settings.prompt].astype(np.int64)).to(device)
        steps = Steps(self._model, settings.window, threads=1 if self._small else None)
        with torch.inference_mode():
            for position in range(settings.prompt, settings.window):
                logits = steps.step(new_tokens, selection).float()
                tokens = _pick(logits / settings.temperature, thresholds[rows, position - settings.prompt])
                ends = torch.isin(tokens, self._ends).cpu().numpy()
                lengths[rows[ends]] = position
                ids[rows, position] = tokens.cpu().numpy()
                is_open, selection = lengths[rows] > position, None
                if not is_open.any():
                    break
                # To leave out windows that ended, all keys and values are copied: only where that is worth it.
                if is_open.sum() < 0.75 * len(rows):
                    selection = torch.from_numpy(np.flatnonzero(is_open)).to(device)
                    rows, tokens = rows[is_open], tokens[selection]
                new_tokens = tokens[:, None]
        return Sampled(ids, lengths)


def take_tokens(batches: Iterator[Sampled], n_tokens: int) -> Iterator[NDArray[np.int32]]:
    """The windows of the batches up to `n_tokens` tokens, the last one cut; windows of a prompt alone count, too."""
    n_missing = n_tokens
    for batch in batches:
        for row, length in zip(batch.ids, batch.lengths.tolist(), strict=True):
            yield row[: min(length, n_missing)]
            n_missing -= length
            if n_missing <= 0:
                return


def _pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """[window] the first token at which the cumulative probability exceeds `uniform` [window], in double precision."""
    cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0].clamp(
        max=logits.shape[1] - 1
    )


def _batch_size(model: LoadedModel, settings: SampleSettings) -> int:
    """Number of windows per batch, the same in each, so that their keys, values and last logits fit in `BATCH_NBYTES`.

    An upper bound of the memory: as if there were as many key heads as query heads.
    """
    n_blocks = len({spec.block for spec in model.spec.layers})
    cache_nbytes = 2 * n_blocks * model.spec.d_model * settings.window * model.dtype.itemsize
    n_fitting = BATCH_NBYTES // (cache_nbytes + 24 * (model.spec.n_vocabulary or 0))
    largest = max(1, min(MAX_BATCH, n_fitting))
    n_windows = math.ceil((1 + SHORTER) * settings.n_tokens / settings.window)
    return math.ceil(n_windows / math.ceil(n_windows / largest))
