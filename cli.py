"""The command line: options in; a table for people or one JSON document for machines out.

Every command is a few lines around a call that Python users can make themselves. Mistakes of the user end in one sentence on
standard error and exit status 2, runs that stopped half-way in status 1. The engine and the models are imported only by the
commands that need them.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from actstore.api.light import missing
from actstore.commands import (
    attribute,
    coactivation,
    contributions,
    copy,
    coverage,
    explain,
    info,
    inspect,
    knowledge,
    read,
    repair,
)
from actstore.commands.capture import command as capture
from actstore.commands.change import group as change
from actstore.commands.edit import group as edit
from actstore.commands.graphs import group as graphs
from actstore.commands.messages import name_commands, name_options
from actstore.commands.multimodal import group as multimodal
from actstore.commands.naica import group as naica
from actstore.commands.options import COMMAND, CommandGroup
from actstore.commands.selectivity import group as selectivity
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
        # What a message says of a capture, to be made anew, are options of other commands than the one that ran.
        others = [parameter for name in ("capture", "attribute") for parameter in self.commands[name].params]

        def phrase(sentence: str) -> str:
            command = ctx.meta.get(COMMAND)
            sentence = name_commands(sentence, self)
            return sentence if command is None else name_options(sentence, [*command.params, *others])

        terminal.phrase = phrase
        try:
            with as_sentences():
                return super().invoke(ctx)
        except ActstoreError as error:
            error.args = (phrase(str(error)),)
            raise
        finally:
            terminal.phrase = str


app = typer.Typer(cls=Application, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def _print_version(is_given: bool) -> None:
    if is_given:
        terminal.out.print(f"actstore {version('actstore')}")
        raise typer.Exit


@app.callback()
def actstore(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run a transformer once; ask its neurons forever.

    Every command has --json for machines. Exit status 1: the run stopped half-way, or `verify` found damage, or `repair` left
    some; 2: something must be fixed first, and the message says what; 130: interrupted, with nothing to resume.
    """


# In the order in which --help lists them.
for family in (
    inspect, capture, info, repair, copy, read, contributions, attribute, naica, knowledge, selectivity, change, coverage,
    coactivation, graphs, explain, multimodal, edit,
):  # fmt: skip
    family.register(app)


def main() -> None:
    """Run the command line; every error ends in a sentence and an exit status."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of workers
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else each attempt to reach the Hub is announced
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(_run(app))


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
    files = ", ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    if error.errno in _TOO_MANY_FILES:
        return _sentence(f"{error.strerror}{files and f': {files}'}; raise the limit with `ulimit -n 4096`")
    return _sentence(f"{error.strerror}: {files or 'a file or a disk that the system does not name'}")


def _sentence(text: str) -> str:
    """A message written as Python's are, as a sentence: it begins with a capital letter, unless with a file, and it ends."""
    capitalised = text[:1].upper() + text[1:] if text.startswith(("expected ", "the ", "there ")) else text
    return capitalised if capitalised.endswith((".", "!", "?")) else f"{capitalised}."


if __name__ == "__main__":
    main()
