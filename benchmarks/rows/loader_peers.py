"""SAELens' loader of cached activations, run on request in an environment of its own: its TransformerLens is not the peers'.

python benchmarks/rows/loader_peers.py FILE TOKENS WIDTH BATCH BUFFER, with FILE float16 [token, neuron]. The first line of
output lists the jobs; then each line of input names one, and `done` is printed when it has run. Imports nothing of actstore.

The file becomes the data set that `CacheActivationsRunner` saves, and an epoch of it is read as `from_cache_activations` reads
it: a mixing buffer of BUFFER tokens, of which half are kept for the next mix, gives batches of BATCH tokens.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Array2D, Dataset, Features
from sae_lens.training.activations_store import ActivationsStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONTEXT, PROMPTS = 256, 32
"""Tokens of a row of the data set, and rows that are read at once: the runner's defaults."""
HOOK = "blocks.0.mlp.hook_post"


def save(matrix: NDArray[np.float16], path: Path) -> None:
    """The data set, as the runner's `_create_shard` makes it."""
    features = Features({HOOK: Array2D(shape=(CONTEXT, matrix.shape[1]), dtype="float16")})
    rows = torch.from_numpy(np.array(matrix)).reshape(-1, CONTEXT, matrix.shape[1])
    Dataset.from_dict({HOOK: rows}, features=features).save_to_disk(str(path), num_shards=1)


def loader(path: Path, width: int, batch: int, buffer: int, n_tokens: int) -> ActivationsStore:
    """As `from_cache_activations` makes it, with batches of their own size."""
    nothing: Any = None
    return ActivationsStore(
        model=nothing, dataset=None, streaming=False, hook_name=HOOK, hook_head_index=None, context_size=CONTEXT, d_in=width,
        n_batches_in_buffer=buffer // CONTEXT, total_training_tokens=n_tokens, store_batch_size_prompts=PROMPTS,
        train_batch_size_tokens=batch, prepend_bos=False, normalize_activations="none", device=torch.device("cpu"),
        dtype="float16", cached_activations_path=str(path),
    )  # fmt: skip


def main() -> None:
    """Run jobs until the input ends."""
    file, n_tokens, width, batch, buffer = Path(sys.argv[1]), *map(int, sys.argv[2:])
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print goes to standard error
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    path = file.with_name("saelens")
    save(np.memmap(file, np.float16, "r", shape=(n_tokens, width)), path)

    def epoch() -> None:
        found = loader(path, width, batch, buffer, n_tokens)
        n = 0
        for _ in range(n_tokens // batch):
            activations = next(found)
            n += len(activations)
            if activations.dtype != torch.float16 or activations.shape[1] != width:
                raise AssertionError(f"batches of {activations.dtype}, {list(activations.shape)}")
        if n != n_tokens:
            raise AssertionError(f"{n} tokens of {n_tokens}")

    jobs = {f"SAELens {version('sae-lens')}, cached activations, mixing buffer of {buffer:,} tokens": epoch}
    print(json.dumps(list(jobs)), file=answers, flush=True)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            jobs[line.rstrip("\n")]()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
