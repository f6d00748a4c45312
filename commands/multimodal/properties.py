"""`actstore multimodal properties`, `causal` and `shuffle`: tests of what is said of multi-modal neurons."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from actstore.commands.options import (
    CaptureName,
    Device,
    Dtype,
    Json,
    PaperForm,
    Quiet,
    StorePath,
    TrustRemoteCode,
    load,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.engine.multimodal.properties import Summary
    from actstore.engine.multimodal.replay import Replay
    from actstore.engine.multimodal.result import FindSettings, Multimodal
    from actstore.store.reader import Capture

BASELINES: Final = ("contribution", "activation", "random")

Nouns = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="auto (spaCy, else NLTK, else content), spacy, nltk, content (all but stop words), or a FILE with a noun a line.",
    ),
]
KOfNoun = Annotated[int, typer.Option("--k", "-k", min=1, help="How many neurons a noun.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn.")]


def register(group: typer.Typer) -> None:
    """Add the subcommands."""
    for command in (properties, causal, shuffle):
        group.command()(command)


def properties(
    store: StorePath,
    capture: CaptureName = None,
    shuffled: Annotated[
        str | None, typer.Option(metavar="NAME", help="The capture of the shuffled images, for region invariance.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Rank by activation × gradient, too: needs the model.")
    ] = None,
    k: KOfNoun = 20,
    nouns: Nouns = "auto",
    paper_form: PaperForm = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Sensitivity, region and cross-image invariance, and specificity of the neurons found, beside baselines.

    Rankings by contribution, by activation alone, at random, and with --model by activation × gradient. Images for
    --shuffled are made by `actstore multimodal shuffle`.

    Example: `actstore multimodal properties captions.actstore --capture images --shuffled shuffled`
    """
    from actstore.engine.multimodal.properties import measure
    from actstore.engine.multimodal.result import FindSettings

    opened = Store(store)
    held = opened.capture(capture)
    other = opened.capture(shuffled) if shuffled is not None else None
    settings = FindSettings(k, nouns, gain=not paper_form, seed=seed)
    replay = partial(_replay, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, quiet=quiet)
    first = _rankings(held, settings, replay(held), quiet)
    second: dict[str, Multimodal] = {}
    if other is not None:
        # Another draw on the other capture: chance is what two draws share.
        second = _rankings(other, replace(settings, seed=seed + 1), replay(other), quiet)
    measured = {name: measure(found, second.get(name)) for name, found in first.items()}
    found = first["contribution"]
    about = {"capture": held.record.name, "shuffled": shuffled, "k": k, "nouns_by": found.found_by}
    if as_json:
        print_json(about | {"rankings": {name: _described(every) for name, every in measured.items()}})
        return
    names = list(measured["contribution"])
    rows = [
        (name, *(f"{100 * every[p].mean:.1f} ± {100 * every[p].sd:.1f} %" for p in names))
        for name, every in measured.items()
    ]
    terminal.out.print(fitted_table(None, ["ranking", *((p, "right") for p in names)], rows))
    terminal.out.print(
        f"{len(found.nouns):,} nouns of {len(found.captions):,} captions, {k} neurons each; nouns by {found.found_by}. "
        "± is the standard deviation over nouns.",
        style="dim",
        soft_wrap=True,
    )


def _described(measured: dict[str, Summary]) -> dict[str, dict[str, float]]:
    return {name: {"mean": one.mean, "sd": one.sd, "n": one.n} for name, one in measured.items()}


def _rankings(
    held: Capture,
    settings: FindSettings,
    replay: Replay | None,
    quiet: bool,
    choose: Callable[[Multimodal], list[int]] | None = None,
) -> dict[str, Multimodal]:
    """The nouns' neurons by every ranking that can be had; by gradient those of the nouns chosen only."""
    from actstore.engine.multimodal.find import find_multimodal

    found = {}
    for name in BASELINES:
        with terminal.counting_bar(f"layers, by {name}", enabled=not quiet) as advance:
            found[name] = find_multimodal(held, replace(settings, by=name), advance)
    if replay is not None:
        from actstore.engine.multimodal.gradients import rank_by_gradient

        first = found["contribution"]
        with terminal.counting_bar("captions, by gradient", enabled=not quiet) as advance:
            found["gradient"] = rank_by_gradient(first, replay, choose(first) if choose else None, advance)
    return found


def _replay(
    model: str | None, held: Capture, *, device: str, dtype: str, trust_remote_code: bool, quiet: bool
) -> Replay | None:
    if model is None:
        return None
    from actstore.engine.models.vision.inputs import VisionProcessor
    from actstore.engine.multimodal.replay import Replay

    wanted = held.record.dtype if dtype == "auto" else dtype
    loaded = load(model, dtype=wanted, device=device, trust_remote_code=trust_remote_code, quiet=quiet)
    return Replay(loaded, VisionProcessor.load(model, trust_remote_code=trust_remote_code), held)


def causal(
    store: StorePath,
    model: Annotated[str, typer.Option(metavar="MODEL", help="The model that was captured.")],
    capture: CaptureName = None,
    k: KOfNoun = 20,
    nouns: Nouns = "auto",
    sigma: Annotated[
        float, typer.Option(help="Size of the noise: so many times the root mean square of a layer's write vectors.")
    ] = 10.0,
    max_nouns: Annotated[int, typer.Option(min=0, help="Nouns looked at, drawn at random; 0 takes all.")] = 100,
    gradient: Annotated[
        bool, typer.Option("--gradient/--no-gradient", help="Rank by activation × gradient, too.")
    ] = True,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Noise on the write vectors of each noun's neurons, and whether the model still says the noun.

    The same for as many neurons by other rankings and at random. The model's weights on disk are never touched.

    Example: `actstore multimodal causal captions.actstore --model demo/models/shapes-llava --max-nouns 50`
    """
    from actstore.engine.multimodal.causal import CausalSettings, causal_effect, choose_nouns
    from actstore.engine.multimodal.properties import summarise
    from actstore.engine.multimodal.result import FindSettings

    settings = CausalSettings(sigma, seed, max_nouns or None)
    held = Store(store).capture(capture)
    replay = _replay(model, held, device=device, dtype=dtype, trust_remote_code=trust_remote_code, quiet=quiet)
    assert replay is not None
    asked = FindSettings(k, nouns, seed=seed)
    rankings = _rankings(held, asked, replay if gradient else None, quiet, lambda found: choose_nouns(found, settings))
    with terminal.counting_bar("captions, with noise", enabled=not quiet) as advance:
        effects = causal_effect(rankings, replay, settings, advance)
    n = len(next(iter(effects.values())).gone)
    if as_json:
        value = {
            name: {"gone": float(e.gone.mean()), "changed": float(e.changed.mean()), "drop": summarise(e.drop).mean}
            for name, e in effects.items()
        }
        print_json({"capture": held.record.name, "k": k, "sigma": sigma, "nouns": n, "rankings": value})
        return
    rows = [
        (name, *(terminal.percent(value) for value in (e.gone.mean(), e.changed.mean(), summarise(e.drop).mean)))
        for name, e in effects.items()
    ]
    columns = ["ranking", ("noun gone", "right"), ("answer changed", "right"), ("probability drop", "right")]
    terminal.out.print(terminal.table(None, columns, rows))
    terminal.out.print(f"{n:,} nouns that the model says undisturbed, {k} neurons each, σ = {sigma:g}.", style="dim")


def shuffle(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of images, with or without images.jsonl.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; not there yet, or empty.")],
    patch: Annotated[int, typer.Option(min=1, help="Pixels of a patch, each way: the model's own, or a multiple.")] = 8,
    seed: Seed = 0,
    captions: Annotated[
        str | None, typer.Option(metavar="STORE", help="Write this store's answers as captions, to be read again.")
    ] = None,
    capture: CaptureName = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Images with their patches shuffled, to test region invariance: capture them, then `properties --shuffled`.

    With --captions the new folder's images.jsonl names the prompts and answers of a capture, so that capturing it reads the
    same answers beside the shuffled images.

    Example: `actstore multimodal shuffle pictures shuffled --patch 8 --captions captions.actstore`
    """
    from actstore.engine.multimodal.shuffle import shuffle_images

    answers = _answers(Store(captions).capture(capture)) if captions is not None else None
    with terminal.spinner("shuffling patches", enabled=not quiet):
        done = shuffle_images(images, out, patch=patch, seed=seed, captions=answers)
    if as_json:
        print_json({"folder": str(out), "images": done.images, "unreadable": done.unreadable})
        return
    terminal.out.print(f"{out}: {done.images:,} images", soft_wrap=True, markup=False)
    if done.unreadable:
        terminal.say(f"{len(done.unreadable)} files are no images: {', '.join(done.unreadable[:5])}")


def _answers(held: Capture) -> dict[str, dict[str, Any]]:
    """File name without suffix → prompt and caption, of a capture's documents."""
    from actstore.engine.multimodal.captions import read_captions
    from actstore.engine.multimodal.describe import plain

    rows = held.documents().to_pylist()
    found = {}
    for caption in read_captions(held):
        if caption.image is None:
            raise InvalidInputError(f"Capture {held.record.name!r} holds no images. Name one of images with --capture.")
        row = rows[caption.document]
        found[Path(caption.image).stem] = {"prompt": row.get("prompt"), "caption": plain(caption.text)}
    return found
