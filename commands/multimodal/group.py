"""`actstore multimodal`: the neurons that carry an image's concepts into words, and the image regions they respond to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from actstore.commands import completion
from actstore.commands.choices import ALL_ACTIVATIONS, ActivationName, MapName
from actstore.commands.executors import ScanDevice  # noqa: TC001  (Typer reads it)
from actstore.commands.multimodal import properties as multimodal_properties
from actstore.commands.multimodal import saliency as multimodal_saliency
from actstore.commands.multimodal.properties import KPerNoun, NounFile, Nouns, noun_source
from actstore.commands.options import CaptureName, Json, PaperForm, Quiet, Rows, Site, StorePath, family
from actstore.display import terminal
from actstore.display.reports import print_json, token_list
from actstore.store.capture.saturation import overflow_sentences
from actstore.store.capture.tokens.write_scale import scale_sentences
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_folder
from actstore.store.reader import Store

if TYPE_CHECKING:
    from actstore.engine.multimodal.describe import Rows as Described
    from actstore.engine.multimodal.patch_maps import PatchMap
    from actstore.engine.multimodal.result import FindSettings, Multimodal

group = family(
    """Multi-modal neurons (Pan et al. 2024): those that carry the content of an image into the words of its caption.

    `actstore multimodal STORE` is short for `actstore multimodal show STORE`, and needs a capture of images and captions, no
    model; so does `map`, which draws the image regions that neurons respond to. `causal` runs the model, and so
    does `properties`, for region invariance.

    Example: `actstore multimodal captions.actstore --output maps`"""
)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.add_typer(group, name="multimodal")


@group.command()
def show(
    store: StorePath,
    capture: CaptureName = None,
    k: KPerNoun = 20,
    nouns: Nouns = "auto",
    noun_file: NounFile = None,
    activation: Annotated[
        ActivationName, typer.Option(help="Which value of a neuron is its activation; the paper's code uses the gate.")
    ] = "post",
    paper_form: PaperForm = False,
    by_noun: Annotated[bool, typer.Option("--by-noun", help="Merge the captions of each noun.")] = False,
    document: Annotated[list[int] | None, typer.Option(min=0, help="Only this document; repeat for more.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Draw the heat maps of each noun's neurons into this folder, one PNG per noun."
        ),
    ] = None,
    map_of: Annotated[
        MapName,
        typer.Option(
            help="What maps show: contributions to the noun, or activations of any sign, as in the paper.",
            rich_help_panel="Maps, with --output",
        ),
    ] = "contribution",
    rows: Rows = 10,
    device: ScanDevice = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The neurons that carry each noun of each caption, ranked over all layers of the language model.

    A neuron's score is its activation where the noun's first sub-token is predicted, times its write vector's product with
    that token's unembedding: its contribution to the token's logit, up to one factor per position. Beside each neuron stand
    the tokens that it writes there: of a neuron below zero, those that its write vector suppresses.

    Example: `actstore multimodal captions.actstore -k 5 --by-noun`
    """
    from actstore.display.patch_pictures import draw_nouns
    from actstore.engine.devices.device import find_device
    from actstore.engine.multimodal import describe
    from actstore.engine.multimodal.concepts import concepts
    from actstore.engine.multimodal.find import find_multimodal
    from actstore.engine.multimodal.result import FORMS

    settings = _settings(k, noun_source(nouns, noun_file), activation, document, gain=not paper_form)
    if output is not None:
        output_folder(output)
    target = find_device(device)
    opened = Store(store).capture(capture)
    with terminal.counting_bar("layers", enabled=not quiet) as advance:
        result = find_multimodal(opened, settings, advance, target)
    approximate = scale_sentences(opened) if settings.gain else []
    terminal.warn([*approximate, *overflow_sentences(opened, [FORMS[one].site for one in settings.forms])])
    described = describe.Rows(result)
    files: list[dict[str, Any]] = []
    if output is not None:
        with terminal.spinner("drawing maps", enabled=not quiet):
            files = [
                {"file": str(drawn.path), "document": of, "noun": noun, "note": drawn.note}
                for drawn, of, noun in draw_nouns(result, output, map_of)
            ]
    if as_json:
        print_json(_describe(result, described, by_noun) | ({"files": files} if output is not None else {}))
        return
    if by_noun:
        _print_concepts(described, concepts(result), rows)
    else:
        _print_captions(described, rows)
    _print_foot(result, files)


def _settings(k: int, nouns: str, activation: str, documents: list[int] | None, *, gain: bool) -> FindSettings:
    from actstore.engine.multimodal.result import FORMS, FindSettings

    forms: Any = tuple(FORMS) if activation == ALL_ACTIVATIONS else (activation,)
    return FindSettings(k, nouns, forms, gain, documents=tuple(documents) if documents else None)


def _describe(result: Multimodal, described: Described, by_noun: bool) -> dict[str, Any]:
    from actstore.engine.multimodal.concepts import concepts

    settings = result.settings
    about = {
        "capture": result.capture.record.name,
        "nouns_by": result.found_by,
        "forms": list(settings.forms),
        "gain": settings.gain,
        "k": settings.k,
    }
    return about | ({"nouns": described.concepts(concepts(result))} if by_noun else {"captions": described.captions()})


def _print_captions(described: Described, rows: int) -> None:
    every = described.captions()
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


def _print_concepts(described: Described, every: Any, rows: int) -> None:
    for concept in described.concepts(every[: rows or None]):
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
    """The number of nouns at which the neuron is above zero."""
    return f"{row['above_zero']:,} of {row['above_zero'] + row['below_zero']:,}"


def _written(row: dict[str, Any]) -> str:
    """The tokens that a neuron writes, by its sign at the nouns; where the signs differ, those of either sign."""
    if row["writes"] is not None:
        return token_list(row["writes"], 60)
    above, below = (token_list(row[side], 20, 3) for side in ("tokens", "bottom_tokens"))
    return f"when above zero: {above}; when below: {below}"


def _print_foot(result: Multimodal, files: list[dict[str, Any]]) -> None:
    n, silent = len(result.nouns), len(result.captions) - len({noun.caption for noun in result.nouns})
    without = f" ({silent} without one)" if silent else ""
    terminal.out.print(
        f"{terminal.plural(n, 'noun')} of {terminal.plural(len(result.captions), 'caption')}{without}; "
        f"nouns by {result.found_by}.",
        style="dim",
        soft_wrap=True,
    )
    if files:
        folder = Path(files[0]["file"]).parent
        alone = sum(bool(file["note"]) for file in files)
        note = f", {alone} without the image ({next(file['note'] for file in files if file['note'])})" if alone else ""
        terminal.out.print(f"{len(files):,} maps in {folder}{note}", soft_wrap=True, markup=False)


@group.command("map")
def draw_neurons(
    store: StorePath,
    neurons: Annotated[
        list[str],
        typer.Argument(
            metavar="NEURON…",
            help="Neurons, such as L3.N17; of several, the mean is drawn.",
            autocompletion=completion.neurons,
        ),
    ],
    document: Annotated[int, typer.Option(min=0, help="Number of the document with the image.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Draw into FILE.png.")],
    capture: CaptureName = None,
    site: Site = "mlp.post",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The image regions that neurons respond to: the mean of their activations at each patch, over the image, and its mask.

    The picture shows the image, the map over it, and the region above the map's 95th percentile.

    Example: `actstore multimodal map captions.actstore L3.N17 --document 4 --output l3n17.png`
    """
    from actstore.display.patch_pictures import check_picture, draw_document_map
    from actstore.engine.multimodal.patch_maps import NeuronSet, map_neurons

    check_picture(output)
    opened = Store(store)
    selected_capture = opened.capture(capture)
    selection = [(neuron.layer, neuron.index) for neuron in map(opened.neuron, neurons)]
    n_documents = selected_capture.record.plan.n_documents
    if document >= n_documents:
        raise InvalidInputError(
            f"Capture {selected_capture.record.name!r} has documents 0 to {n_documents - 1}, found document {document}."
        )
    with terminal.spinner("reading activations", enabled=not quiet):
        patch_map = next(
            (one for _, _, one in map_neurons(selected_capture, {document: [NeuronSet(selection)]}, site)), None
        )
    if patch_map is None:
        raise InvalidInputError(
            f"Capture {selected_capture.record.name!r} holds no image position of document {document}."
        )
    image = selected_capture.documents()["image"][document].as_py()
    drawn = draw_document_map(selected_capture, output, patch_map, image, (" ".join(neurons),))
    if as_json:
        about = {"document": document, "neurons": neurons, "file": str(output), "note": drawn.note}
        print_json(about | {"patches": _patches(patch_map)})
        return
    largest = patch_map.grid.box[int(patch_map.values.argmax())].round(2).tolist()
    terminal.out.print(
        f"{output}: {len(patch_map.values)} patches, the largest mean {float(patch_map.values.max()):.4g}, left, top, right, "
        f"bottom {largest}" + (f"; {drawn.note}" if drawn.note else ""),
        soft_wrap=True,
        markup=False,
    )


multimodal_properties.register(group)
multimodal_saliency.register(group)


def _patches(patch_map: PatchMap) -> list[dict[str, Any]]:
    grid = patch_map.grid
    names = ("row", "column", "tile", "box", "value")
    columns = (values.tolist() for values in (grid.row, grid.column, grid.tile, grid.box, patch_map.values))
    return [dict(zip(names, patch, strict=True)) for patch in zip(*columns, strict=True)]
