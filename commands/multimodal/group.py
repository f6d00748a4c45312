"""`actstore multimodal`: which neurons carry an image's concepts into words, and where on the image they look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from actstore.commands.multimodal import properties as multimodal_properties
from actstore.commands.multimodal.properties import KOfNoun, Nouns  # noqa: TC001  (Typer reads them)
from actstore.commands.options import CaptureName, Json, PaperForm, Quiet, Rows, Site, StorePath, family
from actstore.display import terminal
from actstore.display.reports import print_json, token_list
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.multimodal.describe import Rows as Described
    from actstore.engine.multimodal.patch_maps import PatchMap
    from actstore.engine.multimodal.result import FindSettings, Multimodal

group = family(
    """Multi-modal neurons (Pan et al. 2024): those that carry what is on an image into the words of its caption.

    `actstore multimodal STORE` is short for `actstore multimodal show STORE`, and needs a capture of images and captions, no
    model; so do `map`, which draws where neurons look, and `properties`. `causal` runs the model.

    Example: `actstore multimodal captions.actstore --heat-maps maps`"""
)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.add_typer(group, name="multimodal")


@group.command()
def show(
    store: StorePath,
    capture: CaptureName = None,
    k: KOfNoun = 20,
    nouns: Nouns = "auto",
    form: Annotated[
        str, typer.Option(help="What counts as activation: post, gate (the paper's code), or both.")
    ] = "post",
    paper_form: PaperForm = False,
    by: Annotated[str | None, typer.Option(metavar="noun", help="Put captions together, noun by noun.")] = None,
    document: Annotated[list[int] | None, typer.Option(min=0, help="Only this document; repeat for more.")] = None,
    heat_maps: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Draw where each noun's neurons look, a PNG a noun.")
    ] = None,
    map_of: Annotated[
        str,
        typer.Option(
            help="What maps show: contribution (to the noun), or activation (whatever its sign; the paper's)."
        ),
    ] = "contribution",
    rows: Rows = 10,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons that carry each noun of each caption, ranked over all layers of the language model.

    A neuron's score is its activation where the noun's first sub-token is predicted, times its write vector's product with
    that token's unembedding: what it adds to the token's logit, but for one factor a position. Beside each neuron stand the
    tokens that it writes there: of one that is below zero, those that its write vector suppresses.

    Example: `actstore multimodal captions.actstore -k 5 --by noun`
    """
    from actstore.display.patch_pictures import draw_nouns
    from actstore.engine.multimodal import describe
    from actstore.engine.multimodal.concepts import concepts
    from actstore.engine.multimodal.find import find_multimodal
    from actstore.engine.multimodal.noun_maps import check_map
    from actstore.engine.multimodal.result import FORMS

    settings = _settings(k, nouns, form, document, gain=not paper_form)
    check_map(map_of)
    if by not in (None, "noun"):
        raise InvalidInputError(f"Captions are put together by noun, found {by!r}. Write --by noun, or leave it out.")
    if heat_maps is not None and heat_maps.exists() and not heat_maps.is_dir():
        raise InvalidInputError(f"Maps are written into a folder, and {heat_maps} is a file. Mend --heat-maps.")
    held = Store(store).capture(capture)
    with terminal.counting_bar("layers", enabled=not quiet) as advance:
        found = find_multimodal(held, settings, advance)
    terminal.warn(overflow_sentences(held, [FORMS[one].site for one in settings.forms]))
    told = describe.Rows(found)
    files: list[dict[str, Any]] = []
    if heat_maps is not None:
        with terminal.spinner("drawing maps", enabled=not quiet):
            files = [
                {"file": str(drawn.path), "document": of, "noun": noun, "note": drawn.note}
                for drawn, of, noun in draw_nouns(found, heat_maps, map_of)
            ]
    if as_json:
        print_json(_describe(found, told, by) | ({"files": files} if heat_maps is not None else {}))
        return
    if by == "noun":
        _print_concepts(told, concepts(found), rows)
    else:
        _print_captions(told, rows)
    _print_foot(found, files)


def _settings(k: int, nouns: str, form: str, documents: list[int] | None, *, gain: bool) -> FindSettings:
    from actstore.engine.multimodal.result import FORMS, FindSettings

    if form not in (*FORMS, "both"):
        raise InvalidInputError(f"The form is one of {', '.join(FORMS)}, both: found {form!r}. Mend --form.")
    forms: Any = tuple(FORMS) if form == "both" else (form,)
    return FindSettings(k, nouns, forms, gain, documents=tuple(documents) if documents else None)


def _describe(found: Multimodal, told: Described, by: str | None) -> dict[str, Any]:
    from actstore.engine.multimodal.concepts import concepts

    settings = found.settings
    about = {
        "capture": found.capture.record.name,
        "nouns_by": found.found_by,
        "forms": list(settings.forms),
        "gain": settings.gain,
        "k": settings.k,
    }
    return about | ({"captions": told.captions()} if by is None else {"nouns": told.concepts(concepts(found))})


def _print_captions(told: Described, rows: int) -> None:
    every = told.captions()
    for caption in every[: rows or None]:
        heading = f"{caption['document']} {caption['image'] or ''}: {terminal.visible(caption['caption'])}"
        terminal.out.print(Text(heading, style="bold"), soft_wrap=True)
        for noun in caption["nouns"]:
            for form, neurons in noun.get("forms", {"": noun["neurons"]}).items():
                overlap = f", {100 * noun['overlap']:.0f} % in both" if form else ""
                title = Text(f"{noun['noun']}{f' ({form}{overlap})' if form else ''}", style="italic")
                terminal.out.print(title)
                terminal.out.print(_table(neurons))
        terminal.out.print()
    _print_rest(len(every), rows, "captions")


def _print_concepts(told: Described, every: Any, rows: int) -> None:
    for concept in told.concepts(every[: rows or None]):
        heading = f"{concept['noun']}: {terminal.plural(concept['captions'], 'caption')}"
        terminal.out.print(Text(heading, style="bold"))
        terminal.out.print(_table(concept["neurons"]))
        terminal.out.print()
    _print_rest(len(every), rows, "nouns")


def _print_rest(n: int, rows: int, what: str) -> None:
    if rows and n > rows:
        terminal.out.print(f"… and {n - rows:,} more {what}: --rows 0 shows all.", style="dim")


def _table(neurons: list[dict[str, Any]]) -> Any:
    shared = bool(neurons) and "share" in neurons[0]
    columns = [
        "neuron",
        ("score", "right"),
        *([("captions", "right"), ("above zero", "right")] if shared else []),
        "writes",
    ]
    cells = [
        (
            row["neuron"],
            row["score"],
            *([f"{100 * row['share']:.0f} %", _positions_above(row)] if shared else []),
            _written(row),
        )
        for row in neurons
    ]
    return terminal.table(None, columns, cells)


def _positions_above(row: dict[str, Any]) -> str:
    """At how many of the nouns the neuron is above zero."""
    return f"{row['above_zero']:,} of {row['above_zero'] + row['below_zero']:,}"


def _written(row: dict[str, Any]) -> str:
    """What a neuron writes, by its sign at the nouns; where they do not agree, what it writes on either side of zero."""
    if row["writes"] is not None:
        return token_list(row["writes"], 60)
    above, below = (token_list(row[side], 20, 3) for side in ("tokens", "bottom_tokens"))
    return f"when above zero: {above}; when below: {below}"


def _print_foot(found: Multimodal, files: list[dict[str, Any]]) -> None:
    n, silent = len(found.nouns), len(found.captions) - len({noun.caption for noun in found.nouns})
    without = f" ({silent} without one)" if silent else ""
    terminal.out.print(
        f"{terminal.plural(n, 'noun')} of {terminal.plural(len(found.captions), 'caption')}{without}; "
        f"nouns by {found.found_by}.",
        style="dim",
        soft_wrap=True,
    )
    if files:
        folder = Path(files[0]["file"]).parent
        alone = sum(bool(file["note"]) for file in files)
        said = f", {alone} without the image ({next(file['note'] for file in files if file['note'])})" if alone else ""
        terminal.out.print(f"{len(files):,} maps in {folder}{said}", soft_wrap=True, markup=False)


@group.command("map")
def draw_neurons(
    store: StorePath,
    neurons: Annotated[list[str], typer.Argument(metavar="NEURON…", help="Such as L3.N17; the mean of several.")],
    document: Annotated[int, typer.Option(min=0, help="Whose image.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Draw into FILE.png.")],
    capture: CaptureName = None,
    site: Site = "mlp.post",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Where on an image neurons look: the mean of their activations at each patch, over the image, and its mask.

    The picture shows the image, the map over it, and what lies above the map's 95th percentile.

    Example: `actstore multimodal map captions.actstore L3.N17 --document 4 --out l3n17.png`
    """
    from actstore.display.patch_pictures import check_picture, draw_document_map
    from actstore.engine.multimodal.patch_maps import NeuronSet, map_neurons

    check_picture(out)
    opened = Store(store)
    held = opened.capture(capture)
    chosen = [(neuron.layer, neuron.index) for neuron in map(opened.neuron, neurons)]
    n_documents = held.record.plan.n_documents
    if document >= n_documents:
        raise InvalidInputError(
            f"Capture {held.record.name!r} has documents 0 to {n_documents - 1}, found document {document}."
        )
    with terminal.spinner("reading activations", enabled=not quiet):
        made = next((made for _, _, made in map_neurons(held, {document: [NeuronSet(chosen)]}, site)), None)
    if made is None:
        raise InvalidInputError(f"Capture {held.record.name!r} keeps no image position of document {document}.")
    named = held.documents()["image"][document].as_py()
    drawn = draw_document_map(held, out, made, named, (" ".join(neurons),))
    if as_json:
        about = {"document": document, "neurons": neurons, "file": str(out), "note": drawn.note}
        print_json(about | {"patches": _patches(made)})
        return
    largest = made.grid.box[int(made.values.argmax())].round(2).tolist()
    terminal.out.print(
        f"{out}: {len(made.values)} patches, the largest mean {float(made.values.max()):.4g}, left, top, right, bottom "
        f"{largest}" + (f"; {drawn.note}" if drawn.note else ""),
        soft_wrap=True,
        markup=False,
    )


multimodal_properties.register(group)


def _patches(made: PatchMap) -> list[dict[str, Any]]:
    grid = made.grid
    names = ("row", "column", "tile", "box", "value")
    columns = (part.tolist() for part in (grid.row, grid.column, grid.tile, grid.box, made.values))
    return [dict(zip(names, patch, strict=True)) for patch in zip(*columns, strict=True)]
