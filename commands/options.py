"""What several commands take: arguments, options, how their values are read, and the model that they name.

A switch that is off unless given is one plain flag; one that is on, or whose default depends on what is looked at, has a name
for either side. Knows nothing about any one command.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from actstore.display import terminal
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import parse_neuron

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore.engine.models.load import LoadedModel
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
By = Annotated[str, typer.Option("--by", metavar="LABEL", help="The label column: language, domain …")]
Site = Annotated[
    str, typer.Option("--site", metavar="SITE", help="Where in the layer: mlp.post, mlp.gate, resid.post, …")
]
Positions = Annotated[
    str,
    typer.Option(
        metavar="POSITIONS",
        help="counted (all but special tokens), all, text, image, last, generated, or predicting: those that predict "
        "generated tokens.",
    ),
]
_NEURONS: Any = typer.Option("--neurons", metavar="NEURONS", help="Only these neurons, such as L3.N17,L4.N2.")
Neurons = Annotated[str | None, _NEURONS]
NamedNeurons = Annotated[str, _NEURONS]
"""The same where there is no doing without."""
Layers = Annotated[str | None, typer.Option("--layers", metavar="LAYERS", help="Only layers such as 0,3-5.")]
Attribution = Annotated[
    str, typer.Option(metavar="KIND", help="What neurons are scored by: ig, contribution, activation or gradient.")
]
PaperForm = Annotated[
    bool, typer.Option("--paper-form", help="Without the final norm's gain, as in Pan et al. (2024).")
]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="How many neurons.")]
Rows = Annotated[int, typer.Option(min=0, help="Rows shown; 0 shows all.")]

# How a model runs
ModelPlace = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Where the model is now. [default: where it was]")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="Compute in auto, float32, float16 or bfloat16.")]
TokenizerName = Annotated[str | None, typer.Option(metavar="TOKENIZER", help="Another tokenizer than the model's own.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code that comes with the model.")]

# How a run is carried out
CaptureToMake = Annotated[str, typer.Option(metavar="NAME", help="Name of this capture; a store holds many.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Weights = Annotated[
    bool, typer.Option("--weights/--no-weights", help="Copy write vectors and unembedding into a new store.")
]
IgnoreDisk = Annotated[bool, typer.Option("--ignore-disk", help="Start although the disk looks too small.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]

# What is said
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")]


LARGEST: Final = 2**63 - 1
"""What an option's integer may be at most: arrays, tensors and databases count in 64 bits."""


class CommandGroup(TyperGroup):
    """Commands whose integers fit in 64 bits, and whose complaints show control characters as signs."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name; None where there is none."""
        command = super().get_command(ctx, cmd_name)
        for parameter in command.params if command is not None else ():
            parameter.callback = parameter.callback or _check_integer
        return command

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Read the group's own part of a command line."""
        with _visible_complaints():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        """Read the rest, and run the command."""
        with _visible_complaints():
            return super().invoke(ctx)


def _check_integer(ctx: Any, parameter: Any, value: Any) -> Any:
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, int) and not -LARGEST <= number <= LARGEST:
            raise typer.BadParameter(f"an integer has at most 64 bits, found {number}.", ctx, parameter)
        if parameter.name == "seed" and number is not None and number < 0:
            raise typer.BadParameter(f"a random seed is 0 or more, found {number}.", ctx, parameter)
    return value


@contextmanager
def _visible_complaints() -> Iterator[None]:
    """Show what a complaint about the command line quotes of it as it is: Typer prints it on a console of its own."""
    try:
        yield
    except Exception as error:
        # Click's error, which some versions of Typer take from Click and others bring along.
        if isinstance(message := getattr(error, "message", None), str) and hasattr(error, "format_message"):
            error.message = terminal.visible(message)  # type: ignore[attr-defined]
        raise


class GroupWithDefault(CommandGroup):
    """A command with subcommands: `naica STORE` means `naica show STORE`, `naica evaluate …` is what it says."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` in front where the first argument is neither a subcommand, nor nearly one, nor --help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            meant = get_close_matches(args[0], self.commands, n=1)
            if meant and not Path(args[0]).exists():
                ctx.fail(f"No such command {args[0]!r}, and no such store. Did you mean {meant[0]!r}?")
            args = ["show", *args]
        return super().parse_args(ctx, args)


def family(summary: str, group: type[CommandGroup] = GroupWithDefault) -> typer.Typer:
    """A command that subcommands are to be added to; `summary`, in Markdown, is what its --help says."""
    return typer.Typer(cls=group, no_args_is_help=True, rich_markup_mode="markdown", help=summary)


def given(ctx: typer.Context, kind: Any) -> dict[str, Any]:
    """Of a command's options, those that are fields of the dataclass `kind`, by name; those that say nothing are left out.

    So a command with many options need not repeat them: `RunOptions(**given(ctx, RunOptions))`.
    """
    names = {field.name for field in fields(kind)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in ctx.params.items()
        if name in names and value is not None and value != ()
    }


def load(model: str, *, device: str, trust_remote_code: bool, quiet: bool, dtype: str = "auto") -> LoadedModel:
    """The model that a command runs, loaded while the terminal says so."""
    from actstore.engine.models.load import load_model

    with terminal.spinner(f"loading {model}", enabled=not quiet):
        return load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def parse_neurons(text: str) -> list[tuple[int, int]]:
    """Layer and index of the neurons in a text such as L3.N17,L4.N2, each once."""
    return list(dict.fromkeys(parse_neuron(name) for name in text.split(",")))


def chosen_neurons(
    capture: Capture, site: str, neurons: str | None, layers: str | None
) -> list[tuple[int, int]] | None:
    """Layer and index of what --neurons and --layers name together; None where neither is given."""
    if neurons is None and layers is None:
        return None
    chosen = parse_neurons(neurons) if neurons is not None else []
    for layer in parse_layers(layers) or ():
        capture.check_neuron(layer, 0, site)  # raises, saying what there is
        chosen += [(layer, neuron) for neuron in range(capture.record.layers(site)[layer])]
    return chosen


MOST_LAYERS: Final = 1 << 20
"""More than any model has: a range ends there, and that there is no such layer is said as of any other."""


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """The layers in a text such as 0,3-5, ascending; None where there is no text, which names all."""
    if text is None:
        return None
    try:
        layers: set[int] = set()
        for part in text.split(","):
            first, _, last = part.partition("-")
            layers |= set(range(int(first), min(int(last or first), MOST_LAYERS) + 1))
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
