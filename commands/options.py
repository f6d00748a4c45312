"""What several commands take: arguments, options, and how their values are read. Knows nothing about any one command."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from actstore.store.errors import InvalidInputError

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")]
CaptureName = Annotated[str | None, typer.Option("--capture", help="Which capture; the only one, or 'corpus'.")]
Site = Annotated[str, typer.Option("--site", help="Where in the layer: mlp.post, mlp.gate, resid.post, …")]
StorePath = Annotated[str, typer.Argument(metavar="STORE", help="A folder written by `actstore capture`.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id or the path of a model folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option(help="Compute in auto, float32, float16 or bfloat16.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run model code that comes with the model.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


class GroupWithDefault(TyperGroup):
    """A command with subcommands: `naica STORE` means `naica show STORE`, `naica evaluate …` is what it says.

    A subclass names the subcommand that is meant where none is named.
    """

    default_command = "show"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default's name in front where the first argument is neither a subcommand nor --help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


def parse_layers(text: str) -> tuple[int, ...]:
    """The layers in a text such as 0,3-5, ascending."""
    try:
        layers: set[int] = set()
        for part in text.split(","):
            first, _, last = part.partition("-")
            layers |= set(range(int(first), int(last or first) + 1))
    except ValueError:
        raise InvalidInputError(
            f"Layers are numbers and ranges such as 0,3-5, found {text!r}. Mend --layers."
        ) from None
    return tuple(sorted(layers))


def parse_bytes(text: str) -> int:
    """The bytes in a text such as 2GB."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number = text.strip().upper().rstrip("KMGTB")
    unit = text.strip().upper()[len(number) :]
    try:
        nbytes = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        nbytes = 0
    if nbytes < 1:
        raise InvalidInputError(f"An amount of memory is a number and B, KB, MB or GB, such as 2GB, found {text!r}.")
    return nbytes


def as_rows(scores: Any, names: list[str]) -> list[dict[str, Any]]:
    """`[{neuron, score}]`, the form in which every command's JSON names neurons with a score."""
    return [{"neuron": name, "score": float(score)} for name, score in zip(names, scores, strict=True)]
