"""`graphs probe`: runs the model on contexts that a capture does not hold."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from actstore.api.neurons import chosen_neurons
from actstore.commands.choices import MaskName, PrecisionName  # noqa: TC001  (Typer reads them)
from actstore.commands.executors import GpusPerWorker, On, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    CaptureName,
    Device,
    Dtype,
    IgnoreDisk,
    Json,
    ModelOption,
    Quiet,
    Resume,
    Seed,
    Site,
    StorePath,
    Sync,
    TokenizerName,
    TrustRemoteCode,
    captured_model,
    given,
    layers_option,
    neurons_option,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.capture.run import RunOptions
    from actstore.engine.graphs.probes.evidence import Probes
    from actstore.store.reader import Capture


SAMPLING_PANEL = "Sampling, with --sample"
PROBING_PANEL = "Probing, without --sample"


def register(group: typer.Typer) -> None:
    """Add the command to the group `graphs`."""
    group.command("probe")(probe)


# Most options are the settings, or the options of the run, of the same name: `given` takes them from the context.
def probe(
    ctx: typer.Context,
    store: StorePath,
    model: ModelOption = None,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    name: Annotated[
        str | None,
        typer.Option("--probes", metavar="NAME", help="Name of the probes. [default: probes, sampled: probes-sampled]"),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Number of tokens of text to sample from the model, instead of probing."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Maximum number of tokens per window. [default: 128]", rich_help_panel=SAMPLING_PANEL),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sample at this temperature. [default: 1]", rich_help_panel=SAMPLING_PANEL)
    ] = None,
    prompt: Annotated[
        int | None,
        typer.Option(
            help="Number of tokens that a window takes from the beginning of another. [default: 2]",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None,
    seed: Seed = 0,
    neurons: Annotated[str | None, neurons_option(PROBING_PANEL)] = None,
    layers: Annotated[str | None, layers_option(PROBING_PANEL, instead_of="--neurons")] = None,
    n_exemplars: Annotated[
        int | None,
        typer.Option(
            "--exemplars",
            help="Number of windows with a neuron's largest activations; half of them are probed. [default: 20]",
            rich_help_panel=PROBING_PANEL,
        ),
    ] = None,
    mask: Annotated[
        MaskName | None,
        typer.Option(
            help="What replaces a masked token; typical is a frequent token, auto the first of the others that the "
            "tokenizer has. [default: auto]",
            rich_help_panel=PROBING_PANEL,
        ),
    ] = None,
    n_substitutes: Annotated[
        int | None,
        typer.Option(
            "--substitutes",
            help="Number of substitutes of each important token. [default: 5]",
            rich_help_panel=PROBING_PANEL,
        ),
    ] = None,
    substitutes_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A masked language model, such as distilbert/distilbert-base-cased, that predicts substitutes. "
            "[default: tokens of the captured text in the same context, then near embeddings]",
            rich_help_panel=PROBING_PANEL,
        ),
    ] = None,
    measure_variants: Annotated[
        bool | None,
        typer.Option(
            help="Mask the tokens of substituted windows, too, as the published code does; without, a substituted window takes "
            "the importance of its original. [default: measure-variants]",
            rich_help_panel=PROBING_PANEL,
        ),
    ] = None,
    precision: Annotated[PrecisionName, typer.Option(help="How the probes' activations are encoded.")] = "half",
    annotate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Copy these graphs as NAME-probed, with the measured importance of tokens.",
            rich_help_panel=PROBING_PANEL,
        ),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Build graphs of this name by the published method.",
            rich_help_panel=PROBING_PANEL,
        ),
    ] = None,
    resume: Resume = False,
    tokenizer: TokenizerName = None,
    ignore_disk: IgnoreDisk = False,
    sync: Sync = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    workers: Workers = None,
    on: On = "local",
    gpus_per_worker: GpusPerWorker = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the model on what STORE does not hold: which tokens of a context matter, and what neurons do in sampled text.

    With --sample, text is sampled from the model and captured, as more evidence: `graphs build --also probes-sampled`.
    Otherwise every neuron's exemplars are shortened, and their tokens masked and substituted.

    Example: `actstore graphs probe gpt2.actstore --annotate graphs`
    """
    from actstore.engine.capture.run import RunOptions
    from actstore.store.capture.saturation import overflow_sentences

    options = RunOptions(**given(ctx, RunOptions), weights=False)
    _check_given(ctx, sampled=sample is not None)
    source = captured_model(Store(store), model)
    began = time.monotonic()
    if sample is not None:
        sampled = _sample(ctx, source, store, options)
        captures = [sampled]
        described = _describe_sampled(sampled)
    else:
        probes = _probe(ctx, source, store, options)
        with terminal.spinner("building graphs", enabled=not quiet):
            graphs = _make_graphs(probes, store, annotate, published, sync=sync)
        captures = [probes.store.capture(name) for name in probes.captures]
        described = _describe(probes, graphs)
    terminal.warn(sentence for capture in captures for sentence in overflow_sentences(capture))
    described["seconds"] = time.monotonic() - began
    if as_json:
        print_json(described)
    else:
        _print(described)


SAMPLING = {"window", "temperature", "prompt"}
PROBING = {
    "n_exemplars", "mask", "n_substitutes", "substitutes_model", "measure_variants", "neurons", "layers", "annotate",
    "published",
}  # fmt: skip


def _check_given(ctx: typer.Context, *, sampled: bool) -> None:
    """Refuse options of sampling without --sample, and options of probing with it."""
    for parameter in ctx.command.params:
        if parameter.name in (PROBING if sampled else SAMPLING) and ctx.params[parameter.name] is not None:
            needs = "cannot go with" if sampled else "needs"
            raise InvalidInputError(
                f"{parameter.opts[0]} {needs} --sample. Leave one of them out, or run the command twice."
            )


def _sample(ctx: typer.Context, model: str, store: str, options: RunOptions) -> Capture:
    """The capture of text sampled from the model."""
    from actstore.engine.graphs.probes.run import ProbeOutput
    from actstore.engine.graphs.probes.sampled import SAMPLED, sample_probes
    from actstore.engine.graphs.probes.sampling import SampleSettings

    options_given = ctx.params
    settings = SampleSettings(options_given["sample"], **given(ctx, SampleSettings))
    with terminal.CaptureBar(enabled=not options_given["quiet"]) as bar:
        return sample_probes(
            model, store, name=options_given["name"] or SAMPLED, capture=options_given["capture"], settings=settings,
            output=ProbeOutput(options_given["site"], options_given["precision"]), options=options, progress=bar,
        )  # fmt: skip


def _probe(ctx: typer.Context, model: str, store: str, options: RunOptions) -> Probes:
    """The probes of the selected neurons."""
    from actstore.engine.graphs.probes.evidence import PROBES
    from actstore.engine.graphs.probes.plan import ProbeSettings
    from actstore.engine.graphs.probes.rounds import probe as run

    options_given = ctx.params
    opened = Store(store)
    selected_capture = opened.capture(options_given["capture"])
    selection = chosen_neurons(
        selected_capture, options_given["site"], options_given["neurons"], parse_layers(options_given["layers"])
    )
    _check_graphs(opened, options_given["annotate"], options_given["published"])
    with terminal.CaptureBar(enabled=not options_given["quiet"]) as bar:
        return run(
            model, store, name=options_given["name"] or PROBES, capture=options_given["capture"],
            site=options_given["site"], neurons=selection,
            settings=ProbeSettings(**given(ctx, ProbeSettings)), precision=options_given["precision"], options=options,
            progress=bar,
        )  # fmt: skip


def _check_graphs(store: Store, annotate: str | None, published: str | None) -> None:
    """Refuse unknown graphs, and names that are taken, before the model runs."""
    from actstore.store.graphs.reader import Graphs, graph_names

    if annotate is not None:
        Graphs(store, annotate)
    for name in (annotate and f"{annotate}-probed", published):
        if name and name in graph_names(store.folder):
            raise InvalidInputError(f"{store.folder} already has graphs {name!r}. Delete them, or choose another name.")


def _make_graphs(probes: Probes, store: str, annotate: str | None, published: str | None, *, sync: bool) -> list[str]:
    """The names of the graphs that were built from the probes."""
    from actstore.engine.graphs.probes.evidence import annotate_graphs
    from actstore.engine.graphs.probes.published import build_published
    from actstore.store.graphs.reader import Graphs
    from actstore.store.storage.folder import Folder

    folder, names = Folder(store, read_only=False, sync=sync), []
    if annotate is not None:
        names.append(annotate_graphs(Graphs(probes.store, annotate), probes, folder, f"{annotate}-probed").name)
    if published is not None:
        names.append(build_published(probes, folder, name=published).name)
    return names


def _describe_sampled(capture: Capture) -> dict[str, Any]:
    plan = capture.record.plan
    return {
        "store": capture.folder.location,
        "captures": [{"capture": capture.record.name, "windows": plan.n_windows, "tokens": plan.n_tokens}],
    }


def _describe(probes: Probes, graphs: list[str]) -> dict[str, Any]:
    plans = {name: probes.store.capture(name).record.plan for name in probes.captures}
    shortened = [[probed.is_shortened for probed in probes.of(*neuron)] for neuron in probes.neurons]
    return {
        "store": probes.store.folder.location,
        "captures": [{"capture": name, "windows": p.n_windows, "tokens": p.n_tokens} for name, p in plans.items()],
        "neurons": len(shortened),
        "exemplars": sum(map(len, shortened)),
        "shortened": int(np.sum([sum(flags) for flags in shortened])),
        "mask": probes.settings["mask_kind"],
        "graphs": graphs,
    }


def _print(described: dict[str, Any]) -> None:
    rows = [[c["capture"], c["windows"], c["tokens"]] for c in described["captures"]]
    terminal.out.print(terminal.table(None, ["capture", ("windows", "right"), ("tokens", "right")], rows))
    if "neurons" in described:
        terminal.out.print(
            f"{described['neurons']:,} neurons: {described['shortened']:,} of {described['exemplars']:,} exemplars could be "
            f"shortened. Tokens were masked with: {described['mask']}."
        )
    for graphs in described.get("graphs", ()):
        terminal.out.print(f"Built graphs {graphs!r}.")
