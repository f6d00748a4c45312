"""One voice: every command's help has an example, and the same option means, says and defaults to the same everywhere."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
from typer._click import Context
from typer.core import TyperCommand

from actstore import cli as command_line
from actstore.commands.edit.rewrite import METHOD_OPTIONS
from actstore.commands.graphs.probe import PROBING, SAMPLING
from actstore.engine.coactivation.settings import MEASURES
from actstore.engine.coverage.criteria import CRITERIA
from actstore.engine.edit.baselines import BASELINES
from actstore.engine.edit.forms.table import FORMS
from actstore.engine.models.names import DTYPES, SITES
from actstore.engine.naica.methods import METHODS
from actstore.engine.naica.protocols import PROTOCOLS
from actstore.store.capture.positions import POSITIONS
from actstore.store.capture.questions.attributions import KINDS as ATTRIBUTION_KINDS
from actstore.store.files.precision import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN_WORDS = {
    "--by": "what is done for each value of the label",
    "--capture": "of questions, of several, or all of a store",
    "--context": "tokens per window, or a token that comes before",
    "--device": "where the model runs, or what a scan computes on",
    "--document": "of several, or the one whose image is drawn",
    "FOLDER": "of a site, or for the demo",
    "--dry-run": "sizes are estimated, or prompts are shown",
    "--format": "of what is imported, or of what is exported",
    "--images": "of a capture, or of cases",
    "--exemplars": "recorded by a capture; or of which test windows and probes are drawn",
    "--generate": "answers to be captured, or to be evaluated",
    "--k": "the number of what",
    "--layers": "of the model, or of hidden states as they were numbered",
    "--keep": "values of sparse precision, or scores of a prompt",
    "--paths": "of one graph, or of every neuron",
    "--max-documents": "to be captured, or to be learned from",
    "--max-queries": "to be read, or to be tested on",
    "--max-tokens": "of a corpus, a label, a modality",
    "--memory": "for what",
    "--method": "of selecting neurons, of building graphs, of rewriting",
    "--model": "any, or the folder that edits are taken out of",
    "--name": "of what is made, or which is read",
    "--neurons": "alone, or in place of layers",
    "--output": "which file or folder",
    "--pattern": "of file names, or of answers",
    "--positions": "to be captured, to be read, or to be changed",
    "--precision": "of a capture, or of probes",
    "--probes": "to be made, or to be read",
    "--prompt": "a text, or a number of tokens",
    "--ridge": "of a probe, or of a rewrite",
    "--seeds": "draws of what",
    "--sort": "by any column, or by one of the measures",
    "--share": "of a prompt's neurons, of all neurons, of a maximum",
    "--site": "one, several, or the one that fires",
    "--steps": "of a path, or of learning",
    "CORPUS": "to be captured, or held out",
    "EDIT": "one, or several",
    "NEURON": "one, several, or none",
    "--target": "one token, or what should follow a prompt",
    "--threshold": "of an activation, or of a probability",
    "STORE": "that exists, or is to be made",
}
"""Options, and arguments, that differ between commands, and wherein."""

OPEN = {"SRC", "DST", "--by", "--image-column", "--model", "CORPUS", "MODEL", "PATH", "PROMPTS", "QUESTIONS"}
"""Parameters whose help says "or" of what cannot be listed: labels, models, files."""

OWN_DEFAULTS = {
    "--gradient",
    "--label",
    "--layers",
    "--max-new-tokens",
    "--max-rows",
    "--order",
    "--random",
    "--rows",
    "--temperature",
}
"""Options that are the same thing everywhere, and left out mean what suits the command."""

AT_ONCE = {"demo", "edit add", "edit list", "edit show", "edit delete"}
"""Commands that read or write a record or two, or copy a few small files, and so show no progress."""


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that is none of several, with the words that call it."""
    if hasattr(command, "commands"):
        for name, one in command.commands.items():
            yield from walk(one, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(walk(typer.main.get_command(command_line.application())))


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


def completions(parameter: Any, incomplete: str = "") -> list[str]:
    """What a shell offers for a parameter."""
    return [item.value for item in parameter.shell_complete(Context(TyperCommand("any")), incomplete)]


def test_a_closed_set_is_listed_and_completed() -> None:
    """Whoever lists alternatives in a help makes an enumeration of them, or, of an open set, completes the names."""
    for path, parameter in EVERY:
        words = re.sub(r"\s*\[default: .*\]", "", parameter.help)
        is_text = parameter.type_descriptor.annotation in (str, list[str])
        if is_text and re.search(r"\bone of\b|\bor\b", words) and not OPEN & set(names_of(parameter)):
            assert completions(parameter), (path, names_of(parameter), parameter.help)
        if parameter.type_descriptor.is_choice:
            choices = [choice.value for choice in parameter.type_descriptor.choices]
            assert completions(parameter) == choices
            assert choices[-1] in completions(parameter, choices[-1][:3])
            assert parameter.metavar is None, f"{path} {names_of(parameter)}: a metavar hides the values in --help"


CLOSED = {
    "capture --precision": PRECISIONS,
    "capture --site": SITES,
    "capture --dtype": DTYPES,
    "capture --begin": ("auto", "always", "never"),
    "attribute --too-long": ("cut", "skip", "refuse"),
    "attribute --site": ("mlp.post", "attn.q", "attn.k", "attn.v", "attn.z"),
    "naica show --attribution": ATTRIBUTION_KINDS,
    "naica show --method": METHODS,
    "naica evaluate --method": METHODS,
    "naica evaluate --protocol": PROTOCOLS,
    "coactivation --sort": MEASURES,
    "coverage show --criterion": CRITERIA,
    "coverage show --positions": POSITIONS,
    "graphs build --method": ("corpus", "published"),
    "graphs search --match": ("normalised", "exact", "contains", "regex"),
    "graphs probe --mask": ("auto", "mask", "unk", "pad", "typical", "delete"),
    "change patch --scorer": ("refusal", "regex", "likelihood", "function"),
    "multimodal show --activation": ("post", "gate", "both"),
    "edit rewrite --method": FORMS,
    "edit suppress --kind": ("weights", "intervention"),
    "edit evaluate --baseline": (*BASELINES, "none"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_set_is_that_of_the_engine(name: str) -> None:
    path, _, option = name.rpartition(" ")
    (parameter,) = [p for p in COMMANDS[path].params if option in p.opts]
    assert completions(parameter) == list(CLOSED[name])


def test_options_of_one_method_stand_in_a_panel_of_their_own() -> None:
    of_one_method = {name for names in METHOD_OPTIONS.values() for name in names}
    panels = {p.name: p.rich_help_panel for p in COMMANDS["edit rewrite"].params}
    assert {name for name, panel in panels.items() if panel} == of_one_method
    panels = {p.name: p.rich_help_panel for p in COMMANDS["graphs probe"].params}
    assert {name for name, panel in panels.items() if panel} == PROBING | SAMPLING
    panels = {p.name: p.rich_help_panel for p in COMMANDS["graphs build"].params}
    assert {panels["probes"], panels["gain"], panels["leave_out"]} == {"Method published", "Method corpus"}


def test_commands_get_plain_names() -> None:
    """What is written into a store or into JSON is text, not a member of an enumeration."""
    application: Any = typer.main.get_command(command_line.application())
    context = application.make_context("actstore", ["naica", "show", "S"])
    command = application.get_command(context, "naica").get_command(context, "evaluate")
    values = command.make_context("evaluate", ["S", "--method", "kn", "--method", "random"]).params
    assert (values["method"], values["attribution"]) == (["kn", "random"], "ig")
    assert {type(value) for value in (*values["method"], values["attribution"])} == {str}


def test_a_shell_completes() -> None:
    words = {
        "COMP_WORDS": "actstore naica show S --method with",
        "COMP_CWORD": "5",
        "_ACTSTORE_COMPLETE": "complete_bash",
    }
    program = "from actstore.cli import application; application()(prog_name='actstore')"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | words, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["without-ica", "with-common"]


def test_the_store_comes_first() -> None:
    """A model is an argument only where the command is about it."""
    for path, command in COMMANDS.items():
        arguments = [name for p in command.params for name in names_of(p) if p.param_type_name == "argument"]
        about_models = path in ("inspect", "sizes", "capture", "plan", "attribute", "questions")
        assert about_models == ("MODEL" in arguments), path
        assert about_models or arguments[0] == "STORE" or path in ("multimodal shuffle", "copy", "import", "demo"), path


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
    models = {"--model", "--other-model", "--substitutes-model", "MODEL"}
    named = {path: {name for p in command.params for name in names_of(p)} for path, command in COMMANDS.items()}
    loading = {path for path, names in named.items() if names & models}
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


@pytest.mark.parametrize("name", CLOSED)
def test_the_default_of_a_closed_set_is_in_it(name: str) -> None:
    path, _, option = name.rpartition(" ")
    (parameter,) = [p for p in COMMANDS[path].params if option in p.opts]
    default = parameter.default
    for value in default if isinstance(default, list | tuple) else [default]:
        assert value is None or str(value) in completions(parameter)
