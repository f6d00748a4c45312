"""A TopK sparse autoencoder on the residual stream of the demo model, whose features become neurons of a store.

python examples/autoencoder.py [--tokens 150000] [--layer 2] [--features 1024] [-k 32] [--epochs 3] [--store FOLDER]

1. The demo model is captured over the standard library of the running Python: `resid.post` of one layer.
2. An autoencoder of one hidden layer keeps the k largest features of each token (Gao et al. 2024, arXiv 2406.04093), dead ones
   being trained on what the others leave unexplained. It learns from nine documents of ten.
3. On the tenth, which it has not seen, its explained variance is measured: 1 - E|x - x̂|² / E|x - mean|².
4. The features of every token are stored as a site of their own, `sae.features`: exemplars, SQL and graphs work on them.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

import actstore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

MODEL = Path(__file__).parent.parent / "demo" / "models" / "stdlib-llama"
TRAINING, HELD_OUT = "document % 10 <> 0", "document % 10 = 0"
DEAD_AFTER = 50_000
"""A feature is dead that fires on none of so many tokens."""
AUXILIARY_K, AUXILIARY_SHARE = 64, 1 / 32
"""Dead features that are trained on a token's error, and the weight of that in the loss."""


class Autoencoder(torch.nn.Module):
    """x → the k largest of ReLU(W_e (x - b) + b_e) → W_d · features + b."""

    def __init__(self, width: int, n_features: int, k: int) -> None:
        """Of activations of `width`; the decoder's columns begin as random directions, and the encoder as their transpose."""
        super().__init__()
        directions = functional.normalize(torch.randn(n_features, width), dim=1)
        self.decoder = torch.nn.Parameter(directions)  # [feature, width]
        self.encoder = torch.nn.Parameter(directions.clone())
        self.encoder_bias = torch.nn.Parameter(torch.zeros(n_features))
        self.bias = torch.nn.Parameter(torch.zeros(width))
        self.k = k
        self.register_buffer("silent", torch.zeros(n_features, dtype=torch.int64))
        """[feature] tokens since it fired last."""

    def before_selection(self, x: Tensor) -> Tensor:
        """Every feature [token, feature]."""
        return functional.relu((x - self.bias) @ self.encoder.T + self.encoder_bias)

    def features(self, x: Tensor) -> Tensor:
        """The features [token, feature], of which k at most are not 0."""
        return largest(self.before_selection(x), self.k)

    def reconstruct(self, features: Tensor) -> Tensor:
        """The activations [token, width] that features stand for."""
        return features @ self.decoder + self.bias

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared error in shares of the batch's variance, with that of dead features on what is left."""
        every = self.before_selection(x)
        features = largest(every, self.k)
        error = x - self.reconstruct(features)
        variance = (x - x.mean(0)).pow(2).sum(1).mean()
        loss = error.pow(2).sum(1).mean() / variance
        with torch.no_grad():
            self.silent += len(x)
            self.silent[features.amax(0) > 0] = 0
        if (is_dead := self.silent > DEAD_AFTER).any():
            dead = largest(every * is_dead, AUXILIARY_K)
            left = error.detach()
            auxiliary = (left - dead @ self.decoder).pow(2).sum() / left.pow(2).sum()
            loss = loss + AUXILIARY_SHARE * auxiliary
        return loss

    @torch.no_grad()
    def normalise(self) -> None:
        """Let every feature's direction have length 1, so that its activation says how much of it there is."""
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)


def largest(features: Tensor, k: int) -> Tensor:
    """The k largest of each row, the others 0."""
    top = features.topk(k, dim=1)
    return torch.zeros_like(features).scatter(1, top.indices, top.values)


@dataclass(frozen=True)
class Measured:
    """What held-out tokens say of an autoencoder."""

    n_tokens: int
    explained_variance: float
    n_dead: int
    """Features that fire on none of these tokens."""


def batches_of(store: actstore.Store, layer: int, where: str, seed: int, epochs: int = 1) -> Iterator[Tensor]:
    """Activations [token, width] of the documents that meet a condition, without the first position, which is like no other."""
    found = store.batches(
        "resid.post", layer, batch=512, seed=seed, epochs=epochs, where=where, skip=1, normalize="norm"
    )
    return (batch.activations for batch in found)


def train(store: actstore.Store, layer: int, n_features: int, k: int, epochs: int, seed: int) -> Autoencoder:
    """An autoencoder of a layer's `resid.post`, learned from the documents of `TRAINING`."""
    torch.manual_seed(seed)
    first = next(batches_of(store, layer, TRAINING, seed))
    model = Autoencoder(first.shape[1], n_features, k)
    with torch.no_grad():
        model.bias.copy_(first.mean(0))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step, x in enumerate(batches_of(store, layer, TRAINING, seed, epochs)):
        loss = model.loss(x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.normalise()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.4f}, {int((model.silent > DEAD_AFTER).sum())} features dead")
    return model


@torch.no_grad()
def measure(store: actstore.Store, layer: int, model: Autoencoder, seed: int) -> Measured:
    """The explained variance of the documents of `HELD_OUT`."""
    n, squares, errors = 0, 0.0, 0.0
    mean, fired = torch.zeros_like(model.bias, dtype=torch.float64), torch.zeros(len(model.decoder), dtype=torch.bool)
    for x in batches_of(store, layer, HELD_OUT, seed):
        features = model.features(x)
        fired |= features.amax(0) > 0
        errors += (x - model.reconstruct(features)).double().pow(2).sum().item()
        squares += x.double().pow(2).sum().item()
        mean += x.double().sum(0)
        n += len(x)
    variance = squares - (mean.pow(2).sum() / n).item()
    return Measured(n, 1 - errors / variance, int((~fired).sum()))


@torch.no_grad()
def store_features(store: actstore.Store, location: Path, layer: int, model: Autoencoder) -> None:
    """The features of every token as the capture `features`, site `sae.features`, with the tokens of `corpus`."""
    everything = store.batches(
        "resid.post", layer, batch=4096, shuffle=False, positions="all", normalize="norm", capture="corpus"
    )
    with actstore.CaptureBuilder(location, "features", tokens_of="corpus", precision="half", replace=True) as builder:
        for batch in everything:
            builder.add({"sae.features": {layer: model.features(batch.activations)}})


def show(store: actstore.Store, layer: int) -> None:
    """A few features that fire seldom and strongly, and where: what one looks for in them."""
    query = (
        f"select name, neuron, max, positive from neurons where site = 'sae.features' and layer = {layer} "
        "and positive between 0.0005 and 0.02 order by max / sqrt(positive) desc limit 5"
    )
    for row in store.sql(query, "features").to_arrow().to_pylist():
        print(f"\n{row['name']}: above zero at {row['positive']:.2%} of the tokens, at most {row['max']:.2f}")
        exemplars = store.neuron(row["name"]).exemplars(3, "features", site="sae.features", context=8)
        for exemplar in exemplars.to_arrow().to_pylist():
            tokens = [*exemplar["tokens"]]
            tokens[exemplar["pivot"]] = f"«{tokens[exemplar['pivot']]}»"
            print("   ", "".join(tokens).replace("\n", "↵"))


def main() -> None:
    """Capture, train, measure, store, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("-k", type=int, default=32, help="features of a token")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=Path("build") / "autoencoder.actstore")
    parser.add_argument("--corpus", default=sysconfig.get_path("stdlib"))
    asked = parser.parse_args()
    if not asked.store.exists():
        actstore.capture(
            str(MODEL), asked.corpus, asked.store, pattern="*.py", errors="replace", max_tokens=asked.tokens,
            sites=("resid.post",), layers=(asked.layer,), precision="half",
        )  # fmt: skip
    store = actstore.open(asked.store)
    began = time.perf_counter()
    model = train(store, asked.layer, asked.features, asked.k, asked.epochs, asked.seed)
    seconds = time.perf_counter() - began
    measured = measure(store, asked.layer, model, asked.seed)
    assert math.isfinite(measured.explained_variance)
    print(
        f"Held-out documents, {measured.n_tokens:,} tokens: explained variance {measured.explained_variance:.4f} with "
        f"{asked.k} of {asked.features:,} features per token; {measured.n_dead} features fire on none of them. "
        f"Trained in {seconds:.0f} s, seed {asked.seed}."
    )
    store_features(store, asked.store, asked.layer, model)
    show(actstore.open(asked.store), asked.layer)


if __name__ == "__main__":
    main()
