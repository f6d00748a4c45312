"""`store.batches`: the tokens of a capture in any order, to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.store.arguments import argument
from actstore.store.batches.open import open_batches, with_ranks
from actstore.store.batches.settings import BatchSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actstore.store.batches.loader import Batches
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
