"""`actstore.mix`: batches of several sources in exact shares, each source's in its own order, whoever takes them."""

from __future__ import annotations

import pickle
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import actstore
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.store.batches.batch import Batch

NAMES = ("exact", "half", "int8")


def sources(many: Any, **settings: Any) -> list[Any]:
    """Batches of three captures, with other numbers of batches."""
    sizes = (61, 30, 73)
    return [
        many.batches("mlp.post", 1, capture=name, positions="all", seed=i, batch=size, **settings)
        for i, (name, size) in enumerate(zip(NAMES, sizes, strict=True))
    ]


def tokens(batches: Any) -> list[tuple[int, list[int]]]:
    return [(batch.source, batch.token.tolist()) for batch in batches]


def expect_same(ours: Any, theirs: Any) -> None:
    ours, theirs = list(ours), list(theirs)
    assert tokens(ours) == tokens(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.activations.view(torch.int32), b.activations.view(torch.int32))
        assert (a.epoch, a.number, a.state) == (b.epoch, b.number, b.state)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([3, 1, 2], (3, 1, 2)),
        ([0.5, 0.25, 0.25], (2, 1, 1)),
        ([1 / 3, 1 / 6, 0.5], (2, 1, 3)),
        ([30, 10, 20], (3, 1, 2)),
    ],
)
@pytest.mark.parametrize("until", ["shortest", "longest"])
def test_every_round_has_the_weights_and_every_source_its_own_order(
    many: Any, weights: list[float], counts: tuple[int, ...], until: str
) -> None:
    """The rule of both ends, and that no batch of a source is left out or comes twice in an epoch of it."""
    ones = sources(many)
    n = [len(one) for one in ones]
    mixed = actstore.mix(ones, weights, seed=4, until=until)
    found = list(mixed)
    rounds = [k // c for k, c in zip(n, counts, strict=True)]
    expected = min(rounds) if until == "shortest" else max(-(-k // c) for k, c in zip(n, counts, strict=True))
    assert len(found) == len(mixed) == expected * sum(counts) > 0
    order = np.array([batch.source for batch in found]).reshape(expected, -1)
    for source, count in enumerate(counts):
        assert (np.sum(order == source, axis=1) == count).all()
        own = many.batches(
            "mlp.post", 1, capture=NAMES[source], positions="all", seed=source, batch=(61, 30, 73)[source]
        )
        endless = (batch for _ in range(20) for batch in own)
        for batch, alone in zip([b for b in found if b.source == source], endless, strict=False):
            assert batch.token.tolist() == alone.token.tolist()
            assert torch.equal(batch.activations.view(torch.int32), alone.activations.view(torch.int32))
    if expected > 2:
        assert len({tuple(row) for row in order.tolist()}) > 1
    assert [batch.number for batch in found] == list(range(len(found)))


def test_a_seed_gives_one_order_and_the_next_iteration_goes_on(many: Any) -> None:
    mixed = actstore.mix(sources(many), [2, 3, 1], seed=7)
    first, second = tokens(mixed), tokens(mixed)
    assert first != second
    again = actstore.mix(sources(many), [2, 3, 1], seed=7)
    again.set_epoch(1)
    assert tokens(again) == second
    assert tokens(again) == tokens(mixed)
    other = tokens(actstore.mix(sources(many), [2, 3, 1], seed=8))
    assert [source for source, _ in other] != [source for source, _ in first]


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_workers_and_states_go_on_as_of_one_source(many: Any, n_workers: int) -> None:
    expected = list(actstore.mix(sources(many), [2, 1, 1], until="longest"))
    mixed = actstore.mix(sources(many), [2, 1, 1], until="longest")
    context = "fork" if n_workers else None
    loader: Any = DataLoader(mixed, batch_size=None, num_workers=n_workers, multiprocessing_context=context)
    assert len(loader) == len(expected)
    expect_same(loader, expected)
    mixed.load_state_dict(pickle.loads(pickle.dumps(expected[9].state)))
    expect_same(loader, expected[10:])


def test_an_iteration_that_is_left_is_begun_anew_or_resumed(many: Any) -> None:
    mixed = actstore.mix(sources(many, threads=0), [2, 1, 1])
    expected = list(actstore.mix(sources(many), [2, 1, 1]))
    taken = list(islice(mixed, 5))
    state = mixed.state_dict()
    assert state == taken[-1].state
    expect_same(mixed, expected)
    resumed = pickle.loads(pickle.dumps(mixed))
    resumed.load_state_dict(state)
    expect_same(resumed, expected[5:])
    other = actstore.mix(sources(many), [1, 2, 1])
    with pytest.raises(InvalidInputError, match="found one of other batches: its weights is"):
        other.load_state_dict(state)


def test_ranks_take_disjoint_tokens_in_the_same_rounds(many: Any) -> None:
    whole = [tokens(actstore.mix(sources(many, rank=rank, ranks=2), [2, 3, 1])) for rank in range(2)]
    assert [source for source, _ in whole[0]] == [source for source, _ in whole[1]]
    for source in range(3):
        ours, theirs = ({t for of, found in one if of == source for t in found} for one in whole)
        assert ours.isdisjoint(theirs)


def test_arrays_are_mixed_without_torch(many: Any) -> None:
    batches: list[Batch] = list(actstore.mix(sources(many, as_numpy=True), [1, 1, 1]))
    assert all(isinstance(batch.activations, np.ndarray) for batch in batches)
    assert tokens(batches) == tokens(actstore.mix(sources(many), [1, 1, 1]))


def test_what_does_not_go_together_is_refused(many: Any) -> None:
    one, two = sources(many)[:2]

    def other(**settings: Any) -> Any:
        return many.batches("mlp.post", settings.pop("layers", 1), capture="half", **settings)

    for given, message in (
        (([one, other(layers=0)], [1, 1]), "found other width of source 1 than of source 0: 5, there 40"),
        (([one, other(dtype="float16")], [1, 1]), "found other dtype of source 1"),
        (([one, other(as_numpy=True)], [1, 1]), "found other kind of batches of source 1"),
        (([one, other(rank=0, ranks=2)], [1, 1]), "found other rank of source 1"),
        (([one, other(labels="language")], [1, 1]), "found other label_values of source 1"),
        (([one, two], [1]), "one weight for each of the batches, found 1 for 2"),
        (([], []), "one weight for each of the batches, found 0 for 0"),
        (([one, two], [1, 0]), "`weights` above 0, found 0"),
        (([one, two], [1, float("nan")]), "`weights` above 0, found nan"),
        (([one, two], [1, 0.12345678]), "shares of whole numbers up to 10,000"),
        (([one, two], [1, 9_999 / 10_000]), "Expected batches of every source for a whole round, found 8 of source 0"),
        (([one, two], [9_973 / 10_000, 9_967 / 9_999]), "found .*, which take 199,"),
        (([one, 3], [1, 1]), "Expected the batches of a store, found int"),
        ((one, [1]), "batches is "),
    ):
        with pytest.raises(InvalidInputError, match=message):
            actstore.mix(*given)
    with pytest.raises(InvalidInputError, match="Expected `until` to be one of shortest, longest, found 'end'"):
        actstore.mix([one, two], [1, 1], until="end")
    with pytest.raises(InvalidInputError, match="Expected `seed` to be between"):
        actstore.mix([one, two], [1, 1], seed=-1)
