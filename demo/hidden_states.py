"""Hidden states of a model as other tools leave them, for `actstore import` to read.

    python demo/hidden_states.py demo/models/stdlib-llama build/demo/stdlib/330/keyword.py samples

Each piece of the text becomes a file FOLDER/hs_N.safetensors with `hidden_states` [token, layer, d_model], after 1, 2 and 3
layers, and `token_ids` [token]: what vLLM's connector and speculators write. Nothing of actstore is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

AFTER_LAYERS = (1, 2, 3)
MAX_TOKENS = 256
"""Of a piece."""
MAX_PIECES = 4


def main() -> None:
    """Run the model over the text, piece by piece."""
    name, text, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    ids = tokenizer(Path(text).read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    for number, piece in enumerate(ids.split(MAX_TOKENS)[:MAX_PIECES]):
        with torch.no_grad():
            states = model(piece[None], output_hidden_states=True).hidden_states
        stacked = torch.stack([states[layer][0] for layer in AFTER_LAYERS], dim=1)
        save_file({"hidden_states": stacked, "token_ids": piece.clone()}, Path(folder) / f"hs_{number}.safetensors")


if __name__ == "__main__":
    main()
