"""Messages of the engine name Python calls and parameters; the command line names commands, and options of the one that ran."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

import actstore
from actstore import cli as command_line
from actstore.commands.messages import name_commands, name_options
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Result  # type: ignore[import-not-found]

APPLICATION: Any = typer.main.get_command(command_line.application())


def parameters(*path: str) -> list[Any]:
    """The options and arguments of a command."""
    command = APPLICATION
    for name in path:
        command = command.commands[name]
    return list(command.params)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Check `layers`.", "Check --layers."),
        ("Pass `k` of 1 or more.", "Pass --k of 1 or more."),
        ('Capture with `precision="exact"`.', "Capture with --precision exact."),
        ("Continue it with `resume=True`.", "Continue it with --resume."),
        ("Leave weights out with `weights=False`.", "Leave weights out with --no-weights."),
        ('Capture with `sites=["mlp.post", "mlp.gate"]`.', "Capture with --site mlp.post --site mlp.gate."),
        ("Pass `max_tokens=100`, or less.", "Pass --max-tokens 100, or less."),
        ("There is no `corpus`.", "There is no CORPUS."),
        ("Labels come from `label_columns`.", "Labels come from --label."),
        ("Labels come from `label`.", "Labels come from --label."),
        ("Run `actstore capture` first, see `docs/read.md`.", "Run `actstore capture` first, see `docs/read.md`."),
        (
            "The field `unknown` is missing, and `unknown=3` too.",
            "The field `unknown` is missing, and `unknown=3` too.",
        ),
    ],
)
def test_parameters_become_options_of_the_command(message: str, expected: str) -> None:
    known = [*parameters("capture"), *(p for p in parameters("top") if p.name == "k")]
    assert name_options(message, known) == expected


def test_what_another_command_takes_stays_as_it_is() -> None:
    assert name_options("Check `precision`.", parameters("info")) == "Check `precision`."
    assert name_options("Check `form`.", parameters("edit", "rewrite")) == "Check --method."
    assert name_options("Check `form`.", parameters("capture")) == "Check `form`."
    patch = name_options("Pass `n_tokens` of 1 or more, and `n_random=0`.", parameters("change", "patch"))
    assert patch == "Pass --max-new-tokens of 1 or more, and --random 0."
    assert name_options("Check `methods`.", parameters("naica", "evaluate")) == "Check --method."


@given(st.text())
def test_a_message_without_parameters_stays_as_it_is(text: str) -> None:
    message = text.replace("`", "")
    assert name_options(message, parameters("capture")) == message


@pytest.mark.parametrize("error", [InvalidInputError, NotFoundError])
def test_the_command_that_ran_decides(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[Exception]
) -> None:
    def refuse(*arguments: object) -> None:
        raise error('There is no such thing. Check `rows`, or pass `method="kn"`; `scale` is no option here.')

    monkeypatch.setattr("actstore.commands.naica.group.Store", refuse)
    done = cli("naica", tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err == "Error: There is no such thing. Check --rows, or pass --method kn; `scale` is no option here.\n"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Run `store.verify()`.", "Run `actstore verify STORE`."),
        ("Make it with `actstore.capture(…)`.", "Make it with `actstore capture`."),
        ("`actstore.attribute(model, questions, store)`", "`actstore attribute MODEL QUESTIONS STORE`"),
        ("`actstore.capture(…, options=RunOptions(resume=True))`", "`actstore capture … --resume`"),
        ("`store.graphs.build(name='mine', max_depth=3)`", "`actstore graphs build STORE --name mine --max-depth 3`"),
        ("`store.multimodal.shuffle(…, captions=True)`", "`actstore multimodal shuffle STORE … --captions`"),
        ("`store.coverage(output=…)`", "`actstore coverage STORE --output …`"),
        ("`store.naica(method='kn')`", "`actstore naica STORE --method kn`"),
        ("`store.edits.rewrite(…)`", "`actstore edit rewrite STORE`"),
        ("`store.fill_top_tokens()`", "`actstore contributions STORE --fill-top-tokens`"),
        ("`store.neuron(3, 17)` is no command, nor is `store.graphs.names`.",) * 2,
    ],
)
def test_calls_become_commands(message: str, expected: str) -> None:
    assert name_commands(message, APPLICATION) == expected


def test_the_command_line_names_commands_where_python_names_calls(cli: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"a folder written by `actstore\.capture\(…\)`"):
        actstore.open(tmp_path)
    assert "a folder written by `actstore capture`" in cli("info", tmp_path).err


def test_warnings_in_json_name_options_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "phrase", lambda sentence: sentence.replace("`k`", "--k"))
    print_json({"warnings": ["Check `k`."], "text": "`k`"})
    assert json.loads(capsys.readouterr().out) == {"warnings": ["Check --k."], "text": "`k`"}


ROOT = Path(actstore.__file__).resolve().parent
BELOW = [path for layer in ("kernels", "store", "engine", "api") for path in sorted((ROOT / layer).rglob("*.py"))]
"""What Python users call: its messages say what to do in Python."""
CALL = re.compile(r"`(actstore|store)\.([a-z_.]+)\(([^`]*)\)`")


def sentences(path: Path) -> list[str]:
    """The texts in a module, as they read with `x` in place of what is put into them; no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (bare | inside):
            found.append(node.value)
    return found


NAMES_SOMETHING = re.compile(
    r"""--(?:[a-z{"']|$)|\bactstore(?:[ {"']|$)|`(?:actstore|store)(?:\.|[{"']|$)""", re.MULTILINE
)
"""What a module's text has where one of its messages may name an option, a command or a call: six in seven have none of it."""
# Read at collection: Python 3.11 fails now and then to parse while another thread of the process does.
SENTENCES = {
    path: sentences(path) if NAMES_SOMETHING.search(path.read_text(encoding="utf-8")) else [] for path in BELOW
}


@pytest.mark.parametrize(
    "source",
    [
        'f"Run `actstore capture {x}`"', '"Run `actstore"\n" capture`"', 'f"Pass --{name}"', '"Pass --"\n"layers"', "'--k'",
        '"`store.verify()`"', 'f"`actstore.{name}()`"', 'f"`store.{name}()`"', 'f"`{of}.open()` or `store"\n".verify()`"',
    ],
)  # fmt: skip
def test_a_module_that_names_something_is_read(source: str) -> None:
    assert NAMES_SOMETHING.search(source)


@pytest.mark.parametrize("path", BELOW, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_below_the_command_line_name_no_command_and_no_option(path: Path) -> None:
    commands = "|".join(APPLICATION.commands)
    for sentence in SENTENCES[path]:
        assert not re.search(rf"\bactstore ({commands})\b|(?<![\w-])--[a-z]", sentence), sentence


def test_calls_that_messages_name_are_calls_and_commands() -> None:
    calls = {match.groups() for found in SENTENCES.values() for sentence in found for match in CALL.finditer(sentence)}
    assert len(calls) > 8
    for of, path, arguments in calls:
        message = f"`{of}.{path}({arguments})`"
        assert name_commands(message, APPLICATION).startswith("`actstore "), message
        called: Any = actstore if of == "actstore" else actstore.Store
        for name in path.split("."):
            called = getattr(called, name)
            if isinstance(called, functools.cached_property):
                called = typing.get_type_hints(called.func, vars(actstore.api.store))["return"]
        known = inspect.signature(called.__call__ if inspect.isclass(called) else called).parameters
        assert {name for name in re.findall(r"(\w+)=", arguments)} <= {*known}, message
