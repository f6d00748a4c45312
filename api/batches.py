"""`store.batches`: the tokens of a capture in any order, to train on; `actstore.mix`: those of several by weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.store.arguments import argument
from actstore.store.batches.open import mixed_batches, open_batches, with_ranks
from actstore.store.batches.settings import BatchSettings
from actstore.store.calls import checked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actstore.store.batches.loader import Batches
    from actstore.store.batches.mixed import MixedBatches
    from actstore.store.reader import Store


def batches_of(
    store: Store, settings: Mapping[str, Any], capture: str | None, device: Any, *, as_numpy: bool
) -> Batches:
    """What `Store.batches` gives; `settings` are its other parameters, by the names of `BatchSettings`."""
    given = dict(settings)
    for name in ("sites", "layers", "labels"):
        given[name] = (given[name],) if isinstance(given[name], str) else given[name]
    given["dtype"] = str(given["dtype"]).removeprefix("torch.")
    chosen_rank = given.pop("rank"), given.pop("ranks")
    made = BatchSettings(
        **given, **({} if None in chosen_rank else dict(zip(("rank", "ranks"), chosen_rank, strict=True)))
    )
    made = with_ranks(made) if None in chosen_rank else made
    name = argument("capture", capture, str | None)
    return open_batches(store, name, made, as_numpy=argument("as_numpy", as_numpy, bool), device=str(device))


@checked
def mix(
    batches: Sequence[Batches], weights: Sequence[float], *, seed: int = 0, until: str = "shortest"
) -> MixedBatches:
    """Batches of several captures, or stores, in turn and by weight, to train one model on: iterated, resumed as those of one.

    They come in rounds, the smallest that have the weights exactly: with weights 3 and 1, of every 4 batches 3 are of the first
    source, in random order. `batch.source` says which gave it. The sources have one width, dtype, device and rank.

    - `batches`: what `store.batches(…)` gives; each is passed epoch after epoch, as often as it takes.
    - `weights`: shares of whole numbers, such as 0.75 and 0.25, or 3 and 1.
    - `seed`: of the order within rounds.
    - `until`: "shortest" ends after the last round for which every source has batches of its `epochs`; "longest" after the
      first by which every source has given all of them, the shorter ones more than once.

    Errors: `InvalidInputError` for sources that do not go together, and for weights that no round has exactly.

    >>> mixed = actstore.mix([store.batches("resid.post", 3), other.batches("resid.post", 3)], [3, 1])
    >>> for batch in mixed:
    ...     loss = model(batch.activations)
    """
    sources = tuple(argument("batches", batches, list[Any] | tuple[Any, ...]))
    shares = argument("weights", weights, tuple[float, ...])
    return mixed_batches(sources, shares, argument("seed", seed, int), argument("until", until, str))
