"""The layout of delphi's cache of latents (eai-delphi 0.1.3), which its `LatentDataset` reads.

A folder per layer, `layers.3.mlp.post`, with a `config.json` and safetensors files `FIRST_LAST.safetensors`, named by the range
of latents that a file stands for: `locations` [activation, 3] of window, position, and latent less FIRST; `activations`
[activation]; `tokens` [window, position]. Each window of the capture is a row, padded behind, so that delphi's contexts are the
capture's windows where its `example_ctx_len` is `ctx_len`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors.numpy import save_file

from actstore.store.layout import SPECIAL
from actstore.store.tokens import check_tokens_known

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.exports.selection import Selection
    from actstore.store.reader import Capture

CONTEXT_MULTIPLE: Final = 32
"""delphi's own `example_ctx_len`, which must divide the length of a row."""
NEURONS_PER_FILE: Final = 256


def write(selection: Selection, folder: Path) -> int:
    """Write what is above zero at every token that counts; the number of tokens."""
    capture = selection.capture
    check_tokens_known(capture.record, "delphi's contexts")
    tokens = token_rows(capture)
    files = list(_files(selection.neurons))
    for number, (layer, first, last, neurons) in enumerate(files):
        module = folder / f"layers.{layer}.{selection.site}"
        module.mkdir(parents=True, exist_ok=True)
        locations, values = _activations(selection, neurons, first, is_last=number == len(files) - 1)
        small = locations.max(initial=0) < 1 << 16
        tensors = {
            "locations": locations.astype(np.uint16 if small else np.uint32),
            "activations": values,
            "tokens": tokens,
        }
        save_file(tensors, module / f"{first}_{last}.safetensors")
        (module / "config.json").write_text(json.dumps(_config(capture, tokens.shape[1]), indent=4), encoding="utf-8")
    return selection.n_tokens


def token_rows(capture: Capture) -> NDArray[np.int64]:
    """What the model read in each window that is committed, padded behind with a special token; [window, position]."""
    lengths = capture.windows()["n_inputs"].to_numpy()
    longest = -(-int(lengths.max(initial=1)) // CONTEXT_MULTIPLE) * CONTEXT_MULTIPLE
    rows = np.full((len(lengths), longest), _padding(capture), np.int64)
    for block in capture.blocks:
        plan = capture.block_plan(block)
        ends = np.cumsum(plan.windows["n_inputs"])
        for window, length, end in zip(plan.windows["window"], plan.windows["n_inputs"], ends, strict=True):
            rows[window, :length] = plan.inputs[end - length : end]
    return rows


def _padding(capture: Capture) -> int:
    vocabulary = capture.store.vocabulary
    special = vocabulary.filter(vocabulary["special"])["token"].to_pylist() if vocabulary is not None else []
    return int(special[0]) if special else 0


def _files(neurons: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, list[tuple[int, int]]]]:
    """(layer, first, last, neurons) of each file. Ranges follow one another, as delphi expects, also with gaps."""
    for layer in sorted({layer for layer, _ in neurons}):
        indices = sorted({index for one, index in neurons if one == layer})
        groups = [indices[i : i + NEURONS_PER_FILE] for i in range(0, len(indices), NEURONS_PER_FILE)]
        for number, group in enumerate(groups):
            last = groups[number + 1][0] - 1 if number + 1 < len(groups) else group[-1]
            yield layer, group[0], last, [(layer, index) for index in group]


def _activations(
    selection: Selection, neurons: list[tuple[int, int]], first: int, *, is_last: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Locations [activation, 3] and values of what is above zero, in the order of delphi: by window, position and latent."""
    capture, indices = selection.capture, np.array([index for _, index in neurons])
    locations: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    values: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    for block, of_block in selection.blocks(neurons, is_last=is_last):
        plan = capture.block_plan(block)
        window = plan.windows["window"].astype(np.int64)[plan.window_of_slot()]
        slots, rows = np.nonzero(((of_block > 0) & (plan.modality != SPECIAL)).T)
        found = np.stack([window[slots], plan.position[slots].astype(np.int64), indices[rows] - first], axis=1)
        order = np.lexsort((found[:, 2], found[:, 1], found[:, 0]))
        locations.append(found[order])
        values.append(of_block[rows, slots][order])
    return np.concatenate(locations), np.concatenate(values)


def _config(capture: Capture, n_positions: int) -> dict[str, Any]:
    """What delphi keeps of a cache. The tokens are in the files, so that it loads no data set by these names."""
    plan = capture.record.plan
    return {
        "dataset_repo": plan.corpus, "dataset_split": "", "dataset_name": "", "dataset_column": "text", "batch_size": 1,
        "cache_ctx_len": n_positions, "ctx_len": n_positions, "n_tokens": plan.n_windows * n_positions, "n_splits": 1,
        "model_name": capture.store.model.folder or capture.store.model.name,
    }  # fmt: skip
