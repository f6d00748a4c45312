"""`actstore coverage`: coverage criteria of a capture, and a linear probe between two labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.commands import completion
from actstore.commands.choices import CriterionName, MetricName  # noqa: TC001  (Typer reads it)
from actstore.commands.executors import On, ScanDevice, Workers  # noqa: TC001  (Typer reads them)
from actstore.commands.options import (
    By,
    CaptureName,
    Json,
    Layers,
    Positions,
    Quiet,
    Seed,
    Site,
    StorePath,
    family,
    parse_layers,
)
from actstore.display import terminal
from actstore.display.reports import print_json
from actstore.display.wide_tables import fitted_table
from actstore.engine.coverage.criteria import CRITERIA
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actstore.engine.coverage.coverage import Coverage
    from actstore.engine.coverage.coverage import CriterionResult as Covered
    from actstore.engine.coverage.probe import Probe
    from actstore.store.reader import Capture

SURPRISE_PANEL = "Criteria lsc, dsc and mdsc"

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
            metavar="NAME",
            help="The capture whose ranges kmnc, nbc and snac use, and whose samples lsc, dsc and mdsc, such as that of the "
            "training data.",
        ),
    ] = None,
    criteria: Annotated[
        list[CriterionName] | None,
        typer.Option(
            "--criterion",
            help="Criterion to measure; repeat for more. [default: those of one pass that --reference and --distance allow]",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL", help="One column of results per value of this label.", autocompletion=completion.labels
        ),
    ] = None,
    site: Site = "mlp.post",
    positions: Positions = "counted",
    thresholds: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Its thresholds t.", rich_help_panel="Criterion nc")
    ] = "0.25,0.5,0.75",
    sections: Annotated[
        int, typer.Option(help="Its k, the number of sections of a range.", rich_help_panel="Criterion kmnc")
    ] = 1000,
    top: Annotated[
        int, typer.Option(help="Their k, the number of largest neurons.", rich_help_panel="Criteria tknc and tknp")
    ] = 10,
    distance: Annotated[
        float | None,
        typer.Option(
            help="Minimum distance of a vector from all vectors kept before.", rich_help_panel="Criterion tfc"
        ),
    ] = None,
    metric: Annotated[
        MetricName,
        typer.Option(help="What --distance is; its square in the authors' code.", rich_help_panel="Criterion tfc"),
    ] = "euclidean",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The label whose values are the classes that samples are compared within; dsc needs several. [default: one "
            "class]",
            rich_help_panel=SURPRISE_PANEL,
            autocompletion=completion.labels,
        ),
    ] = None,
    lsc_width: Annotated[float, typer.Option(help="Width of a bucket of lsc.", rich_help_panel=SURPRISE_PANEL)] = 10.0,
    dsc_width: Annotated[float, typer.Option(help="Width of a bucket of dsc.", rich_help_panel=SURPRISE_PANEL)] = 0.1,
    mdsc_width: Annotated[
        float, typer.Option(help="Width of a bucket of mdsc.", rich_help_panel=SURPRISE_PANEL)
    ] = 10.0,
    bandwidth: Annotated[
        float, typer.Option(help="Bandwidth of the kernel of lsc.", rich_help_panel=SURPRISE_PANEL)
    ] = 0.2,
    min_variance: Annotated[
        float,
        typer.Option(help="Leave out neurons that vary less over the reference.", rich_help_panel=SURPRISE_PANEL),
    ] = 1e-5,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the measured state into this file, to be merged.")
    ] = None,
    merge: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Add the state in a file of --output; repeat for more.")
    ] = None,
    device: ScanDevice = "auto",
    workers: Workers = None,
    on: On = "local",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Coverage criteria over the samples of a capture: NC, KMNC, NBC, SNAC, TKNC, TKNP, TFC, NLC, LSC, DSC, MDSC.

    Blocks are divided among --workers; for tfc and nlc, which depend on the order of samples, layers.

    Example: `actstore coverage gpt2.actstore --capture prompts --reference corpus --by kind`
    """
    from actstore.engine.coverage.criteria import CoverageSettings, applicable_criteria
    from actstore.engine.coverage.files import merge_coverages, read_coverage, write_coverage
    from actstore.engine.coverage.measure import measure_coverage
    from actstore.engine.devices.device import find_device
    from actstore.engine.workers.scan import executor_of
    from actstore.store.capture.positions import warnings_of
    from actstore.store.exports.outputs import output_file

    opened = Store(store)
    selected_capture = opened.capture(capture)
    selected = tuple(
        dict.fromkeys(
            criteria or applicable_criteria(has_reference=reference is not None, has_distance=distance is not None)
        )
    )
    settings = CoverageSettings(
        selected, _thresholds(thresholds), sections, top, distance, site, positions, metric, classes,
        lsc_width, dsc_width, mdsc_width, bandwidth, min_variance,
    )  # fmt: skip
    if output is not None:
        output_file(output)
    executor, target = executor_of(workers, on), find_device(device, on)
    others = [read_coverage(path) for path in merge or ()]
    ranges = opened.capture(reference) if reference is not None else None
    with terminal.counting_bar("blocks", enabled=not quiet) as advance:
        coverages = measure_coverage(
            selected_capture, settings, reference=ranges, by=by, on_block=advance, executor=executor, device=target
        )
    for other in others:
        merge_coverages(coverages, other)
    if output is not None:
        write_coverage(output, coverages)
    warnings = [*warnings_of(selected_capture, settings.site), *_small_samples(coverages, by)]
    terminal.warn(warnings)
    total = _merge_all(coverages)
    if as_json:
        print_json(_describe(selected_capture, total, coverages, by, reference) | {"warnings": warnings})
    else:
        _print(total, coverages, by)


def _thresholds(text: str) -> tuple[float, ...]:
    try:
        thresholds = tuple(float(number) for number in text.split(","))
    except ValueError:
        thresholds = ()
    if not thresholds or not all(0 <= t < 1 for t in thresholds):
        raise InvalidInputError(f"--thresholds are numbers from 0 to below 1, such as 0.25,0.5, found {text!r}.")
    return thresholds


def _small_samples(coverages: Mapping[str, Coverage], by: str | None) -> list[str]:
    """One warning per label with few samples or none."""
    return [
        f"{f'{by}={name}' if by else 'The capture'} has only {coverage.n_samples} samples at these positions."
        for name, coverage in coverages.items()
        if coverage.n_samples < 100
    ]


def _merge_all(coverages: dict[str, Coverage]) -> Coverage:
    """One coverage of all populations."""
    from actstore.engine.coverage.coverage import Coverage

    populations = list(coverages.values())
    if len(populations) == 1:
        return populations[0]
    total = Coverage(
        populations[0].settings, populations[0].widths, populations[0].ranges, surprise_of=populations[0].surprise_of
    )
    for coverage in populations:
        total.merge(coverage)
    return total


def _describe(
    capture: Capture, total: Coverage, coverages: Mapping[str, Coverage], by: str | None, reference: str | None
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
        "capture": capture.record.name,
        "reference": reference,
        "site": total.settings.site,
        "positions": total.settings.positions,
        "samples": total.n_samples,
        "criteria": rows(total),
    }
    if by is not None:
        value["by"] = by
        value["labels"] = {name: {"samples": c.n_samples, "criteria": rows(c)} for name, c in coverages.items()}
    return value


def _print(total: Coverage, coverages: Mapping[str, Coverage], by: str | None) -> None:
    columns = {"all": total} if by is None else {"all": total, **{f"{by}={n}": c for n, c in coverages.items()}}
    results = [coverage.results() for coverage in columns.values()]
    rows: list[list[Any]] = [["samples", None, *(coverage.n_samples for coverage in columns.values())]]
    rows += [
        [same[0].criterion.upper(), _parameter(same[0]), *(_cell(row) for row in same)]
        for same in zip(*results, strict=True)
    ]
    headings = ["criterion", "parameter", *((name, "right") for name in columns)]
    terminal.out.print(fitted_table(None, headings, rows, n_keys=2))


def _parameter(row: Covered) -> str | None:
    return None if row.parameter is None else f"{CRITERIA[row.criterion].parameter_label} = {row.parameter:g}"


def _cell(row: Covered) -> Any:
    return row.covered if CRITERIA[row.criterion].is_count or row.share is None else f"{100 * row.share:.2f} %"


@group.command()
def probe(
    store: StorePath,
    by: By,
    positive: Annotated[str, typer.Option(metavar="VALUE", help="The value to detect.")],
    negative: Annotated[
        str | None, typer.Option(metavar="VALUE", help="The value to distinguish it from. [default: every other]")
    ] = None,
    capture: CaptureName = None,
    site: Site = "mlp.post",
    layers: Layers = None,
    ridge: Annotated[float, typer.Option(help="Strength of the penalty on the weights.")] = 1.0,
    test_share: Annotated[float, typer.Option(help="Share of the documents that are held out for the test.")] = 0.3,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How well a linear probe on the last token's activations tells one label from another, layer by layer.

    Example: `actstore coverage probe prompts.actstore --by kind --positive jailbreak`
    """
    from actstore.engine.coverage.probe import ProbeSettings, probe_capture

    opened = Store(store).capture(capture)
    settings = ProbeSettings(ridge, test_share, seed, site, parse_layers(layers))
    with terminal.spinner("training probes", enabled=not quiet):
        result = probe_capture(opened, by, positive, negative, settings)
    terminal.warn(result.warnings)
    if as_json:
        print_json({"by": by, "positive": positive, "negative": negative, **_describe_probe(result)})
    else:
        _print_probe(result, f"{by}={positive} against {f'{by}={negative}' if negative else 'the rest'}")


def _describe_probe(result: Probe) -> dict[str, Any]:
    samples = {"train": result.n_train, "test": result.n_test}
    keys = ("accuracy", "auroc", "train_accuracy")
    return {
        "samples": {part: {"positive": n[1], "negative": n[0]} for part, n in samples.items()},
        "majority": result.majority,
        "layers": [
            {"layer": "all" if row.layer is None else row.layer, **{key: getattr(row, key) for key in keys}}
            for row in result.results
        ],
        "warnings": list(result.warnings),
    }


def _print_probe(result: Probe, what: str) -> None:
    terminal.out.print(
        f"{what}: trained on {_counted(result.n_train)}, "
        f"tested on {_counted(result.n_test)}; the more frequent value alone is right in {terminal.percent(result.majority)}.",
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
        for row in result.results
    ]
    columns = ["layer", ("accuracy", "right"), ("AUROC", "right"), ("on training data", "right")]
    terminal.out.print(terminal.table(None, columns, rows))


def _counted(n: Sequence[int]) -> str:
    return f"{n[1]:,} and {n[0]:,}"
