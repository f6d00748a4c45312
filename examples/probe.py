"""Linear probes of each layer: the language of a text, read from a single token's residual stream.

python examples/probe.py [--epochs 3] [--store FOLDER]

The demo model of eight languages is captured over messages that it has not seen. One half of them trains a probe for each
layer, the other half tests it: a token at a time, so that a probe cannot count letters. Shown beside the accuracy are the share
of the most frequent language, and the accuracy of a table of tokens, which knows each token's most frequent language and
nothing of the model.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import actstore

FOLDER = Path(__file__).parent.parent / "demo" / "models" / "language-llama"
TRAINING, HELD_OUT = "half = 'search'", "half = 'measure'"


@dataclass(frozen=True)
class Accuracy:
    """Shares of held-out tokens."""

    n_tokens: int
    probe: float
    table: float
    """Of a table of tokens: what the token by itself says."""
    most_frequent: float


def train(store: actstore.Store, layer: int, epochs: int, seed: int) -> tuple[torch.nn.Linear, dict[int, int]]:
    """A probe of a layer's `resid.post`, and each token's most frequent language among those that it learned from."""
    torch.manual_seed(seed)
    batches = store.batches(
        "resid.post", layer, labels="language", where=TRAINING, normalize="neuron", seed=seed, epochs=epochs, batch=1024
    )
    n_labels = len(batches.label_values["language"])
    counts: dict[int, np.ndarray] = {}
    probe: torch.nn.Linear | None = None
    for batch in batches:
        if probe is None:
            probe = torch.nn.Linear(batch.activations.shape[1], n_labels)
            optimiser = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=0.01)
        labels = batch.labels["language"].long()
        for token, label in zip(batch.id.tolist(), labels.tolist(), strict=True):
            counts.setdefault(token, np.zeros(n_labels, np.int64))[label] += 1
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(probe(batch.activations), labels).backward()
        optimiser.step()
    assert probe is not None
    return probe, {token: int(count.argmax()) for token, count in counts.items()}


@torch.no_grad()
def measure(store: actstore.Store, layer: int, probe: torch.nn.Linear, table: dict[int, int]) -> Accuracy:
    """How often a probe, and the table, are right about the other half's tokens."""
    batches = store.batches(
        "resid.post", layer, labels="language", where=HELD_OUT, normalize="neuron", shuffle=False, batch=4096
    )
    right = in_table = n = 0
    frequency = torch.zeros(len(batches.label_values["language"]), dtype=torch.int64)
    for batch in batches:
        labels = batch.labels["language"].long()
        right += int((probe(batch.activations).argmax(1) == labels).sum())
        pairs = zip(batch.id.tolist(), labels.tolist(), strict=True)
        in_table += sum(table.get(token) == label for token, label in pairs)
        frequency += torch.bincount(labels, minlength=len(frequency))
        n += len(labels)
    return Accuracy(n, right / n, in_table / n, int(frequency.max()) / n)


def main() -> None:
    """Capture, and a probe for each layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--corpus", type=Path, default=FOLDER / "texts.jsonl.xz", help="texts with `language` and `half`"
    )
    parser.add_argument("--store", type=Path, default=Path("build") / "probe.actstore")
    asked = parser.parse_args()
    if not asked.store.exists():
        actstore.capture(
            str(FOLDER), asked.corpus, asked.store, label_columns=("language", "half"),
            sites=("resid.post",), precision="half",
        )  # fmt: skip
    store = actstore.open(asked.store)
    print("layer  probe   token table  most frequent  held-out tokens")
    for layer in range(len(store.model.layers)):
        found = measure(store, layer, *train(store, layer, asked.epochs, asked.seed))
        print(f"{layer:5}  {found.probe:6.1%}  {found.table:11.1%}  {found.most_frequent:13.1%}  {found.n_tokens:15,}")


if __name__ == "__main__":
    main()
