"""The overview: what a store holds, and every neuron's place in each statistic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore.display.reports import describe_store
from actstore.explorer.pages.numbers import packed, short
from actstore.store.edits import edit_names
from actstore.store.errors import NotFoundError
from actstore.store.explanations.record import explanation_names
from actstore.store.graphs.record import graph_names
from actstore.store.model.root import read_neurons
from actstore.store.version import version

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture
    from actstore.store.reader import Store

STANDS_OUT: Final = "(max - mean) / std"
WRITE_NORM: Final = "write norm"
LABEL: Final = "positive at "
"""Begins the name of a statistic over the tokens of one label only."""
STATISTICS: Final = {
    "max": "largest activation",
    "min": "smallest activation",
    "mean": "mean activation",
    "std": "standard deviation of the activations",
    "positive": "share of tokens with an activation above zero",
    "q50": "median activation",
    "q95": "95th percentile of the activations",
    "q99": "99th percentile of the activations",
    "gate_positive": "share of tokens with an open gate",
    "overflow": "tokens whose activation is stored as infinite",
    "non_finite": "tokens whose activation is not a finite number",
}
"""Columns of the table of neurons that the overview can show → what they are."""


def store_page(store: Store, /) -> dict[str, Any]:
    """What `info --json` prints, and what else the pages need to know of a store before they ask."""
    described = describe_store(store)
    for name, capture in described["captures"].items():
        record = store.peek(name).record
        capture["questions"] = record.settings.get("command") == "attribute"
        capture["keeps_values"] = record.encoding.keeps_values
    return described | {
        "written_by": version(),
        "default": store.default_capture(),
        "graphs": list(graph_names(store.folder)),
        "edits": list(edit_names(store.folder)),
        "explanations": list(explanation_names(store.folder)),
        "has_vocabulary": store.vocabulary is not None,
        "widths": [layer.neurons for layer in store.model.layers],
        "modules": [layer.module for layer in store.model.layers],
    }


def overview_page(store: Store, capture: str, site: str, /) -> dict[str, Any]:
    """The layers of a capture at a site, and the statistics that there is a column of for its neurons."""
    opened = store.peek(capture)
    widths = _widths(opened, site)
    known = {*_names(opened)}
    statistics = {STANDS_OUT: "how far the largest activation stands above the mean, in standard deviations"}
    statistics = statistics if {"max", "mean", "std"} <= known else {}
    statistics |= {name: about for name, about in STATISTICS.items() if name in known}
    if "positive_by_label" in known:
        for column, value in opened.record.plan.labels:
            statistics[f"{LABEL}{column}={value}"] = (
                f"share of the tokens labelled {value} with an activation above zero"
            )
    if site == "mlp.post":
        statistics[WRITE_NORM] = "length of the write vector"
    return {
        "capture": capture,
        "site": site,
        "layers": [{"layer": layer, "neurons": width} for layer, width in widths.items()],
        "statistics": [{"name": name, "about": about} for name, about in statistics.items()],
        "finished": opened.is_finished,
        "blocks": {"planned": opened.record.plan.n_blocks, "committed": len(opened.blocks)},
    }


def column_page(store: Store, capture: str, site: str, statistic: str, /) -> dict[str, Any]:
    """One statistic of every neuron, in the order of layers and indices; `values` as `numbers.packed`."""
    values = column_values(store.peek(capture), site, statistic)
    finite = values[np.isfinite(values)]
    ends = (float(finite.min()), float(finite.max())) if len(finite) else (None, None)
    return {"name": statistic, "values": packed(values), "n": len(values)} | short({"low": ends[0], "high": ends[1]})


def column_values(capture: Capture, site: str, statistic: str) -> NDArray[np.float64]:
    """One statistic of every neuron at a site, NaN where it has none; `NotFoundError` where there is no such statistic."""
    widths = _widths(capture, site)
    if statistic == WRITE_NORM and site == "mlp.post":
        norms = read_neurons(capture.folder)
        kept = pc.is_in(norms["layer"], pa.array(list(widths), norms.schema.field("layer").type))
        return _numbers(norms.filter(kept)["write_norm"])
    if statistic == STANDS_OUT:
        maximum, mean, std = (_column(capture, site, name) for name in ("max", "mean", "std"))
        return np.divide(maximum - mean, std, out=np.full_like(std, np.nan), where=std > 0)
    if statistic.startswith(LABEL):
        label = statistic.removeprefix(LABEL)
        if label not in {f"{column}={value}" for column, value in capture.record.plan.labels}:
            raise NotFoundError(f"Capture {capture.record.name!r} has no label {label!r}.")
        shares = _read(capture, site, "positive_by_label")
        return _numbers(pc.map_lookup(shares, label, "first"))
    return _column(capture, site, statistic)


def _column(capture: Capture, site: str, name: str) -> NDArray[np.float64]:
    if name not in STATISTICS or name not in _names(capture):
        raise NotFoundError(f"Capture {capture.record.name!r} has no statistic {name!r}.")
    return _numbers(_read(capture, site, name))


def _names(capture: Capture) -> list[str]:
    """The columns of the capture's table of neurons, which is not read where it is in a file."""
    if capture.is_finished:
        return list(capture.table("neurons").names)
    return capture.neurons().column_names


def _read(capture: Capture, site: str, name: str) -> pa.ChunkedArray:
    """A column of the table of neurons, of one site."""
    if capture.is_finished:
        table = capture.table("neurons").read(["site", name])
    else:
        table = capture.neurons().to_arrow().select(["site", name])
    return table.filter(pc.equal(table["site"].cast(pa.string()), site))[name]


def _numbers(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _widths(capture: Capture, site: str) -> dict[int, int]:
    """Layer → number of neurons; `NotFoundError` where the capture has no such site."""
    if site not in capture.record.sites:
        raise NotFoundError(
            f"Capture {capture.record.name!r} has no site {site!r}. Its sites are: {', '.join(capture.record.sites)}."
        )
    return dict(capture.record.layers(site))
