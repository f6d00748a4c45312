"""A store of bundled captures, kept as it was written.

What it reads to is in `format-1-step-4.expected.json`, which the code that wrote it made. A change that fails here breaks the
stores that people have: it needs a new format, and a reader for this one.
"""

import json
from pathlib import Path

import pytest
from counted_storage import counting

from actstore.store.reader import Store
from actstore.store.verify import verify_capture, verify_root

DATA = Path(__file__).parent / "data"
PATH = DATA / "format-1-step-4"
EXPECTED = json.loads((DATA / "format-1-step-4.expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("scheme", ["", "static://"])
def test_it_reads_as_it_did(scheme, name):
    if (scheme, name) == ("static://", "begun"):
        pytest.skip("what is unfinished cannot be read without listing")
    with counting():
        store, expected = Store(f"{scheme}{PATH}"), EXPECTED[name]
        capture, neuron = store.peek(name), store.neuron("L1.N7")
        assert list(capture.blocks) == expected["blocks"]
        assert [f"captures/{name}/bundles/{block}" for block in capture.blocks] == expected["files"]
        assert {key: str(value) for key, value in neuron.statistics(name).items()} == expected["statistics"]
        assert neuron.activations(name).tolist()[:40] == expected["activations"]
        if expected["gates"] is not None:
            assert capture.gate_bits(1, 0).tolist()[:3] == expected["gates"]


def test_it_is_whole():
    store = Store(PATH)
    assert store.captures == ("begun", "corpus", "int8")
    assert verify_root(store.folder) == []
    assert [verify_capture(store.peek(name)) for name in store.captures] == [[], [], []]
