"""One voice: every command's help has an example, and the same option means, says and defaults to the same everywhere."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from actstore import cli as command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN_WORDS = {
    "--by": "what is done for each value of the label",
    "--capture": "of questions, of several, or all of a store",
    "--context": "tokens of a window, or a token that comes before",
    "--document": "of several, or the one whose image is drawn",
    "--exemplars": "recorded by a capture; drawn from by what tests or asks",
    "--form": "of multi-modal scores, or of a rewrite",
    "--generate": "answers to be captured, or to be judged",
    "--k": "how many of what",
    "--keep": "values of sparse precision, or scores of a prompt",
    "--lines": "of one graph, or of every neuron found",
    "--max-documents": "to be captured, or to be learned from",
    "--max-tokens": "of a corpus, a label, a modality",
    "--memory": "for what",
    "--method": "of choosing neurons, or of building graphs",
    "--model": "where it is; or a model that is needed, or may be given",
    "--name": "of what is made, or which is read",
    "--positions": "to be captured, to be read, or to be changed",
    "--precision": "of a capture, or of probes",
    "--probes": "to be made, or to be read",
    "--prompt": "a text, or a number of tokens",
    "--ridge": "of a probe, or of a rewrite",
    "--seed": "of what",
    "--seeds": "draws of what",
    "--share": "of a prompt's neurons, of all neurons, of a maximum",
    "--site": "one, several, or the one that fires",
    "--steps": "of a path, or of learning",
    "CORPUS": "to be captured, or held out",
    "EDIT": "a name, or folders",
    "FILE": "to be written, or to be read",
    "MODEL": "that runs, or whose neurons are patched",
    "NEURON": "one, several, or none",
    "OTHER": "a store, or a model",
    "STORE": "that is there, or is to be",
}
"""Options, and arguments, that are not the same thing in every command, and wherein they differ."""

OWN_DEFAULTS = {"--label", "--layers", "--max-new-tokens", "--max-rows", "--random", "--rows", "--temperature"}
"""Options that are the same thing everywhere, and left out mean what suits the command."""

AT_ONCE = {"edit add", "edit list", "edit show", "edit delete"}
"""Commands that read or write a record or two, and so show no progress."""


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that is none of several, with the words that call it."""
    if hasattr(command, "commands"):
        for name, one in command.commands.items():
            yield from walk(one, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(walk(typer.main.get_command(command_line.app)))


def names_of(parameter: Any) -> list[str]:
    """What a user calls a parameter."""
    options = [name for name in parameter.opts if name.startswith("--")]
    return options or [parameter.metavar.strip("…")]


def default_of(parameter: Any) -> str:
    """What is taken where nothing is said: as the help's words have it, else the value."""
    said = re.search(r"\[default: (.*)\]", parameter.help)
    return said[1] if said else str(parameter.default)


EVERY = [(path, parameter) for path, command in COMMANDS.items() for parameter in command.params]
NAMES = {name for _, parameter in EVERY for name in names_of(parameter)}


def mean(name: str, what: Any) -> set[Any]:
    """`what` of all parameters that are called so."""
    return {what(parameter) for _, parameter in EVERY if name in names_of(parameter)}


def test_all_commands_are_walked() -> None:
    assert len(COMMANDS) > 35
    assert {"capture", "edit rewrite", "multimodal map", "change patch"} <= set(COMMANDS)


def test_every_parameter_is_explained() -> None:
    assert [(path, names_of(p)) for path, p in EVERY if not p.help] == []


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_same_name_says_the_same_everywhere(name: str) -> None:
    words = mean(name, lambda p: re.sub(r"\s*\[default: .*\]", "", p.help))
    metavars = mean(name, lambda p: (p.metavar or "").strip("…"))
    assert (len(words) > 1 or len(metavars) > 1) == (name in OWN_WORDS), (words, metavars)
    if name in OWN_WORDS:
        return
    assert (len(mean(name, default_of)) > 1) == (name in OWN_DEFAULTS), mean(name, default_of)


def test_a_switch_has_a_name_for_off_where_it_is_not_off_by_itself() -> None:
    for path, parameter in EVERY:
        if parameter.default is True:
            assert parameter.secondary_opts, (path, parameter.opts)
        if parameter.secondary_opts:
            assert parameter.default is not False, (path, parameter.opts)


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_command_has_an_example_and_speaks_to_machines_and_keeps_quiet(path: str) -> None:
    command = COMMANDS[path]
    assert f"Example: `actstore {path.removesuffix(' show')}" in " ".join(command.help.split())
    named = {name for parameter in command.params for name in names_of(parameter)}
    assert "--json" in named
    assert ("--quiet" in named) == (path not in AT_ONCE)


def test_what_loads_a_model_runs_its_own_code_if_told_to() -> None:
    """A model with its own code, once captured, can be given to every command that needs it again."""
    models = {"--model", "--substitutes-model", "MODEL", "OTHER"}
    named = {path: {name for p in command.params for name in names_of(p)} for path, command in COMMANDS.items()}
    of_stores = {"change show", "change rank"}  # whose OTHER is a store
    loading = {path for path, names in named.items() if names & models} - of_stores
    assert {"inspect", "capture", "attribute", "verify", "naica evaluate", "edit apply", "edit evaluate"} <= loading
    assert {path for path in loading if "--trust-remote-code" not in named[path]} == set()
    assert {path for path, names in named.items() if "--trust-remote-code" in names} == loading


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_no_option_is_passed_over(path: str) -> None:
    """What a command does not name itself it takes by `given`, as a field of the same name."""
    function = inspect.unwrap(COMMANDS[path].callback)
    module = ast.parse(inspect.getsource(inspect.getmodule(function) or function))
    (mine,) = [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef) and n.name == function.__name__]
    used = {node.id for statement in mine.body for node in ast.walk(statement) if isinstance(node, ast.Name)}
    used |= {
        node.slice.value
        for node in ast.walk(module)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    }
    homes = {a.name: n.module for n in ast.walk(module) if isinstance(n, ast.ImportFrom) for a in n.names}
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "given":
            (kind,) = [argument.id for argument in node.args[1:] if isinstance(argument, ast.Name)]
            settings = getattr(importlib.import_module(homes[kind] or ""), kind)
            used |= {field.name for field in dataclasses.fields(settings)}
    assert set(inspect.signature(function).parameters) - used == set()
