"""A store with index files, tables by column and exemplars, kept as it was written.

What it reads to is in `format-1-step-3.expected.json`, which the code that wrote it made. A change that fails here breaks the
stores that people have: it needs a new format, and a reader for this one.
"""

import json
from pathlib import Path

import pytest
from counted_storage import counting

from actstore.store.errors import FormatError
from actstore.store.reader import Store
from actstore.store.verify import verify_capture, verify_root

DATA = Path(__file__).parent / "data"
PATH = DATA / "format-1-step-3"
EXPECTED = json.loads((DATA / "format-1-step-3.expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("location", [str(PATH), f"static://{PATH}"])
def test_it_reads_as_it_did(location, name):
    with counting():
        store, expected = Store(location), EXPECTED[name]
        neuron = store.neuron("L1.N7")
        assert list(store.capture(name).blocks) == expected["blocks"]
        assert {key: str(value) for key, value in neuron.statistics(name).items()} == expected["statistics"]
        assert neuron.activations(name).tolist()[:40] == expected["activations"]
        exemplars = neuron.exemplars(3, name, context=4).to_arrow()
        assert exemplars.drop_columns(["activations"]).to_pylist() == expected["exemplars"]
        assert neuron.histogram(name)[0].tolist() == expected["histogram"]


def test_it_is_whole():
    store = Store(PATH)
    assert store.captures == ("begun", "corpus", "int8")
    assert verify_root(store.folder) == []
    assert [verify_capture(store.peek(name)) for name in store.captures] == [[], [], []]


def test_what_is_unfinished_cannot_be_read_without_listing():
    with counting(), pytest.raises(FormatError, match="it is unfinished"):
        Store(f"static://{PATH}").peek("begun")
