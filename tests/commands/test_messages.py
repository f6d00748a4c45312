"""Messages of the engine name Python parameters; the command line names the options of the command that ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from actstore import cli as command_line
from actstore.cli import name_options
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

APPLICATION: Any = typer.main.get_command(command_line.app)


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
