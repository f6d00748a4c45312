"""A wrong command line is refused like every other mistake: one sentence, status 2, no box, and what was probably meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

REFUSED = {
    "top S L0.N1 -k x": "--k takes a whole number of 1 or more, and 'x' is none.",
    "top S L0.N1 --k 0": "--k takes a whole number of 1 or more, found 0.",
    "naica show S --t abc": "--t takes a number, and 'abc' is none.",
    "multimodal S --document q": "--document takes a whole number of 0 or more, and 'q' is none.",
    "multimodal S --document 1 --document -1": "--document takes a whole number of 0 or more, found -1.",
    "top S L0.N1 --around 99999999999999999999": "--around takes a whole number of at most 64 bits, "
    "found 99999999999999999999.",
    "naica S --attribution IG": "--attribution takes one of ig, gradient, activation, contribution, and 'IG' is none of them. "
    "Did you mean ig?",
    "coverage S --criterion zzzzz": "--criterion takes one of nc, kmnc, nbc, snac, tknc, tknp, tfc, nlc, lsc, dsc, mdsc, "
    "and 'zzzzz' is none of them.",
    "top S": "NEURON is missing: a neuron, such as L3.N17. Write `actstore top STORE NEURON`.",
    "export S": "--output is missing: the file to write, or the folder. Write `actstore export STORE --output FILE`.",
    "top S L0.N1 --arund 3": "`actstore top` has no option --arund. Did you mean --around?",
    "info S --zzz": "`actstore info` has no option --zzz. `actstore info --help` lists those that there are.",
    "naica S --quit": "`actstore naica show` has no option --quit. Did you mean --quiet?",
    "--vresion": "`actstore` has no option --vresion. Did you mean --version?",
    "stats S --sort": "--sort needs a value.",
    "info S --json=3": "--json takes no value.",
    "info S one two": "`actstore info` takes STORE only, and 'one two' is too much.",
    "tpo S": "No such command 'tpo'. Did you mean 'top'?",
    "edit rewriet S": "No such command 'rewriet'. Did you mean 'rewrite', 'revert'?",
    "multimodal shwo": "No such command 'shwo', and no such store. Did you mean show?",
    "zzzzz S": "No such command 'zzzzz'. `actstore --help` lists the commands.",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_command_line_is_refused_in_one_sentence(refused: Callable[..., str], line: str) -> None:
    assert refused(*line.split()) == REFUSED[line]


def test_what_a_message_quotes_cannot_move_the_cursor(refused: Callable[..., str], tmp_path: Path) -> None:
    for line in (
        ("top", tmp_path, "L0.N1", "--site", "\x1b[2J\n"),
        ("info", "--\x1b[2J"),
        ("info", tmp_path, "\x1b[2J\x9b"),
    ):
        assert refused(*line).isprintable()


def test_a_group_without_a_command_still_prints_its_help(cli: Callable[..., Result]) -> None:
    done = cli("edit")
    assert done.status == 2
    assert "rewrite" in done.out + done.err
    assert "Error" not in done.err


@pytest.mark.parametrize("group", ["naica", "selectivity", "change", "coverage", "multimodal"])
def test_the_help_of_a_group_names_the_options_of_its_short_form(cli: Callable[..., Result], group: str) -> None:
    shown = " ".join(cli(group, "--help").out.split())
    assert f"Options of actstore {group} STORE, explained by actstore {group} show --help: --" in shown
    assert "--capture, " in shown
    assert "--quiet, --json." in shown
