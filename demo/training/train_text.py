"""Trains the embedded text model: a small Llama on the Python standard library's own source.

    python demo/training/train_text.py --out demo/models/stdlib-llama

Everything is derived from the running interpreter's standard library, so the result depends on its version (recorded in
the log). Whole files are held out by a hash of their path; the log ends with held-out bits per byte of the model as saved
(float16) beside Kneser-Ney 5-grams over the same tokens and over bytes, counted on the same training files.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from byte_level import BOS, train_byte_level
from ngram import KneserNey
from training import LOG_EVERY, Log, Schedule, Training, open_log
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

N_VOCAB, CONTEXT, BATCH = 4096, 512, 16
HELD_OUT_PERCENT = 4


def read_standard_library() -> tuple[list[str], list[str]]:
    """The `.py` files of the running interpreter as (training texts, held-out texts), without third-party packages."""
    root = Path(sysconfig.get_path("stdlib"))
    training, held_out = [], []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # the test suite's deliberately broken files
            continue
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        (held_out if digest % 100 < HELD_OUT_PERCENT else training).append(text)
    return training, held_out


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `N_VOCAB` tokens whose encodings begin with `<s>`."""
    return train_byte_level(texts, N_VOCAB, CONTEXT)


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one sequence of token ids, each text after `<s>`."""
    encodings = tokenizer.backend_tokenizer.encode_batch(texts)
    return torch.from_numpy(np.concatenate([np.array(e.ids, np.int64) for e in encodings]))


def build_model() -> LlamaForCausalLM:
    """The untrained model: 4 layers, width 256, 672 neurons per layer (2,688 in all), 3.9 million parameters."""
    config = LlamaConfig(
        vocab_size=N_VOCAB, hidden_size=256, intermediate_size=672, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=BOS,
        eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@torch.no_grad()
def held_out_nats(model: LlamaForCausalLM, ids: torch.Tensor, max_windows: int | None = None) -> tuple[float, int]:
    """Summed negative log-likelihood (nats) and token count; half-overlapping windows, each token scored once."""
    stride = CONTEXT // 2
    starts = range(0, len(ids) - CONTEXT, stride)
    if max_windows:
        starts = starts[:: max(1, len(starts) // max_windows)]
    nats, n_tokens = 0.0, 0
    model.eval()
    for start in starts:
        window = ids[start : start + CONTEXT + 1]
        log_p = model(input_ids=window[None, :-1]).logits[0].float().log_softmax(-1)
        scored = slice(0 if start == 0 else CONTEXT - stride, CONTEXT)
        nats -= log_p.gather(1, window[1:, None])[scored].sum().item()
        n_tokens += scored.stop - scored.start
    model.train()
    return nats, n_tokens


def learn(training: Training, ids: torch.Tensor, held_out: torch.Tensor, log: Log) -> None:
    """Next-token training on random windows; one line of the log every 50 steps."""
    generator = torch.Generator().manual_seed(1)
    model, n_steps = training.model, training.schedule.n_steps
    began = time.monotonic()
    for step in range(n_steps):
        starts = torch.randint(0, len(ids) - CONTEXT - 1, (BATCH,), generator=generator)
        batch = torch.stack([ids[s : s + CONTEXT] for s in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        training.descend()
        if step % LOG_EVERY == 0 or step == n_steps - 1:
            row = {"step": step, "loss": round(loss.item(), 4), "seconds": round(time.monotonic() - began)}
            if step % 500 == 0:
                nats, n_tokens = held_out_nats(model, held_out, max_windows=60)
                row["held_out_loss"] = round(nats / n_tokens, 4)
            log(row)


def evaluate(
    folder: Path, ids: torch.Tensor, held_out: torch.Tensor, training: list[str], texts: list[str]
) -> dict[str, Any]:
    """Held-out bits per byte of the saved model and of the two 5-gram models."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    n_bytes = sum(len(t.encode()) for t in texts)
    bytes_per_token = n_bytes / (len(held_out) - len(texts))
    nats, n_tokens = held_out_nats(model, held_out)
    row = {"held_out_loss": nats / n_tokens, "bits_per_byte": nats / n_tokens / math.log(2) / bytes_per_token}
    p = KneserNey(ids.numpy(), 5, 12).probabilities(held_out.numpy())
    row["token_5gram_bits_per_byte"] = float(-np.log2(p).mean()) / bytes_per_token
    as_bytes = [np.frombuffer("\0".join(t).encode(), np.uint8).astype(np.int64) for t in (training, texts)]
    row["byte_5gram_bits_per_byte"] = float(-np.log2(KneserNey(as_bytes[0], 5, 8).probabilities(as_bytes[1])).mean())
    return {k: round(v, 4) for k, v in row.items()} | {"held_out_bytes": n_bytes, "held_out_tokens": n_tokens}


def main() -> None:
    """Train, save as float16 safetensors, evaluate the saved model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=2200, help="number of training steps")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    training, texts = read_standard_library()
    tokenizer = train_tokenizer(training)
    tokenizer.save_pretrained(arguments.out)
    ids, held_out = token_stream(tokenizer, training), token_stream(tokenizer, texts)
    model = build_model()
    about = {
        "training_files": len(training), "training_tokens": len(ids), "held_out_files": len(texts),
        "steps": arguments.steps, "tokens_per_step": BATCH * CONTEXT,
    }  # fmt: skip
    with open_log(arguments.out, model, **about) as log:
        schedule = Schedule(6e-3, arguments.steps, max(1, arguments.steps // 50), arguments.steps // 2)
        learn(Training(model, schedule), ids, held_out, log)
        model.half().save_pretrained(arguments.out)
        log(evaluate(arguments.out, ids, held_out, training, texts))


if __name__ == "__main__":
    main()
