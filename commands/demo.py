"""`actstore demo`: the models that come with actstore, where the tutorials look for them."""

from __future__ import annotations

from typing import Annotated

import typer

from actstore.commands.options import Json  # noqa: TC001  (Typer reads it)
from actstore.display import terminal
from actstore.display.reports import print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Where to put them. [default: here]", show_default=False)
    ] = ".",
    as_json: Json = False,
) -> None:
    """Put the small models that come with actstore into FOLDER, with a corpus, where the tutorials look for them.

    Five models trained for it (Python source, facts, languages, pictures, proteins: demo/models), and the source of the running
    Python's standard library as a corpus (build/demo/stdlib). Nothing is fetched; what is there stays as it is.

    Example: `actstore demo`
    """
    from actstore.engine.inputs.embedded import write_demo

    target = write_demo(folder)
    models = sorted(path.name for path in (target / "demo" / "models").iterdir() if path.is_dir())
    corpus = target / "build" / "demo" / "stdlib"
    if as_json:
        print_json({"folder": folder, "models": models, "corpus": str(corpus)})
        return
    terminal.out.print(f"{target / 'demo' / 'models'}: {', '.join(models)}", soft_wrap=True, markup=False)
    terminal.out.print(f"{corpus}: the standard library's source", soft_wrap=True, markup=False)
    terminal.out.print("A first capture, in that folder:", soft_wrap=True)
    terminal.out.print(
        "  actstore capture demo/models/stdlib-llama build/demo/stdlib stdlib.actstore --precision int8 --max-tokens 250000",
        soft_wrap=True,
        markup=False,
    )
