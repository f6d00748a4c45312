"""`actstore coverage`: how much of what neurons can do a capture made them do, and a linear probe between two labels.

Knows nothing about how either is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands.options import (
    By,
    CaptureName,
    Json,
    Layers,
    Positions,
    Quiet,
    Site,
    StorePath,
    family,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actstore.engine.coverage.coverage import Coverage
    from actstore.engine.coverage.coverage import CriterionResult as Covered
    from actstore.engine.coverage.probe import Probe
    from actstore.store.reader import Capture

group = family(
    """Coverage criteria over a capture, and a linear probe between two labels.

    `actstore coverage STORE` is short for `actstore coverage show STORE`. Neither needs a model.

    Example: `actstore coverage gpt2.actstore --capture prompts --reference corpus`"""
)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.add_typer(group, name="coverage")


@group.command()
def show(
    store: StorePath,
    capture: CaptureName = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The capture whose ranges kmnc, nbc and snac go by, such as one of training data."
        ),
    ] = None,
    criteria: Annotated[
        str | None,
        typer.Option(help="Of nc,kmnc,nbc,snac,tknc,tknp,tfc. [default: all that --reference and --distance allow]"),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="LABEL", help="A column of results for each value of this label.")
    ] = None,
    site: Site = "mlp.post",
    positions: Positions = "counted",
    thresholds: Annotated[str, typer.Option(help="The t of nc.")] = "0.25,0.5,0.75",
    sections: Annotated[int, typer.Option(help="The k of kmnc.")] = 1000,
    top: Annotated[int, typer.Option(help="The k of tknc and tknp.")] = 10,
    distance: Annotated[
        float | None, typer.Option(help="How far a vector must lie from all kept ones, for tfc.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write what was measured to this file, to be merged.")
    ] = None,
    merge: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Add what another --state file holds; repeat for more.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Coverage criteria over the samples of a capture: NC, KMNC, NBC, SNAC, TKNC, TKNP, TFC.

    Example: `actstore coverage gpt2.actstore --capture prompts --reference corpus --by kind`
    """
    from actstore.engine.coverage.criteria import CRITERIA, CoverageSettings
    from actstore.engine.coverage.files import merge_coverages, read_coverage, write_coverage
    from actstore.engine.coverage.measure import measure_coverage
    from actstore.store.capture.positions import warnings_of

    opened = Store(store)
    held = opened.capture(capture)
    chosen = tuple(criteria.split(",")) if criteria is not None else tuple(
        name
        for name, criterion in CRITERIA.items()
        if (reference is not None or not criterion.needs_reference) and (distance is not None or name != "tfc")
    )  # fmt: skip
    settings = CoverageSettings(chosen, _thresholds(thresholds), sections, top, distance, site, positions)
    others = [read_coverage(path) for path in merge or ()]
    against = opened.capture(reference) if reference is not None else None
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:
        found = measure_coverage(held, settings, reference=against, by=by, on_block=advance)
    for other in others:
        merge_coverages(found, other)
    if state is not None:
        write_coverage(state, found)
    warnings = [*warnings_of(held, settings.site), *_few(found, by)]
    terminal.warn(warnings)
    everything = _together(found)
    if as_json:
        print_json(_describe(held, everything, found, by, reference) | {"warnings": warnings})
    else:
        _print(everything, found, by)


def _thresholds(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= t < 1 for t in found):
        raise InvalidInputError(f"--thresholds are numbers from 0 to below 1, such as 0.25,0.5, found {text!r}.")
    return found


def _few(found: Mapping[str, Coverage], by: str | None) -> list[str]:
    """Labels of which nothing, or hardly anything, was seen."""
    return [
        f"{f'{by}={name}' if by else 'The capture'} has {coverage.n_samples} samples at these positions: too few to say much."
        for name, coverage in found.items()
        if coverage.n_samples < 100
    ]


def _together(found: dict[str, Coverage]) -> Coverage:
    """One coverage of all populations; the only one as it is."""
    from actstore.engine.coverage.coverage import Coverage

    populations = list(found.values())
    if len(populations) == 1:
        return populations[0]
    total = Coverage(populations[0].settings, populations[0].widths, populations[0].ranges)
    for coverage in populations:
        total.merge(coverage)
    return total


def _describe(
    held: Capture, everything: Coverage, found: Mapping[str, Coverage], by: str | None, reference: str | None
) -> dict[str, Any]:
    def rows(coverage: Coverage) -> list[dict[str, Any]]:
        return [
            {
                "criterion": row.criterion,
                "parameter": row.parameter,
                "covered": row.covered,
                "of": row.of,
                "share": row.share,
                "layers": [{"layer": layer, "covered": n, "of": of} for layer, (n, of) in row.by_layer.items()],
            }
            for row in coverage.results()
        ]

    value: dict[str, Any] = {
        "capture": held.record.name,
        "reference": reference,
        "site": everything.settings.site,
        "positions": everything.settings.positions,
        "samples": everything.n_samples,
        "criteria": rows(everything),
    }
    if by is not None:
        value["by"] = by
        value["labels"] = {name: {"samples": c.n_samples, "criteria": rows(c)} for name, c in found.items()}
    return value


def _print(everything: Coverage, found: Mapping[str, Coverage], by: str | None) -> None:
    columns = {"all": everything} if by is None else {"all": everything, **{f"{by}={n}": c for n, c in found.items()}}
    results = [coverage.results() for coverage in columns.values()]
    rows: list[list[Any]] = [["samples", None, *(coverage.n_samples for coverage in columns.values())]]
    rows += [
        [alike[0].criterion.upper(), _parameter(alike[0]), *(_cell(row) for row in alike)]
        for alike in zip(*results, strict=True)
    ]
    headings = ["criterion", "parameter", *((name, "right") for name in columns)]
    terminal.out.print(fitted_table(None, headings, rows, n_keys=2))


def _parameter(row: Covered) -> str | None:
    names = {"nc": "t", "kmnc": "k", "tknc": "k", "tknp": "k", "tfc": "distance"}
    return None if row.parameter is None else f"{names[row.criterion]} = {row.parameter:g}"


def _cell(row: Covered) -> Any:
    return row.covered if row.criterion in ("tknp", "tfc") or row.share is None else f"{100 * row.share:.2f} %"


@group.command()
def probe(
    store: StorePath,
    by: By,
    positive: Annotated[str, typer.Option(metavar="VALUE", help="The value to detect.")],
    negative: Annotated[
        str | None, typer.Option(metavar="VALUE", help="The value to tell it from. [default: every other]")
    ] = None,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    layers: Layers = None,
    ridge: Annotated[float, typer.Option(help="Strength of the penalty on the weights.")] = 1.0,
    test_share: Annotated[float, typer.Option(help="Share of the documents that the probe is tested on.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of the split into training and test documents.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How well a linear probe on the last token's activations tells one label from another, layer by layer.

    Example: `actstore coverage probe prompts.actstore --by kind --positive jailbreak`
    """
    from actstore.engine.coverage.probe import ProbeSettings, probe_capture

    held = Store(store).capture(capture)
    settings = ProbeSettings(ridge, test_share, seed, site, parse_layers(layers))
    with terminal.spinner("training probes", enabled=not quiet):
        found = probe_capture(held, by, positive, negative, settings)
    terminal.warn(found.warnings)
    if as_json:
        print_json({"by": by, "positive": positive, "negative": negative, **_describe_probe(found)})
    else:
        _print_probe(found, f"{by}={positive} against {f'{by}={negative}' if negative else 'the rest'}")


def _describe_probe(found: Probe) -> dict[str, Any]:
    samples = {"train": found.n_train, "test": found.n_test}
    keys = ("accuracy", "auroc", "train_accuracy")
    return {
        "samples": {part: {"positive": n[1], "negative": n[0]} for part, n in samples.items()},
        "majority": found.majority,
        "layers": [
            {"layer": "all" if row.layer is None else row.layer, **{key: getattr(row, key) for key in keys}}
            for row in found.results
        ],
        "warnings": list(found.warnings),
    }


def _print_probe(found: Probe, what: str) -> None:
    terminal.out.print(
        f"{what}: trained on {_counted(found.n_train)}, "
        f"tested on {_counted(found.n_test)}; always saying the more frequent is right in {terminal.percent(found.majority)}.",
        style="bold",
        soft_wrap=True,
    )
    rows = [
        (
            "all" if row.layer is None else f"L{row.layer}",
            terminal.percent(row.accuracy),
            row.auroc,
            terminal.percent(row.train_accuracy),
        )
        for row in found.results
    ]
    columns = ["layer", ("accuracy", "right"), ("AUROC", "right"), ("on training data", "right")]
    terminal.out.print(terminal.table(None, columns, rows))


def _counted(n: Sequence[int]) -> str:
    return f"{n[1]:,} and {n[0]:,}"
