"""Trains the embedded language model: a small Llama on the same messages in eight languages (language_texts.py says which).

    python demo/training/train_languages.py --out demo/models/language-llama

A row of a step is `<s>` and messages of one language, one per line; every step has the same number of rows of each language.
The log ends with held-out bits per byte, language by language, of the model as saved (float16).

A run that was stopped resumes from its last state in build/: a step's batch depends on its number only. The learning rate falls
over the last third, so a state from before that can be resumed with fewer --steps than it was begun with.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Final

import torch
from byte_level import BOS, PAD, train_byte_level
from language_texts import LICENCE, RELEASE, fetch_release, read_held_out, read_messages, split_messages, write_held_out
from training import LOG_EVERY, Log, Schedule, Training, open_log, state_path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

N_VOCAB: Final = 4096
CONTEXT: Final = 256
ROWS_PER_LANGUAGE: Final = 2
CORPUS: Final = "texts.jsonl.xz"

Ids = dict[str, list[list[int]]]
"""Label → the token ids of its messages."""


def build_model() -> LlamaForCausalLM:
    """The untrained model: 4 layers, width 192, 768 neurons per layer (3,072 in all), 3 million parameters."""
    config = LlamaConfig(
        vocab_size=N_VOCAB, hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=BOS,
        eos_token_id=None, pad_token_id=PAD,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def draw_batch(messages: Ids, step: int) -> torch.Tensor:
    """The rows of a step, shape [row, position]: `<s>` and messages of one language, drawn with replacement."""
    generator = torch.Generator().manual_seed(step)
    rows = []
    for of_language in messages.values():
        for _ in range(ROWS_PER_LANGUAGE):
            row = [BOS]
            while len(row) < CONTEXT:
                row += of_language[int(torch.randint(len(of_language), (), generator=generator))]
            rows.append(row[:CONTEXT])
    return torch.tensor(rows)


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> float:
    """Bits per byte of the documents, each by itself after `<s>`; all are shorter than the context."""
    nats = 0.0
    for document in documents:
        ids = torch.tensor([tokenizer(document)["input_ids"]])
        nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    return nats / math.log(2) / sum(len(document.encode()) for document in documents)


def learn(training: Training, messages: Ids, path: Path, log: Log) -> None:
    """Next-token training; one line of the log every 50 steps, and a state to resume from about every minute."""
    training.resume(path)
    saved_at = time.monotonic()
    while training.done < training.schedule.n_steps:
        batch = draw_batch(messages, training.done)
        with torch.autocast("cpu", torch.bfloat16):
            loss = training.model(input_ids=batch, labels=batch).loss
        loss.backward()
        training.descend()
        if training.done % LOG_EVERY == 0 or training.done == training.schedule.n_steps:
            log({"step": training.done, "loss": round(loss.item(), 4), "cpu_seconds": round(training.seconds)})
            if time.monotonic() - saved_at > 60:
                saved_at = time.monotonic()
                training.save(path)


def evaluate(folder: Path) -> dict[str, float]:
    """Label → bits per byte of the saved model on the half of the corpus file that neurons are measured on."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = read_held_out(folder / CORPUS, "measure")
    return {label: round(bits_per_byte(model, tokenizer, documents), 4) for label, documents in texts.items()}


def main() -> None:
    """Fetch the texts, train, save as float16 safetensors, evaluate the saved model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=520, help="number of training steps")
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    build = Path("build")
    build.mkdir(exist_ok=True)
    halves = split_messages(read_messages(fetch_release(build)))
    training = halves["train"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    digest = write_held_out(arguments.out / CORPUS, halves)
    tokenizer = train_byte_level((f"{t}\n" for texts in training.values() for t in texts), N_VOCAB, CONTEXT)
    tokenizer.save_pretrained(arguments.out)
    backend = tokenizer.backend_tokenizer
    messages = {
        label: [e.ids for e in backend.encode_batch([f"{t}\n" for t in texts], add_special_tokens=False)]
        for label, texts in training.items()
    }
    model = build_model()
    about = {
        "texts": RELEASE, "licence": LICENCE, "corpus_sha256": digest,
        "training_bytes": {label: sum(len(t.encode()) for t in texts) for label, texts in training.items()},
        "training_tokens": {label: sum(map(len, ids)) for label, ids in messages.items()},
        "steps": arguments.steps, "tokens_per_step": len(messages) * ROWS_PER_LANGUAGE * CONTEXT,
    }  # fmt: skip
    with open_log(arguments.out, model, **about) as log:
        schedule = Schedule(6e-3, arguments.steps, 40, arguments.steps * 2 // 3)
        learn(Training(model, schedule), messages, state_path(arguments.out), log)
        model.half().save_pretrained(arguments.out)
        log({"bits_per_byte": evaluate(arguments.out)})


if __name__ == "__main__":
    main()
