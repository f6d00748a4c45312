"""Readers of a capture that is being filled: each reads all it can again and again, and checks every number.

Run as a program: STORE, how many readers, a file whose appearance ends them. The value of neuron n of layer l at slot s is
`expected(l, n, s)`. Every reader prints how often it read, and what it found wrong.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from actstore.store.errors import NotFoundError
from actstore.store.reader import Store


def expected(layer: int, neuron: Any, slot: Any) -> Any:
    """Different for every neuron and slot nearby, exact in float32; float32 of the shape of the arguments together."""
    return ((layer * 7919 + np.asarray(neuron) * 104_729 + np.asarray(slot) * 31) % 9973).astype(np.float32)


def read_once(path: str, turn: int) -> int:
    """The number of blocks that were there, all of them right."""
    capture = Store(path).capture("corpus")
    tokens = capture.tokens()
    slots = tokens["token"].to_numpy()
    assert (slots == capture.slots()).all()
    for layer, width in capture.record.layers("mlp.post").items():
        neuron = turn % width
        np.testing.assert_array_equal(capture.activations(layer, neuron), expected(layer, neuron, slots))
    table = capture.neurons()
    # Special tokens are not counted: the first of every window.
    counted = int((tokens["modality"].to_numpy(zero_copy_only=False) == "text").sum())
    assert set(table["count"].to_pylist()) == {counted}
    maxima = table["max"].to_numpy(zero_copy_only=False)
    if capture.blocks:
        row = capture.activations(1, turn % 40)[tokens["modality"].to_numpy(zero_copy_only=False) == "text"]
        assert maxima[table["layer"].to_numpy() == 1][turn % 40] == row.max()
        best = Store(path).neuron(1, turn % 40).exemplars(5, "corpus")
        for slot, value in zip(best["slot"].to_pylist(), best["value"].to_pylist(), strict=True):
            assert value == expected(1, turn % 40, slot)
    if turn % 16 == 0:
        (row,) = (
            Store(path).sql("select count(*) as n, count(distinct document) as d from tokens", "corpus").to_pylist()
        )
        assert row["n"] % 64 == 0
        assert row["n"] >= len(slots)
    return len(capture.blocks)


def read_until(path: str, end: Path, number: int) -> None:
    """Read until the file `end` is there, and once more."""
    turn, seen = number, [0]
    done = False
    while not done:
        done = end.exists()
        try:
            seen.append(read_once(path, turn))
        except NotFoundError as error:
            assert "has no capture" in str(error) or "no store" in str(error), error  # noqa: PT017 - no test
        turn += 1
    assert seen == sorted(seen), "blocks went away"
    print(f"reader {number}: {turn - number} readings, {len(set(seen))} different, {seen[-1]} blocks", flush=True)


def main(path: str, n_readers: int, end: Path) -> int:
    """Fork the readers, which spares them the imports; 0 where all is well."""
    children = []
    for number in range(n_readers):
        child = os.fork()
        if child == 0:
            try:
                read_until(path, end, number)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
