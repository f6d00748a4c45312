"""`graph probe`: asks the model about contexts that a capture does not show. Knows nothing about how it is asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from actstore.commands.options import (
    CaptureName,
    Device,
    Dtype,
    IgnoreDisk,
    Json,
    Layers,
    ModelName,
    Neurons,
    Quiet,
    Resume,
    Site,
    StorePath,
    TokenizerName,
    TrustRemoteCode,
    chosen_neurons,
    given,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.engine.capture.run import RunOptions
    from actstore.engine.graphs.probes.evidence import Probes
    from actstore.store.reader import Capture, Store


def register(group: typer.Typer) -> None:
    """Add the command to the group `graph`."""
    group.command("probe")(probe)


# Most options are the settings, or the options of the run, of the same name: `given` takes them from the context.
def probe(
    ctx: typer.Context,
    model: ModelName,
    store: StorePath,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    name: Annotated[
        str | None,
        typer.Option("--probes", metavar="NAME", help="Name of the probes. [default: probes, sampled: probes-sampled]"),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Draw so many tokens of text from the model; ask nothing else.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Longest sampled window. [default: 128]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Draw text at this temperature. [default: 1]")] = None,
    prompt: Annotated[
        int | None, typer.Option(help="Tokens that a sampled window takes from the beginning of another. [default: 2]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is sampled, or of the exemplars asked about.")] = 0,
    neurons: Neurons = None,
    layers: Layers = None,
    n_exemplars: Annotated[
        int | None,
        typer.Option(
            "--exemplars", help="Windows with a neuron's largest activations; half are asked about. [default: 20]"
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="What masks a token: mask, unk, pad, typical (a frequent token), delete. [default: auto, in that order]"
        ),
    ] = None,
    n_substitutes: Annotated[
        int | None, typer.Option("--substitutes", help="Substitutes of each important token. [default: 5]")
    ] = None,
    substitutes_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A masked language model, such as distilbert/distilbert-base-cased, that names substitutes. "
            "[default: what the captured text has in the same place, then near embeddings]",
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="How the probes' activations are kept.")] = "half",
    annotate: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Note the measured importance in these graphs, as NAME-probed."),
    ] = None,
    published: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make graphs of that name by the published method.")
    ] = None,
    resume: Resume = False,
    tokenizer: TokenizerName = None,
    ignore_disk: IgnoreDisk = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Ask MODEL what STORE cannot say: which tokens of a context matter, and what happens in text of its own.

    With --sample, text is drawn from the model and captured, as more evidence: `graph build --also probes-sampled`. Else
    every neuron's exemplars are shortened, their tokens masked and substituted.

    Example: `actstore graph probe gpt2 gpt2.actstore --annotate graphs`
    """
    from actstore.engine.capture.run import RunOptions
    from actstore.store.capture.saturation import overflow_sentences

    options = RunOptions(**given(ctx, RunOptions), weights=False)
    _check_given(ctx, sampled=sample is not None)
    began = time.monotonic()
    if sample is not None:
        done = _sample(ctx, model, store, options)
        captures = [done]
        described = _describe_sampled(done)
    else:
        probes = _ask(ctx, model, store, options)
        with terminal.spinner("making graphs", enabled=not quiet):
            graphs = _make_graphs(probes, store, annotate, published)
        captures = [probes.store.capture(name) for name in probes.captures]
        described = _describe(probes, graphs)
    terminal.warn(sentence for capture in captures for sentence in overflow_sentences(capture))
    described["seconds"] = time.monotonic() - began
    if as_json:
        print_json(described)
    else:
        _print(described)


SAMPLING = {"window", "temperature", "prompt"}
ASKING = {"n_exemplars", "mask", "n_substitutes", "substitutes_model", "neurons", "layers", "annotate", "published"}


def _check_given(ctx: typer.Context, *, sampled: bool) -> None:
    """Refuse options of sampling without --sample, and options of asking with it."""
    for parameter in ctx.command.params:
        if parameter.name in (ASKING if sampled else SAMPLING) and ctx.params[parameter.name] is not None:
            needs = "cannot go with" if sampled else "needs"
            raise InvalidInputError(
                f"{parameter.opts[0]} {needs} --sample. Leave one of them out, or run the command twice."
            )


def _sample(ctx: typer.Context, model: str, store: str, options: RunOptions) -> Capture:
    """The capture of what was drawn from the model."""
    from actstore.engine.graphs.probes.run import SAMPLED, ProbeKept, sample_probes
    from actstore.engine.graphs.probes.sampling import SampleSettings

    asked = ctx.params
    settings = SampleSettings(asked["sample"], **given(ctx, SampleSettings))
    with terminal.CaptureBar(enabled=not asked["quiet"]) as bar:
        return sample_probes(
            model, store, name=asked["name"] or SAMPLED, capture=asked["capture"], settings=settings,
            kept=ProbeKept(asked["site"], asked["precision"]), options=options, progress=bar,
        )  # fmt: skip


def _ask(ctx: typer.Context, model: str, store: str, options: RunOptions) -> Probes:
    """The probes of the neurons that are asked about."""
    from actstore.engine.graphs.probes.evidence import PROBES
    from actstore.engine.graphs.probes.plan import ProbeSettings
    from actstore.engine.graphs.probes.rounds import probe as ask
    from actstore.store.reader import Store

    asked = ctx.params
    whole = Store(store)
    opened = whole.capture(asked["capture"])
    wanted = chosen_neurons(opened, asked["site"], asked["neurons"], asked["layers"])
    _check_graphs(whole, asked["annotate"], asked["published"])
    with terminal.CaptureBar(enabled=not asked["quiet"]) as bar:
        return ask(
            model, store, name=asked["name"] or PROBES, capture=asked["capture"], site=asked["site"], neurons=wanted,
            settings=ProbeSettings(**given(ctx, ProbeSettings)), precision=asked["precision"], options=options,
            progress=bar,
        )  # fmt: skip


def _check_graphs(store: Store, annotate: str | None, published: str | None) -> None:
    """Refuse graphs that are not there, and names that are taken, before the model is asked anything."""
    from actstore.store.graphs.reader import Graphs, graph_names

    if annotate is not None:
        Graphs(store, annotate)
    for name in (annotate and f"{annotate}-probed", published):
        if name and name in graph_names(store.folder):
            raise InvalidInputError(f"{store.folder} already has graphs {name!r}. Delete them, or name others.")


def _make_graphs(probes: Probes, store: str, annotate: str | None, published: str | None) -> list[str]:
    """The names of the graphs that were made of the probes."""
    from actstore.engine.graphs.probes.evidence import annotate_graphs
    from actstore.engine.graphs.probes.published import build_published
    from actstore.store.graphs.reader import Graphs
    from actstore.store.storage.folder import Folder

    folder, made = Folder(store, read_only=False), []
    if annotate is not None:
        made.append(annotate_graphs(Graphs(probes.store, annotate), probes, folder, f"{annotate}-probed").name)
    if published is not None:
        made.append(build_published(probes, folder, name=published).name)
    return made


def _describe_sampled(capture: Capture) -> dict[str, Any]:
    plan = capture.record.plan
    return {
        "store": capture.folder.location,
        "captures": [{"capture": capture.record.name, "windows": plan.n_windows, "tokens": plan.n_tokens}],
    }


def _describe(probes: Probes, graphs: list[str]) -> dict[str, Any]:
    plans = {name: probes.store.capture(name).record.plan for name in probes.captures}
    held = [[probed.held for probed in probes.of(*neuron)] for neuron in probes.neurons]
    return {
        "store": probes.store.folder.location,
        "captures": [{"capture": name, "windows": p.n_windows, "tokens": p.n_tokens} for name, p in plans.items()],
        "neurons": len(held),
        "exemplars": sum(map(len, held)),
        "shortened": int(np.sum([sum(found) for found in held])),
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
        terminal.out.print(f"Made graphs {graphs!r}.")
