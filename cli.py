"""The command line: options in; a table for people or one JSON document for machines out.

Every command is a few lines around a call that Python users can make themselves. Mistakes of the user end in one sentence on
standard error and exit status 2, runs that stopped half-way in status 1. The engine and the models are imported only by the
commands that need them.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from actstore.api.light import missing
from actstore.commands.messages import name_commands, name_options
from actstore.commands.options import COMMAND, CommandGroup
from actstore.commands.usage import as_sentences
from actstore.display import terminal
from actstore.store.errors import ActstoreError, CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable


class Application(CommandGroup):
    """The command line itself: in messages, Python calls become commands, and parameters the options of the one that ran."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run a command line; messages call the program `actstore`, however Python was told to run it."""
        return super().main(*arguments, **{"prog_name": "actstore"} | settings)

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Read the options before the command."""
        with as_sentences():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Read the rest of the command line, and run the command."""

        def phrase(sentence: str) -> str:
            command: Any = ctx.meta.get(COMMAND)
            whole = _every_command()
            sentence = name_commands(sentence, whole)
            if command is None:
                return sentence
            # What a message says of a capture, to be made anew, are options of other commands than the one that ran.
            others = [parameter for name in ("capture", "attribute") for parameter in whole.commands[name].params]
            return name_options(sentence, [*command.params, *others])

        terminal.phrase = phrase
        try:
            with as_sentences():
                return super().invoke(ctx)
        except ActstoreError as error:
            error.args = (phrase(str(error)),)
            raise
        finally:
            terminal.phrase = str


FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "demo": ("demo",),
    "inspect": ("inspect",),
    "sizes": ("sizes",),
    "capture.command": ("capture", "plan", "fill", "finish"),
    "importing": ("import",),
    "info": ("info", "verify"),
    "upkeep.repair": ("repair",),
    "upkeep.copy": ("copy",),
    "upkeep.reorder": ("reorder",),
    "read": ("top", "stats", "sql", "export"),
    "explorer.serve": ("serve",),
    "explorer.site": ("site",),
    "contributions": ("contributions",),
    "attribute": ("attribute",),
    "naica.group": ("naica",),
    "naica.questions": ("questions",),
    "knowledge": ("knowledge",),
    "selectivity.group": ("selectivity",),
    "change.group": ("change",),
    "coverage": ("coverage",),
    "coactivation": ("coactivation",),
    "graphs.group": ("graphs",),
    "explain": ("explain",),
    "multimodal.group": ("multimodal",),
    "edit.group": ("edit",),
}
"""Module of `commands` → the commands that it registers, in the order in which --help lists them."""


def _print_version(is_given: bool) -> None:
    if is_given:
        terminal.out.print(f"actstore {version('actstore')}")
        raise typer.Exit


def actstore(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run a transformer once; ask its neurons forever.

    Every command has --json for machines. Exit status 1: the run stopped half-way, or `verify` found damage, or `repair` left
    some; 2: something must be fixed first, and the message says what; 130: interrupted, with nothing to resume.
    """


@cache
def application(command: str = "") -> typer.Typer:
    """The command line. Where `command` is one of its commands, that alone: the modules of the others are not imported."""
    app = typer.Typer(
        cls=Application, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown"
    )
    app.callback()(actstore)
    families = [module for module, commands in FAMILIES.items() if command in commands] or list(FAMILIES)
    for module in families:
        import_module(f"actstore.commands.{module}").register(app)
    return app


@cache
def _every_command() -> Any:
    """All commands with their options, once: to build them takes a quarter of a second, and every message names some."""
    return typer.main.get_command(application())


def main() -> None:
    """Run the command line; every error ends in a sentence and an exit status."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of workers
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else each attempt to reach the Hub is announced
    os.environ.setdefault("TQDM_DISABLE", "1")
    # With which schedulers and containers say that time is up: what Ctrl-C keeps and lets go of, this does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(_run(application(sys.argv[1] if len(sys.argv) > 1 else "")))


INTERRUPTED: Final = 130


def _run(command: Callable[[], Any]) -> int:
    terminal.warned.clear()
    logger, warnings_on_terminal = logging.getLogger("actstore"), terminal.WarningsOnTerminal()
    logger.addHandler(warnings_on_terminal)
    try:
        return _status_of(command)
    finally:
        logger.removeHandler(warnings_on_terminal)


def _status_of(command: Callable[[], Any]) -> int:
    """Run a command; its exit status, after a sentence about what went wrong."""
    try:
        command()
    except ActstoreError as error:
        terminal.say(f"Error: {_sentence(str(error))}")
        return 1 if isinstance(error, CaptureError) else 2
    except ModuleNotFoundError as error:
        explanation = missing(error)
        if explanation is None:
            raise
        terminal.say(f"Error: {explanation}")
        return 2
    except OSError as error:
        terminal.say(f"Error: {_system_error(error)}")
        return 2
    except MemoryError as error:
        reason = str(error) or "the system has no more"
        terminal.say(f"Error: There is not enough memory for this command: {_sentence(reason)}")
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        code = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else stop.code
        if code == INTERRUPTED:  # Typer turns KeyboardInterrupt into an exit with this status
            terminal.say("Interrupted.")
        return code if isinstance(code, int) else 1
    return 0


_TOO_MANY_FILES: Final = {errno.EMFILE, errno.ENFILE}


def _system_error(error: OSError) -> str:
    """What the system, or a driver, could not do, with the file where it is known."""
    if error.strerror is None:
        lines = (line.strip() for line in str(error).splitlines())
        return _sentence(next((line for line in lines if line), type(error).__name__))
    reason = error.strerror
    if error.errno is not None and f"[errno {error.errno}]" in reason:  # Arrow's words around the system's
        reason = os.strerror(error.errno)
    files = ", ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    if error.errno in _TOO_MANY_FILES:
        return _sentence(f"{reason}{files and f': {files}'}; raise the limit with `ulimit -n 4096`")
    return _sentence(f"{reason}: {files or 'a file or a disk that the system does not name'}")


def _sentence(text: str) -> str:
    """A message written as Python's are, as a sentence: it begins with a capital letter, unless with a file, and it ends."""
    capitalised = text[:1].upper() + text[1:] if text.startswith(("expected ", "the ", "there ")) else text
    return capitalised if capitalised.endswith((".", "!", "?")) else f"{capitalised}."


if __name__ == "__main__":
    main()
