"""`actstore multimodal properties`, `causal` and `shuffle`: tests of the properties of multi-modal neurons."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actstore.api.models import ModelOptions, open_replay
from actstore.commands import completion
from actstore.commands.choices import NounFinderName, RegionsName
from actstore.commands.options import (
    CaptureName,
    Device,
    Dtype,
    Json,
    ModelOption,
    PaperForm,
    Quiet,
    Seed,
    StorePath,
    TrustRemoteCode,
    captured_model,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from actstore.engine.multimodal.properties import Summary
    from actstore.engine.multimodal.replay import Replay
    from actstore.store.reader import Capture


Nouns = Annotated[
    NounFinderName,
    typer.Option(
        help="How nouns are found: by spaCy, by NLTK, or all content words; auto is the first of them that is installed."
    ),
]
NounFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A list of nouns instead, one per line.")]
KPerNoun = Annotated[int, typer.Option("--k", "-k", min=1, help="Maximum number of neurons per noun.")]


def noun_source(nouns: str, noun_file: Path | None) -> str:
    """What `FindSettings.nouns` takes: a way to find nouns, or the path of a list of them."""
    if noun_file is not None and nouns != "auto":
        raise InvalidInputError(
            f"--noun-file lists the nouns, and --nouns {nouns} finds others. Leave one of them out."
        )
    return nouns if noun_file is None else str(noun_file)


def register(group: typer.Typer) -> None:
    """Add the subcommands."""
    for command in (properties, causal, shuffle):
        group.command()(command)


def properties(
    store: StorePath,
    capture: CaptureName = None,
    regions: Annotated[
        RegionsName | None,
        typer.Option(
            help="For region invariance, permute the patches among the language model's input embeddings, as published, which "
            "runs the model, or the pixels of images, with --shuffled; or leave it out. [default: embeddings, with --shuffled "
            "pixels]",
        ),
    ] = None,
    shuffled: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the capture of the shuffled images, for --regions pixels.",
            autocompletion=completion.captures,
        ),
    ] = None,
    gradient: Annotated[bool, typer.Option("--gradient", help="Rank by activation × gradient too.")] = False,
    model: ModelOption = None,
    k: KPerNoun = 20,
    nouns: Nouns = "auto",
    noun_file: NounFile = None,
    paper_form: PaperForm = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Sensitivity, region and cross-image invariance, specificity and discrimination of multi-modal neurons, beside baselines.

    Rankings by contribution, by activation alone, at random, and with --gradient by activation × gradient. Images for
    --shuffled are made by `actstore multimodal shuffle`.

    Example: `actstore multimodal properties captions.actstore --capture images`
    """
    from actstore.engine.multimodal.properties import PropertySource
    from actstore.engine.multimodal.result import FindSettings

    opened = Store(store)
    source = PropertySource.of(opened, capture, shuffled, regions, gradient=gradient)
    if model is not None and not source.needs_model:
        raise InvalidInputError(
            "--model runs for --gradient and --regions embeddings only. Pass one of them, or leave --model out."
        )
    settings = FindSettings(k, noun_source(nouns, noun_file), gain=not paper_form, seed=seed)
    options = ModelOptions(dtype, device, trust_remote_code)

    def replay_of(images: Capture) -> AbstractContextManager[Replay]:
        name = captured_model(opened, model)
        return open_replay(images, name, options, loading=terminal.spinner(f"loading {name}", enabled=not quiet))

    rankings, measured = source.measure(settings, replay_of, partial(terminal.counting_bar, enabled=not quiet))
    ranking = rankings["contribution"]
    about = {
        "capture": source.capture.record.name, "regions": source.regions, "shuffled": shuffled, "k": k,
        "nouns_by": ranking.found_by,
    }  # fmt: skip
    if as_json:
        print_json(about | {"rankings": {name: _summaries(every) for name, every in measured.items()}})
        return
    names = list(measured["contribution"])
    rows = [
        (name, *(f"{100 * every[p].mean:.1f} ± {100 * every[p].sd:.1f} %" for p in names))
        for name, every in measured.items()
    ]
    terminal.out.print(fitted_table(None, ["ranking", *((p, "right") for p in names)], rows))
    terminal.out.print(
        f"{len(ranking.nouns):,} nouns of {len(ranking.captions):,} captions, {k} neurons each; nouns by {ranking.found_by}. "
        "± is the standard deviation over nouns.",
        style="dim",
        soft_wrap=True,
    )


def _summaries(measured: dict[str, Summary]) -> dict[str, dict[str, float]]:
    return {name: {"mean": one.mean, "sd": one.sd, "n": one.n} for name, one in measured.items()}


def causal(
    store: StorePath,
    model: ModelOption = None,
    capture: CaptureName = None,
    k: KPerNoun = 20,
    nouns: Nouns = "auto",
    noun_file: NounFile = None,
    sigma: Annotated[
        float, typer.Option(help="Size of the noise, in units of the root mean square of a layer's write vectors.")
    ] = 10.0,
    max_nouns: Annotated[int, typer.Option(min=0, help="Maximum number of nouns, drawn at random; 0 takes all.")] = 100,
    gradient: Annotated[
        bool, typer.Option("--gradient/--no-gradient", help="Rank by activation × gradient too.")
    ] = True,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Add noise to the write vectors of each noun's neurons, and measure whether the model still says the noun.

    The same for as many neurons by other rankings and at random. The model's weights on disk are never touched.

    Example: `actstore multimodal causal captions.actstore --max-nouns 50`
    """
    from actstore.engine.multimodal.causal import CausalSettings, causal_effect, choose_nouns
    from actstore.engine.multimodal.properties import rankings_of, summarise
    from actstore.engine.multimodal.result import FindSettings

    settings = CausalSettings(sigma, seed, max_nouns or None)
    opened = Store(store)
    selected_capture = opened.capture(capture)
    source, options = captured_model(opened, model), ModelOptions(dtype, device, trust_remote_code)
    loading = terminal.spinner(f"loading {source}", enabled=not quiet)
    with open_replay(selected_capture, source, options, loading=loading) as replay:
        rankings = rankings_of(
            selected_capture,
            FindSettings(k, noun_source(nouns, noun_file), seed=seed),
            replay if gradient else None,
            lambda first: choose_nouns(first, settings),
            partial(terminal.counting_bar, enabled=not quiet),
        )
        with terminal.counting_bar("captions, with noise", enabled=not quiet) as advance:
            effects = causal_effect(rankings, replay, settings, advance)
    n = len(next(iter(effects.values())).gone)
    if as_json:
        value = {
            name: {"gone": float(e.gone.mean()), "changed": float(e.changed.mean()), "drop": summarise(e.drop).mean}
            for name, e in effects.items()
        }
        print_json({"capture": selected_capture.record.name, "k": k, "sigma": sigma, "nouns": n, "rankings": value})
        return
    rows = [
        (name, *(terminal.percent(value) for value in (e.gone.mean(), e.changed.mean(), summarise(e.drop).mean)))
        for name, e in effects.items()
    ]
    columns = ["ranking", ("noun gone", "right"), ("answer changed", "right"), ("probability drop", "right")]
    terminal.out.print(terminal.table(None, columns, rows))
    terminal.out.print(f"{n:,} nouns that the model says without noise, {k} neurons each, σ = {sigma:g}.", style="dim")


def shuffle(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of images, with or without images.jsonl.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write; a new one, or an empty one.")],
    patch: Annotated[
        int, typer.Option(min=1, help="Width and height of a patch in pixels: the model's own, or a multiple.")
    ] = 8,
    seed: Seed = 0,
    captions: Annotated[
        str | None, typer.Option(metavar="STORE", help="Write the answers of this store as captions, to be read again.")
    ] = None,
    capture: CaptureName = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Shuffle the patches of images, to test region invariance: capture them, then run `properties --shuffled`.

    With --captions the new folder's images.jsonl holds the prompts and answers of a capture, so that a capture of it reads
    the same answers beside the shuffled images.

    Example: `actstore multimodal shuffle pictures --output shuffled --patch 8 --captions captions.actstore`
    """
    from actstore.engine.multimodal.describe import answers_by_image
    from actstore.engine.multimodal.shuffle import shuffle_images

    answers = answers_by_image(Store(captions).capture(capture)) if captions is not None else None
    with terminal.spinner("shuffling patches", enabled=not quiet):
        written = shuffle_images(images, output, patch=patch, seed=seed, captions=answers)
    if as_json:
        print_json({"folder": str(output), "images": written.images, "unreadable": written.unreadable})
        return
    terminal.out.print(f"{output}: {written.images:,} images", soft_wrap=True, markup=False)
    if written.unreadable:
        terminal.say(f"{len(written.unreadable)} files are not images: {', '.join(written.unreadable[:5])}")
