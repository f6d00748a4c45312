"""Hook names of TransformerLens in place of sites: in every public call, and on the command line."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer.main

import actstore
from actstore import api
from actstore import cli as command_line
from actstore.commands.sites import without_hooks
from actstore.engine.models.names import SITES
from actstore.store.calls import checked
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store
from actstore.store.sites import HOOKS, parse_hook


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_a_site_in_its_layer(hook: str) -> None:
    assert HOOKS[hook] in SITES

    @checked
    def one(site: str = "", layers: tuple[int, ...] | None = None) -> tuple[object, object]:
        return site, layers

    @checked
    def many(sites: tuple[str, ...] = (), layers: tuple[int, ...] | None = None) -> tuple[object, object]:
        return sites, layers

    assert parse_hook(f"blocks.7.{hook}") == (HOOKS[hook], 7)
    assert one(f"blocks.7.{hook}") == (HOOKS[hook], (7,))
    assert one(site=f"blocks.7.{hook}", layers=(7,)) == (HOOKS[hook], (7,))
    assert many(sites=[f"blocks.{n}.{hook}" for n in (1, 0)]) == ((HOOKS[hook],), (0, 1))
    with pytest.raises(InvalidInputError, match=rf"blocks\.7\.{hook}' is of layer 7, and `layers` are 3"):
        one(f"blocks.7.{hook}", (3,))


def test_no_other_site_has_a_hook_but_the_activated_gate() -> None:
    """Its hook `mlp.hook_pre` comes before the activation function: other values."""
    assert set(SITES) - set(HOOKS.values()) == {"mlp.gate"}
    with pytest.raises(InvalidInputError, match=r"No site has the values of the hook 'blocks\.0\.mlp\.hook_pre'"):
        checked(lambda site: site)("blocks.0.mlp.hook_pre")
    assert parse_hook("blocks.2.attn.hook_z") == ("attn.z", 2)
    assert parse_hook("mlp.post") is parse_hook("blocks.x.mlp.hook_post") is None


def public_calls() -> dict[str, Any]:
    """Every function and method of the public API that has a parameter `site` or `sites`."""
    modules = [importlib.import_module(f"actstore.api.{info.name}") for info in pkgutil.iter_modules(api.__path__)]
    kinds = {kind for module in modules for kind in vars(module).values() if inspect.isclass(kind)}
    kinds = {kind for kind in kinds if kind.__module__.startswith("actstore.api.")} | {
        actstore.Capture,
        actstore.Neuron,
    }
    calls = {f"{kind.__name__}.{name}": member for kind in kinds for name, member in vars(kind).items()}
    calls |= {
        name: getattr(actstore, name) for name in actstore.__all__ if not inspect.isclass(getattr(actstore, name))
    }
    return {
        name: call
        for name, call in calls.items()
        if inspect.isfunction(call) and {"site", "sites"} & set(inspect.signature(call).parameters)
        and (not name.partition(".")[2].startswith("_") or name.endswith("__call__"))
    }  # fmt: skip


def test_every_public_call_that_takes_a_site_takes_a_hook() -> None:
    """A hook without a site is refused by each of them before it does, or looks at, anything."""
    calls = public_calls()
    assert {"capture", "plan", "estimate", "Capture.activations", "Neuron.exemplars", "CoverageMethod.__call__"} <= {
        *calls
    }
    assert len(calls) > 20
    for name, call in calls.items():
        parameter = "site" if "site" in inspect.signature(call).parameters else "sites"
        owner = () if "." not in name else (SimpleNamespace(),)
        with pytest.raises(InvalidInputError, match="No site has the values of the hook"):
            call(*owner, **{parameter: "blocks.0.mlp.hook_pre" if parameter == "site" else ["blocks.0.mlp.hook_pre"]})


def test_reading_by_hook(planted_path: Any) -> None:
    capture = Store(planted_path[0]).capture()
    neuron = Store(planted_path[0]).neuron("L1.N3")
    expected = capture.activations(1, 3)
    np.testing.assert_array_equal(capture.activations(1, 3, "blocks.1.mlp.hook_post"), expected)
    np.testing.assert_array_equal(neuron.activations(site="blocks.1.mlp.hook_post"), expected)
    assert neuron.exemplars(2, site="blocks.1.mlp.hook_post").equals(neuron.exemplars(2))
    with pytest.raises(InvalidInputError, match="is of layer 0, and the call is of layer 1"):
        neuron.activations(site="blocks.0.mlp.hook_post")
    with pytest.raises(InvalidInputError, match="All sites are taken in all layers"):
        checked(lambda sites, layers=None: sites)(["blocks.0.mlp.hook_post", "blocks.1.hook_resid_post"])
    with pytest.raises(InvalidInputError, match="names layer 2, and this call is of all layers"):
        checked(lambda site: site)("blocks.2.mlp.hook_post")


def test_where_layers_are_not_blocks_a_hook_is_refused(planted_path: Any) -> None:
    """As of experts, each of which is a layer: another neuron would be taken in silence."""
    store = Store(planted_path[0])
    layers = tuple(dataclasses.replace(one, block=0) for one in store.model.layers)
    store.model = dataclasses.replace(store.model, layers=layers)
    for call in (
        store.capture().activations,
        lambda *_: store.neuron("L1.N3").activations(site="blocks.1.mlp.hook_post"),
    ):
        with pytest.raises(
            InvalidInputError, match="Hooks are numbered by blocks, which are not the layers of planted"
        ):
            call(1, 3, "blocks.1.mlp.hook_post")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("stats S --site blocks.1.mlp.hook_post -k 3", "stats S -k 3 --site mlp.post --layers 1"),
        ("top S L1.N3 --site=blocks.1.mlp.hook_post", "top S L1.N3 --site mlp.post"),
        (
            "export S --neurons l1.n3,L1.N5 --site blocks.1.mlp.hook_post",
            "export S --neurons l1.n3,L1.N5 --site mlp.post",
        ),
        ("export S --neurons=L0.N3,L1.N5 --site blocks.1.mlp.hook_post", "layer 1, and the neurons are of layer 0"),
        (
            "capture M C S --site blocks.0.hook_resid_pre --site blocks.2.hook_resid_pre",
            "capture M C S --site resid.pre --layers 0,2",
        ),
        ("top S L1.N3 --site resid.pre", "top S L1.N3 --site resid.pre"),
        ("top S L0.N3 --site blocks.1.mlp.hook_post", "is of layer 1, and the neuron is of layer 0"),
        ("stats S --site blocks.1.mlp.hook_post --layers 1", "names layer 1. Leave `layers` out"),
        ("multimodal S --site blocks.1.mlp.hook_post", "this command is of all layers. Name the site, mlp.post"),
        ("stats S --site blocks.1.hook_mlp_out", "No site has the values of the hook"),
    ],
)
def test_the_command_line_takes_hooks(arguments: str, expected: str) -> None:
    name, *rest = arguments.split()
    command = typer.main.get_command(command_line.application()).commands[name]  # type: ignore[attr-defined]
    if expected[:1].islower() and expected.split()[0] in (name,):
        assert without_hooks(command, rest) == expected.split()[1:]
        return
    with pytest.raises(InvalidInputError, match=re.escape(expected)):
        without_hooks(command, rest)
