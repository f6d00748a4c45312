"""TransformerLens' and delphi's ways of storing MLP activations, run on request in the peers' own environment.

python benchmarks/rows/peers.py FOLDER, with FOLDER/model and FOLDER/ids.pt. The first line of output lists the jobs; then each
line of input names one, and `done` is printed when it has run. Imports nothing of actstore, which is not installed there.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from delphi.latents import LatentCache
from transformer_lens import TransformerBridge
from transformers import LlamaForCausalLM

BATCH_WINDOWS = 8


def main() -> None:
    """Run jobs until the input ends."""
    folder = Path(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print goes to standard error
    ids = torch.load(folder / "ids.pt", weights_only=True)
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    bridge = TransformerBridge.boot_transformers(
        str(folder / "model"), hf_model=LlamaForCausalLM.from_pretrained(folder / "model"), device="cpu"
    )

    def bare() -> None:
        with torch.inference_mode():
            for batch in ids.split(BATCH_WINDOWS):
                model.model(input_ids=batch, use_cache=False)

    def transformer_lens() -> None:
        target = folder / "transformer_lens"
        target.mkdir(exist_ok=True)
        with torch.inference_mode():
            for i, batch in enumerate(ids.split(BATCH_WINDOWS)):
                _, cache = bridge.run_with_cache(batch, names_filter=lambda name: name.endswith("mlp.hook_post"))
                if len(cache) != len(model.model.layers):
                    raise AssertionError(f"expected one entry per layer, found {list(cache)}")
                for name, values in cache.items():
                    np.save(target / f"{i}-{name}.npy", values.half().numpy())

    def delphi() -> None:
        target = folder / "delphi"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        points = {f"layers.{i}.mlp.down_proj": lambda values: values for i in range(len(model.model.layers))}
        cache = LatentCache(model.model, points, batch_size=BATCH_WINDOWS, transcode=True)
        cache.run(ids.numel(), ids)
        cache.save(target)

    jobs = {
        "the peers' process: bare forward pass": bare,
        f"TransformerLens {version('transformer-lens')} run_with_cache, numpy.save of float16": transformer_lens,
        f"delphi {version('eai-delphi')} LatentCache, non-zero values and positions": delphi,
    }
    print(json.dumps(list(jobs)), file=answers, flush=True)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            jobs[line.rstrip("\n")]()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
