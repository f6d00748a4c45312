"""Every function, method and constructor of the public API refuses a parameter that there is not in a sentence of its own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import actstore
from actstore.api.change import ChangeMethod
from actstore.api.coverage import CoverageMethod
from actstore.api.edit import EditsMethod
from actstore.api.graphs import GraphsMethod
from actstore.api.multimodal import MultimodalMethod
from actstore.api.naica import NaicaMethod
from actstore.api.selectivity import SelectivityMethod
from actstore.store.calls import is_public
from actstore.store.capture.questions.attributions import Attributions
from actstore.store.graphs.reader import Graphs
from actstore.store.model.root import Root

PLACES = {
    actstore.Store: "store", actstore.Capture: "capture", actstore.Neuron: "neuron", actstore.NeuronGraph: "graph",
    NaicaMethod: "store.naica", SelectivityMethod: "store.selectivity", ChangeMethod: "store.change",
    CoverageMethod: "store.coverage", GraphsMethod: "store.graphs", MultimodalMethod: "store.multimodal",
    EditsMethod: "store.edits", Graphs: "graphs", Attributions: "attributions",
}  # fmt: skip
PER_TOKEN = {name for name, member in vars(Root).items() if inspect.isfunction(member) and is_public(name)}
"""Asked for every token of a text, where one more call would take as long as the answer."""


def calls() -> dict[str, tuple[Any, tuple[object, ...]]]:
    """Every call by what users write: the function, and what comes before its parameters."""
    found = {
        f"actstore.{name}": (member, ())
        for name in actstore.__all__
        if inspect.isfunction(member := getattr(actstore, name))
    }
    found |= {f"actstore.{kind.__name__}": (kind, ()) for kind in (actstore.RunOptions, actstore.ModelOptions)}
    for kind, place in PLACES.items():
        nobody = kind.__new__(kind)  # what is wrong with a call is said before the object is looked at
        for name, member in inspect.getmembers(kind, inspect.isfunction):
            if name != "__init__" and is_public(name) and not (issubclass(kind, Root) and name in PER_TOKEN):
                if isinstance(inspect.getattr_static(kind, name), staticmethod):
                    continue
                found[place if name == "__call__" else f"{place}.{name}"] = (member, (nobody,))
    return found


CALLS = calls()


def test_the_calls_are_all_there() -> None:
    assert {
        "actstore.open", "actstore.capture", "actstore.estimate", "actstore.attribute", "actstore.inspect", "store.naica",
        "store.edits.rewrite", "store.capture", "store.sql", "store.contributions", "store.graphs.search", "neuron.exemplars",
        "capture.activations", "graph.predict",
    } <= CALLS.keys()  # fmt: skip
    assert len(CALLS) > 80


@pytest.mark.parametrize("call", CALLS)
def test_a_parameter_that_there_is_not_is_refused_by_name(call: str) -> None:
    function, first = CALLS[call]
    with pytest.raises(actstore.errors.CallError) as refused:
        function(*first, no_such_parameter=1)
    assert str(refused.value).startswith(f"{call} has no parameter 'no_such_parameter'. ")


@pytest.mark.parametrize("call", CALLS)
def test_a_misspelt_parameter_has_the_one_that_was_meant(call: str) -> None:
    function, first = CALLS[call]
    parameters = [name for name in inspect.signature(function).parameters if name != "self" and len(name) > 4]
    for name in parameters:
        misspelt = name[:2] + name[3] + name[2] + name[4:]
        if misspelt in (name, *parameters):
            continue
        with pytest.raises(actstore.errors.CallError, match=rf"'{misspelt}'\. Did you mean '\w+'\?"):
            function(*first, **{misspelt: 1})
