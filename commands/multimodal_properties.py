"""`actstore multimodal properties`, `causal` and `shuffle`: tests of what is said of multi-modal neurons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from actstore import terminal
from actstore.commands.options import (  # noqa: TC001  (Typer reads them)
    CaptureName,
    Device,
    Dtype,
    Json,
    StorePath,
    TrustRemoteCode,
)
from actstore.reports import print_json
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.engine.multimodal.find import FindSettings, Multimodal
    from actstore.engine.multimodal.replay import Replay
    from actstore.store.reader import Capture

BASELINES: Final = ("contribution", "activation", "random")

Nouns = Annotated[str, typer.Option(metavar="HOW", help="auto, spacy, nltk, content, or a FILE with a noun a line.")]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="How many neurons a noun.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn.")]


def register(group: typer.Typer) -> None:
    """Add the subcommands."""
    for command in (properties, causal, shuffle):
        group.command()(command)


def properties(
    store: StorePath,
    capture: CaptureName = None,
    shuffled: Annotated[
        str | None, typer.Option(metavar="CAPTURE", help="The capture of the shuffled images, for region invariance.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Rank by activation × gradient, too: needs the model.")
    ] = None,
    k: K = 20,
    nouns: Nouns = "auto",
    paper_form: Annotated[bool, typer.Option(help="Without the final norm's gain, as in the paper.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Sensitivity, region and cross-image invariance, and specificity of the neurons found, beside baselines.

    Rankings by contribution, by activation alone, at random, and with --model by activation × gradient. Images for
    --shuffled are made by `actstore multimodal shuffle`.

    Example: `actstore multimodal properties captions.actstore --capture images --shuffled shuffled`
    """
    from actstore.engine.multimodal.find import FindSettings
    from actstore.engine.multimodal.properties import measure

    opened = Store(store)
    held = opened.capture(capture)
    other = opened.capture(shuffled) if shuffled is not None else None
    settings = FindSettings(k, nouns, gain=not paper_form, seed=seed)
    # Another draw on the other capture: chance is what two draws share.
    first = _rankings(held, settings, _replay(model, held, device, dtype, trust_remote_code))
    second = None
    if other is not None:
        again = FindSettings(k, nouns, gain=not paper_form, seed=seed + 1)
        second = _rankings(other, again, _replay(model, other, device, dtype, trust_remote_code))
    measured = {name: measure(found, second[name] if second else None) for name, found in first.items()}
    found = first["contribution"]
    if as_json:
        value = {
            name: {p: {"mean": s.mean, "sd": s.sd, "n": s.n} for p, s in every.items()}
            for name, every in measured.items()
        }
        print_json(
            {"capture": held.record.name, "shuffled": shuffled, "k": k, "nouns_by": found.found_by, "rankings": value}
        )
        return
    names = list(measured["contribution"])
    rows = [
        (name, *(f"{100 * every[p].mean:.1f} ± {100 * every[p].sd:.1f} %" for p in names))
        for name, every in measured.items()
    ]
    terminal.out.print(terminal.table(None, ["ranking", *((p, "right") for p in names)], rows))
    terminal.out.print(
        f"{len(found.nouns):,} nouns of {len(found.captions):,} captions, {k} neurons each; nouns by {found.found_by}. "
        "± is the standard deviation over nouns.",
        style="dim",
        soft_wrap=True,
    )


def _rankings(
    held: Capture,
    settings: FindSettings,
    replay: Replay | None,
    choose: Callable[[Multimodal], list[int]] | None = None,
) -> dict[str, Multimodal]:
    """The nouns' neurons by every ranking that can be had; by gradient those of the nouns chosen only."""
    from dataclasses import replace

    from actstore.engine.multimodal.find import find_multimodal

    by: dict[str, Any] = {name: replace(settings, by=name) for name in BASELINES}
    found = {name: find_multimodal(held, asked) for name, asked in by.items()}
    if replay is not None:
        from actstore.engine.multimodal.gradients import rank_by_gradient

        with terminal.err.status("gradients") as status:
            first = found["contribution"]
            rows = choose(first) if choose else None
            found["gradient"] = rank_by_gradient(
                first, replay, rows, lambda done, n: status.update(f"gradients: caption {done} of {n}")
            )
    return found


def _replay(model: str | None, held: Capture, device: str, dtype: str, trust_remote_code: bool) -> Replay | None:
    if model is None:
        return None
    from actstore.engine.models import load_model
    from actstore.engine.multimodal.replay import Replay
    from actstore.engine.vision import VisionProcessor

    wanted = held.record.dtype if dtype == "auto" else dtype
    loaded = load_model(model, dtype=wanted, device=device, trust_remote_code=trust_remote_code)
    return Replay(loaded, VisionProcessor.load(model, trust_remote_code=trust_remote_code), held)


def causal(
    store: StorePath,
    model: Annotated[str, typer.Option(metavar="MODEL", help="The model that was captured.")],
    capture: CaptureName = None,
    k: K = 20,
    nouns: Nouns = "auto",
    sigma: Annotated[
        float, typer.Option(help="Size of the noise: so many times the root mean square of a layer's write vectors.")
    ] = 10.0,
    max_nouns: Annotated[int, typer.Option(min=0, help="Nouns looked at, drawn at random; 0 takes all.")] = 100,
    gradient: Annotated[bool, typer.Option(help="Rank by activation × gradient, too.")] = True,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Noise on the write vectors of each noun's neurons, and whether the model still says the noun.

    The same for as many neurons by other rankings and at random. The model's weights on disk are never touched.

    Example: `actstore multimodal causal captions.actstore --model demo/shapes-llava --max-nouns 50`
    """
    from actstore.engine.multimodal.causal import CausalSettings, causal_effect, choose_nouns
    from actstore.engine.multimodal.find import FindSettings
    from actstore.engine.multimodal.properties import summarise

    settings = CausalSettings(sigma, seed, max_nouns or None)
    held = Store(store).capture(capture)
    replay = _replay(model, held, device, dtype, trust_remote_code)
    assert replay is not None
    asked = FindSettings(k, nouns, seed=seed)
    rankings = _rankings(held, asked, replay if gradient else None, lambda found: choose_nouns(found, settings))
    with terminal.err.status("noise") as status:
        effects = causal_effect(
            rankings, replay, settings, lambda done, n: status.update(f"noise: caption {done} of {n}")
        )
    n = len(next(iter(effects.values())).gone)
    if as_json:
        value = {
            name: {"gone": float(e.gone.mean()), "changed": float(e.changed.mean()), "drop": summarise(e.drop).mean}
            for name, e in effects.items()
        }
        print_json({"capture": held.record.name, "k": k, "sigma": sigma, "nouns": n, "rankings": value})
        return
    rows = [
        (name, *(f"{100 * value:.1f} %" for value in (e.gone.mean(), e.changed.mean(), summarise(e.drop).mean)))
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
    as_json: Json = False,
) -> None:
    """Images with their patches shuffled, to test region invariance: capture them, then `properties --shuffled`.

    With --captions the new folder's images.jsonl names the prompts and answers of a capture, so that capturing it reads the
    same answers beside the shuffled images.

    Example: `actstore multimodal shuffle pictures shuffled --patch 8 --captions captions.actstore`
    """
    from actstore.engine.multimodal.shuffle import shuffle_images

    given = _answers(Store(captions).capture(capture)) if captions is not None else None
    done = shuffle_images(images, out, patch=patch, seed=seed, captions=given)
    if as_json:
        print_json({"folder": str(out), "images": done.images, "unreadable": done.unreadable})
        return
    terminal.out.print(f"{out}: {done.images:,} images", soft_wrap=True, markup=False)
    if done.unreadable:
        terminal.err.print(
            f"{len(done.unreadable)} files are no images: {', '.join(done.unreadable[:5])}", markup=False
        )


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
