"""Arguments and options that several commands take, how their values are read, and the model that they name.

A switch that is off unless given is one plain flag; one that is on, or whose default depends on the store or the model, has a
name for either side.
"""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from actstore.commands import completion
from actstore.commands.choices import AttributionKind, DtypeName, PositionSetName
from actstore.commands.sites import without_hooks
from actstore.commands.usage import called, suggestion
from actstore.display import terminal
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from actstore.engine.models.load import LoadedModel
    from actstore.store.model.root import Root

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="A folder written by `actstore capture`.")]
NewStore = Annotated[str, typer.Argument(metavar="STORE", help="The folder of the store; it may exist already.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id or the path of a model folder.")]
NeuronName = Annotated[
    str, typer.Argument(metavar="NEURON", help="A neuron, such as L3.N17.", autocompletion=completion.neurons)
]

# What is read
CaptureName = Annotated[
    str | None,
    typer.Option(
        "--capture",
        metavar="NAME",
        help="Name of the capture. [default: the only one, or corpus]",
        autocompletion=completion.captures,
    ),
]
QuestionsName = Annotated[
    str | None,
    typer.Option(
        "--capture",
        metavar="NAME",
        help="Name of the capture of questions. [default: the only one with attributions]",
        autocompletion=completion.captures,
    ),
]
By = Annotated[
    str,
    typer.Option(
        "--by", metavar="LABEL", help="The label column, such as language or domain.", autocompletion=completion.labels
    ),
]
Site = Annotated[
    str,
    typer.Option(
        "--site",
        metavar="SITE",
        help="Where in the layer activations were captured.",
        autocompletion=completion.sites,
    ),
]
Positions = Annotated[
    PositionSetName,
    typer.Option(
        help="Which positions are read: counted are all but special tokens, predicting those that predict generated tokens."
    ),
]


def neurons_option(panel: str | None = None, *, or_layers: bool = True) -> Any:
    """The option --neurons, in a panel of the help; `or_layers`: of a command that takes layers in its place."""
    help_text = "Only these neurons, such as L3.N17,L4.N2" + ("; not together with --layers." if or_layers else ".")
    return typer.Option(
        "--neurons", metavar="NEURONS", help=help_text, rich_help_panel=panel, autocompletion=completion.neurons
    )


def layers_option(panel: str | None = None, *, instead_of: str = "") -> Any:
    """The option --layers, in a panel of the help; `instead_of`: the parameter that names neurons in its place."""
    help_text = "Only these layers, such as 0,3-5" + (f"; not together with {instead_of}." if instead_of else ".")
    return typer.Option("--layers", metavar="LAYERS", help=help_text, rich_help_panel=panel)


Neurons = Annotated[str | None, neurons_option()]
NamedNeurons = Annotated[str, neurons_option(or_layers=False)]
"""The same where neurons must be named."""
Layers = Annotated[str | None, layers_option()]
NeuronLayers = Annotated[str | None, layers_option(instead_of="--neurons")]
"""The same beside --neurons, which takes its place."""
Attribution = Annotated[AttributionKind, typer.Option(help="The score of a neuron for a prompt.")]
PaperForm = Annotated[
    bool, typer.Option("--paper-form", help="Without the final norm's gain, as in Pan et al. (2024).")
]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="Maximum number of neurons.")]
Rows = Annotated[int, typer.Option(min=0, help="Maximum number of rows shown; 0 shows all.")]

# How a model runs
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A Hub id or the path of a model folder. [default: the model that was captured]",
    ),
]
Dtype = Annotated[DtypeName, typer.Option(help="Number type of the computation.")]
TokenizerName = Annotated[str | None, typer.Option(metavar="TOKENIZER", help="Another tokenizer than the model's own.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
LayersFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw a heat map, labels × layers, into FILE.svg or FILE.html.")
]
OverlapFile = Annotated[
    Path | None,
    typer.Option(
        "--overlap-map",
        metavar="FILE",
        help="Draw which neurons labels share, labels × labels, into FILE.svg or FILE.html.",
    ),
]
SEED_HELP: Final = "Random seed. [default: 0]"
"""Where the settings hold the default."""
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Maximum number of tokens of a generated answer.")
]


def complete(names: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell offers for an option that takes these names, and other values too."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where the model runs: auto, cpu, cuda or a numbered device such as cuda:1.",
        autocompletion=complete(("auto", "cpu", "cuda")),
    ),
]

# How a run is carried out
CaptureToMake = Annotated[str, typer.Option(metavar="NAME", help="Name of the new capture; a store holds many.")]
Order = Annotated[
    str | None,
    typer.Option(
        metavar="neuron|token|SITE=token",
        help="What lies together on disk: the values of a neuron, or of a token, from which training reads; by site where "
        "one is named, several divided by commas. [default: token for resid.* and attn.out, else neuron]",
        autocompletion=complete(("neuron", "token")),
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Weights = Annotated[
    bool, typer.Option("--weights/--no-weights", help="Copy write vectors and unembedding into a new store.")
]
IgnoreDisk = Annotated[bool, typer.Option("--ignore-disk", help="Start even if the free disk space looks too small.")]
Sync = Annotated[
    bool,
    typer.Option(
        "--sync/--no-sync",
        help="Wait for the disk; with --no-sync, a power cut may damage what was written in the minute before.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists already.")]

# How results are shown
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")]


LARGEST: Final = 2**63 - 1
"""The maximum of an option's integer: arrays, tensors and databases count in 64 bits."""

COMMAND: Final = "actstore.command"
"""Where a context notes the command that runs."""


class CommandGroup(TyperGroup):
    """Commands whose integers fit in 64 bits, and whose names of closed sets are plain text."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name; None where there is none."""
        command = super().get_command(ctx, cmd_name)
        for parameter in command.params if command is not None else ():
            parameter.callback = parameter.callback or _check_value
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that a command line names, noted in the context: messages name its options."""
        resolved = super().resolve_command(ctx, args)
        ctx.meta[COMMAND] = resolved[1]
        return (*resolved[:2], without_hooks(resolved[1], resolved[2]))


def _check_value(ctx: Any, parameter: Any, value: Any) -> Any:
    """The value of an option as its command gets it: names of closed sets are plain text."""
    if isinstance(value, list | tuple):
        return type(value)(_check_value(ctx, parameter, one) for one in value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise InvalidInputError(f"{called(parameter)} takes a whole number of at most 64 bits, found {value}.")
    if parameter.name == "seed" and value is not None and value < 0:
        raise InvalidInputError(f"{called(parameter)} takes a whole number of 0 or more, found {value}.")
    return value


class GroupWithDefault(CommandGroup):
    """A command with subcommands: `naica STORE` means `naica show STORE`, `naica evaluate …` is that subcommand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` in front where the first argument is neither a subcommand, nor nearly one, nor --help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            similar = suggestion(args[0], list(self.commands))
            if similar and not Path(args[0]).exists():
                ctx.fail(f"No such command {args[0]!r}, and no such store.{similar}")
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, with the names of the options that the group takes in its short form."""
        options = [f"`{called(one)}`" for one in self.commands["show"].params if one.param_type_name == "option"]
        short, full = f"{ctx.command_path} STORE", f"{ctx.command_path} show --help"
        self.epilog = f"Options of `{short}`, explained by `{full}`: {', '.join(options)}."
        super().format_help(ctx, formatter)


def family(summary: str, group: type[CommandGroup] = GroupWithDefault) -> typer.Typer:
    """A command to which subcommands are added; `summary`, in Markdown, is its help."""
    return typer.Typer(cls=group, no_args_is_help=True, rich_markup_mode="markdown", help=summary)


def given(ctx: typer.Context, kind: Any) -> dict[str, Any]:
    """The options of a command that are fields of the dataclass `kind`, by name, without those that were left to the default.

    So a command with many options need not repeat them: `RunOptions(**given(ctx, RunOptions))`.
    """
    names = {field.name for field in fields(kind)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in ctx.params.items()
        if name in names and value is not None and value != ()
    }


def load(model: str, *, device: str, trust_remote_code: bool, quiet: bool, dtype: str = "auto") -> LoadedModel:
    """The model that a command runs; a spinner is shown while it loads."""
    from actstore.engine.models.load import load_model

    with terminal.spinner(f"loading {model}", enabled=not quiet):
        return load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def captured_model(store: Root, model: str | None) -> str:
    """Where the model of a store is loaded from: what --model names, or else where it was captured from."""
    from actstore.engine.models.fingerprint import location_of

    return model or location_of(store.model)


MAX_LAYERS: Final = 1 << 20
"""More than any model has. Ranges end there, so that 0-999999999999 fills no memory and fails as an unknown layer does."""


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """The layers in a text such as 0,3-5, ascending; None, which stands for all, where there is no text."""
    if text is None:
        return None
    try:
        layers: set[int] = set()
        for numbers in text.split(","):
            first, _, last = numbers.partition("-")
            layers |= set(range(int(first), min(int(last or first), MAX_LAYERS) + 1))
    except ValueError:
        raise InvalidInputError(
            f"Layers are numbers and ranges such as 0,3-5, found {text!r}. Check --layers."
        ) from None
    return tuple(sorted(layers))


def parse_bytes(text: str) -> int:
    """The number of bytes in a text such as 2GB."""
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
    """`[{neuron, score}]`: how the JSON of every command lists neurons with a score."""
    return [{"neuron": name, "score": float(score)} for name, score in zip(names, scores, strict=True)]
