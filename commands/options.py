"""What several commands take: arguments, options, and how their values are read. Knows nothing about any one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from actstore.store.errors import InvalidInputError
from actstore.store.neuron import parse_neuron

if TYPE_CHECKING:
    from actstore.store.reader import Capture

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="A folder written by `actstore capture`.")]
NewStore = Annotated[str, typer.Argument(metavar="STORE", help="Where the store is, or is to be.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id or the path of a model folder.")]
NeuronName = Annotated[str, typer.Argument(metavar="NEURON", help="Such as L3.N17.")]

# What is looked at
CaptureName = Annotated[
    str | None, typer.Option("--capture", metavar="NAME", help="Which capture. [default: the only one, or corpus]")
]
QuestionsName = Annotated[
    str | None,
    typer.Option(
        "--capture", metavar="NAME", help="Which capture of questions. [default: the only one with attributions]"
    ),
]
Site = Annotated[
    str, typer.Option("--site", metavar="SITE", help="Where in the layer: mlp.post, mlp.gate, resid.post, …")
]
Neurons = Annotated[
    str | None, typer.Option("--neurons", metavar="NEURONS", help="Only these neurons, such as L3.N17,L4.N2.")
]
Layers = Annotated[str | None, typer.Option("--layers", metavar="LAYERS", help="Only neurons of layers such as 0,3-5.")]
Attribution = Annotated[
    str, typer.Option(metavar="KIND", help="What neurons are scored by: ig, contribution, activation or gradient.")
]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="How many neurons.")]
Rows = Annotated[int, typer.Option(min=0, help="Rows shown; 0 shows all.")]

# How a model runs
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="Compute in auto, float32, float16 or bfloat16.")]
TokenizerName = Annotated[str | None, typer.Option(metavar="TOKENIZER", help="Another tokenizer than the model's own.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code that comes with the model.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
IgnoreDisk = Annotated[bool, typer.Option("--ignore-disk", help="Start although the disk looks too small.")]

# What is said
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")]


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


def parse_neurons(text: str) -> list[tuple[int, int]]:
    """Layer and index of the neurons in a text such as L3.N17,L4.N2."""
    return [parse_neuron(name) for name in text.split(",")]


def chosen_neurons(
    capture: Capture, site: str, neurons: str | None, layers: str | None
) -> list[tuple[int, int]] | None:
    """Layer and index of what --neurons and --layers name together; None where neither is given."""
    if neurons is None and layers is None:
        return None
    chosen = parse_neurons(neurons) if neurons is not None else []
    for layer in parse_layers(layers) if layers is not None else ():
        capture.check_neuron(layer, 0, site)  # raises, saying what there is
        chosen += [(layer, neuron) for neuron in range(capture.record.layers(site)[layer])]
    return chosen


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
