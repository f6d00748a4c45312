"""`actstore multimodal saliency`: which patches of its image a noun depends on, and how faithful that and other maps are."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (Typer reads it)
from typing import Annotated, Any

import typer

from actstore.api.models import ModelOptions, open_replay
from actstore.commands.multimodal.properties import KPerNoun, NounFile, Nouns, noun_source
from actstore.commands.options import (
    CaptureName,
    Device,
    Dtype,
    Json,
    ModelOption,
    Quiet,
    Seed,
    StorePath,
    TrustRemoteCode,
    captured_model,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.store.exports.outputs import output_folder
from actstore.store.reader import Store


def register(group: typer.Typer) -> None:
    """Add the subcommand."""
    group.command()(saliency)


def saliency(
    store: StorePath,
    model: ModelOption = None,
    capture: CaptureName = None,
    k: KPerNoun = 20,
    nouns: Nouns = "auto",
    noun_file: NounFile = None,
    document: Annotated[list[int] | None, typer.Option(min=0, help="Only this document; repeat for more.")] = None,
    max_nouns: Annotated[int, typer.Option(min=0, help="Maximum number of nouns, drawn at random; 0 takes all.")] = 100,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Draw the map of each noun by the gradient into this folder, as PNG."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Which patches a noun depends on: the gradient of its logit to what the language model reads of each patch.

    Beside it the maps of the noun's neurons, and random ones: the noun's probability while patches are taken away in the
    order of each map, and while they are given back. Runs the model.

    Example: `actstore multimodal saliency captions.actstore --document 0 --output saliency`
    """
    from actstore.display.patch_pictures import draw_noun_maps
    from actstore.engine.multimodal.causal import CausalSettings, choose_nouns
    from actstore.engine.multimodal.faithfulness import GRADIENT, every_map, measure_faithfulness
    from actstore.engine.multimodal.find import find_multimodal
    from actstore.engine.multimodal.result import FindSettings

    if output is not None:
        output_folder(output)
    opened = Store(store)
    source = opened.capture(capture)
    chosen = tuple(document) if document else None
    result = find_multimodal(source, FindSettings(k, noun_source(nouns, noun_file), documents=chosen))
    numbers = choose_nouns(result, CausalSettings(seed=seed, max_nouns=max_nouns or None))
    name, options = captured_model(opened, model), ModelOptions(dtype, device, trust_remote_code)
    loading = terminal.spinner(f"loading {name}", enabled=not quiet)
    with open_replay(source, name, options, loading=loading) as replay:
        maps = every_map(result, replay, numbers, seed)
        with terminal.counting_bar("nouns", enabled=not quiet) as advance:
            measured = measure_faithfulness(result, replay, maps, advance)
    files = [] if output is None else draw_noun_maps(result, output, maps[GRADIENT].items())
    n = len(maps[GRADIENT])
    if as_json:
        value: dict[str, Any] = {
            kind: {"deletion": float(one.deletion.mean()), "insertion": float(one.insertion.mean())}
            for kind, one in measured.items()
        }
        drawn = [{"file": str(one.drawn.path), "document": one.document, "noun": one.noun} for one in files]
        print_json({"capture": source.record.name, "nouns": n, "maps": value, "files": drawn})
        return
    rows = [
        (kind, *(f"{terminal.percent(float(part.mean()))} ± {terminal.percent(float(part.std()))}"
                 for part in (one.deletion, one.insertion)))
        for kind, one in measured.items()
    ]  # fmt: skip
    terminal.out.print(terminal.table(None, ["map", ("deletion", "right"), ("insertion", "right")], rows))
    terminal.out.print(
        f"{terminal.plural(n, 'noun')}: the mean of its probability over that with all patches, ± the standard deviation over "
        "nouns. Deletion should be small, insertion large.",
        style="dim",
        soft_wrap=True,
    )
    if output is not None:
        terminal.out.print(f"{terminal.plural(len(files), 'map')} in {output}", markup=False, soft_wrap=True)
