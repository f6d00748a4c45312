"""Captures of the tiny model, made once for each set of settings, and what plain hooks see over the same batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actstore.engine.capture import api as capture_run
from actstore.engine.capture import corpus_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.store.reader import Capture

    PlainRun = Callable[[Capture], dict[tuple[str, int], Tensor]]


class Captured(Protocol):
    """Gives a finished capture of the tiny model over the corpus; not to be written to."""

    def __call__(self, *, dtype: str = "auto", **settings: Any) -> Capture: ...


@pytest.fixture(scope="session")
def captured(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """Captures by settings; small blocks, so that a few hundred tokens fill several."""
    made: dict[str, Capture] = {}

    def capture(*, dtype: str = "auto", **changes: Any) -> Capture:
        settings: dict[str, Any] = {"context": 32, "max_tokens": 900, "label_columns": ("language",)} | changes
        key = f"{dtype} {sorted(settings.items())}"
        if key not in made:
            store = tmp_path_factory.mktemp("captured") / "store"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(corpus_run, "BLOCK_SLOTS", 256)
                options = capture_run.RunOptions(dtype=dtype)
                made[key] = capture_run.capture(str(tiny_model), corpus, store, options=options, **settings)
        return made[key]

    return capture


def planned_batches(capture: Capture) -> Iterator[tuple[list[NDArray[np.int32]], list[tuple[int, NDArray[np.int32]]]]]:
    """For every batch: the ids of each window; and each window's first slot with the positions that its slots hold."""
    windows, inputs = capture.plan.table("windows").to_pylist(), capture.plan.array("inputs/ids")
    positions = capture.plan.array("tokens/position")
    for key in dict.fromkeys((w["block"], w["batch"]) for w in windows):
        batch = [w for w in windows if (w["block"], w["batch"]) == key]
        yield (
            [inputs[w["input_start"] : w["input_start"] + w["n_inputs"]] for w in batch],
            [(w["slot_start"], positions[w["slot_start"] : w["slot_start"] + w["n_slots"]]) for w in batch],
        )


@pytest.fixture(scope="session")
def plain_run(tiny_model: Path) -> PlainRun:
    """What hooks of one's own on a freshly loaded model see: (site, layer) → values [slot, neuron] over the whole plan."""

    def run(capture: Capture) -> dict[tuple[str, int], Tensor]:
        dtype = getattr(torch, capture.record.dtype)
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
        seen: dict[tuple[str, int], Tensor] = {}

        def keep(site: str, layer: int, output: bool = True) -> Callable[..., None]:
            def hook(module: Any, args: Any, kwargs: Any, result: Any = None) -> None:
                value = result if output else args[0] if args else kwargs["hidden_states"]
                seen[site, layer] = value[0] if isinstance(value, tuple) else value

            return hook

        for i, block in enumerate(model.model.layers):
            for site, module in (("resid.pre", block), ("resid.mid", block.post_attention_layernorm),
                                 ("mlp.post", block.mlp.down_proj), ("attn.z", block.self_attn.o_proj)):  # fmt: skip
                module.register_forward_pre_hook(keep(site, i, output=False), with_kwargs=True)
            for site, module in (("resid.post", block), ("attn.out", block.self_attn), ("mlp.gate", block.mlp.act_fn),
                                 ("mlp.up", block.mlp.up_proj), ("attn.q", block.self_attn.q_proj),
                                 ("attn.k", block.self_attn.k_proj), ("attn.v", block.self_attn.v_proj)):  # fmt: skip
                module.register_forward_hook(keep(site, i), with_kwargs=True)
        found: dict[tuple[str, int], Tensor] = {}
        n_slots = capture.record.plan.n_blocks * capture.record.plan.block_slots
        for windows, slots in planned_batches(capture):
            longest = max(map(len, windows))
            ids = torch.zeros((len(windows), longest), dtype=torch.long)
            mask = torch.zeros((len(windows), longest), dtype=torch.long)
            for row, window in enumerate(windows):
                ids[row, : len(window)], mask[row, : len(window)] = torch.from_numpy(window.astype(np.int64)), 1
            with torch.inference_mode():
                model.model(input_ids=ids, attention_mask=None if mask.all() else mask, use_cache=False)
            for key, values in seen.items():
                out = found.setdefault(key, torch.full((n_slots, values.shape[-1]), torch.nan, dtype=dtype))
                for row, (first, positions) in enumerate(slots):
                    out[first : first + len(positions)] = values[row, positions.astype(np.int64)]
        return found

    return run
