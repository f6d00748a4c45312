"""The order of an epoch: a permutation of all tokens, divided among ranks, the same for ever."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from actstore.store.batches.order import Order


def places(order: Order, epoch: int) -> np.ndarray:
    """The tokens of a rank's epoch in order, as rows (block, number in the block)."""
    rows = []
    for window in order.windows(epoch):
        tokens = [
            np.column_stack([np.full(part.n_tokens, part.block), np.arange(part.start, part.stop)])
            for part in window.parts
        ]
        rows.append(np.concatenate(tokens)[order.permutation(epoch, window)])
    return np.concatenate(rows)


def all_places(order: Order) -> list[tuple[int, int]]:
    return [(block, i) for block, n in zip(order.blocks, order.counts, strict=True) for i in range(n)]


@pytest.mark.parametrize("seed", [None, 0, 2**63 - 1])
@pytest.mark.parametrize(("window", "ranks"), [(1, 1), (4, 1), (3, 2), (100, 7)])
def test_ranks_share_every_token(seed: int | None, window: int, ranks: int) -> None:
    counts = (5, 64, 1, 33, 64, 64, 2, 64, 40)
    orders = [Order(tuple(range(2, 11)), counts, window, seed, rank, ranks) for rank in range(ranks)]
    for epoch in (0, 1, 2**31 - 1):
        shares = [places(order, epoch) for order in orders]
        assert [len(share) for share in shares] == [order.n_tokens for order in orders]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert sorted(map(tuple, np.concatenate(shares).tolist())) == all_places(orders[0])
        assert all(len(w.parts) <= window for order in orders for w in order.windows(epoch))


def test_without_a_seed_tokens_come_as_they_are_stored() -> None:
    order = Order((0, 1, 4), (3, 2, 5), 2, None, 0, 1)
    assert [*map(tuple, places(order, 3).tolist())] == all_places(order)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [places(Order(tuple(range(8)), (50,) * 8, 3, seed, 0, 1), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all((a != b).any(axis=1).mean() > 0.9 for a, b in itertools.combinations(orders, 2))


def test_the_order_is_the_same_for_ever() -> None:
    """A checkpoint of a training run is resumed with a later version of actstore, or of NumPy."""
    order = places(Order(tuple(range(10)), (100,) * 10, 4, 7, 0, 1), 3)
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == "ce57f2755fc67e25"


def rank_correlation(order: Order, epoch: int) -> float:
    """Spearman's, of the place in the store and that in the epoch; all blocks have as many tokens."""
    block, token = places(order, epoch).T
    return float(np.corrcoef(block * order.counts[0] + token, np.arange(len(block)))[0, 1])


def test_the_shuffle_forgets_the_order_of_the_store() -> None:
    """By blocks: over seeds the rank correlation is 0 in the mean, and spreads as that of their permutation, 1 / √(blocks - 1).

    Within a window every order is as likely: its tokens' rank correlation spreads as 1 / √(tokens - 1).
    """
    n_blocks, n, n_seeds = 50, 200, 100
    orders = [Order(tuple(range(n_blocks)), (n,) * n_blocks, 4, seed, 0, 1) for seed in range(n_seeds)]
    found = np.array([rank_correlation(order, 0) for order in orders])
    expected = 1 / np.sqrt(n_blocks - 1)
    assert abs(found.mean()) < 4 * expected / np.sqrt(n_seeds)
    assert 0.75 < found.std() / expected < 1.25
    one = np.array([rank_correlation(Order((0, 1, 2, 3), (n,) * 4, 4, seed, 0, 1), 0) for seed in range(n_seeds)])
    spread = 1 / np.sqrt(4 * n - 1)
    assert abs(one.mean()) < 4 * spread / np.sqrt(n_seeds)
    assert 0.75 < one.std() / spread < 1.25


def test_a_batch_holds_tokens_of_every_block_of_its_window() -> None:
    """As many of each as chance gives: a batch of a window is a sample of it without regard to blocks."""
    order = Order(tuple(range(40)), (1000,) * 40, 8, 0, 0, 1)
    block = places(order, 0)[:, 0].reshape(5, 8000)
    for window in block:
        counts = np.array(
            [
                np.bincount(np.unique(window, return_inverse=True)[1][at : at + 800], minlength=8)
                for at in range(0, 8000, 800)
            ]
        )
        assert (np.abs(counts - 100) < 5 * np.sqrt(100 * 7 / 8)).all()
