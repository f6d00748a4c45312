"""Writing a site: the estimate, the files that are not there yet, and last the first page, without which there is no site."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from actstore.api.neurons import chosen_neurons
from actstore.engine.workers.scan import Scan, executor_of
from actstore.explorer.bundle_files import FILES, bundle_file
from actstore.explorer.pages.documents import documents_with_peaks
from actstore.explorer.site.estimate import SiteEstimate, estimate_site
from actstore.explorer.site.files import file_of, script, sharded
from actstore.explorer.site.job import SiteFile, SiteJob, put
from actstore.explorer.site.neighbours import Comparison, compare_activations, compare_graphs, shown_graphs
from actstore.explorer.site.parts import PARTS
from actstore.explorer.site.target import MADE, check_target, made_of
from actstore.store.errors import InvalidInputError
from actstore.store.exports.outputs import output_folder
from actstore.store.neurons import neuron_name
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from actstore.api.neurons import NeuronInput
    from actstore.engine.workers.executor import Executor

PLACE: Final = b"<!-- site -->\n"
LINK: Final = b'<script src="data/site.js"></script>\n'


@dataclass(frozen=True)
class SiteReport:
    """A site that is finished, or with `dry_run` would be made."""

    folder: str
    estimate: SiteEstimate
    written: int
    """Files that were written now; those that an interrupted run had written stay."""
    nbytes: int
    """Of all files."""


@dataclass(frozen=True)
class SiteWork:
    """All that is to be written."""

    job: SiteJob
    neurons: Sequence[tuple[int, int]]
    files: Sequence[SiteFile]
    comparisons: Sequence[Comparison]
    """The lists that come of comparing all neurons."""
    reasons: dict[str, str]
    """Page → why there is none, of those that are not as on a server."""


def write_site(
    store: Store | str | Path,
    folder: str | Path,
    neurons: NeuronInput | Iterable[NeuronInput] | None = None,
    *,
    layers: Sequence[int] | None = None,
    capture: str | None = None,
    site: str = "mlp.post",
    k: int = 10,
    texts: int = 100,
    without: Sequence[str] = (),
    compare: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    on_estimate: Callable[[SiteEstimate], None] = lambda estimate: None,
    on_file: Callable[[int, int], None] = lambda done, n: None,
) -> SiteReport:
    """As `actstore.site`."""
    if k < 1:
        raise InvalidInputError(f"`k` is a number of exemplars, 1 or more, found {k}.")
    if texts < 0:
        raise InvalidInputError(f"`texts` is a number of documents, 0 or more, found {texts}.")
    if unknown := sorted({*without} - PARTS.keys()):
        raise InvalidInputError(f"`without` names parts of a site: {', '.join(PARTS)}; found {', '.join(unknown)}.")
    target = output_folder(folder)
    opened = store if isinstance(store, Store) else Store(store)
    held = opened.capture(capture)
    selected = chosen_neurons(held, site, neurons, layers)
    are_all = selected is None
    if selected is None:
        selected = [(layer, index) for layer, width in held.record.layers(site).items() for index in range(width)]
    if not selected:
        raise InvalidInputError(f"Capture {held.record.name!r} has no neuron at {site} that a site could be made of.")
    for layer, index in selected:
        held.check_neuron(layer, index, site)
    work = _plan(opened, target, held.record.name, site, selected, are_all, k, texts, frozenset(without), compare)
    made = made_of(work.job, selected)
    check_target(work.job.target, made, resume=resume)
    estimate = estimate_site(work.job, work.files, work.comparisons, len(selected))
    on_estimate(estimate)
    if dry_run:
        return SiteReport(str(work.job.target), estimate, 0, 0)
    return _write(work, made, estimate, executor_of(workers), on_file)


def _plan(
    store: Store,
    target: Path,
    capture: str,
    site: str,
    selected: Sequence[tuple[int, int]],
    are_all: bool,
    k: int,
    texts: int,
    left_out: frozenset[str],
    compare: str | None,
) -> SiteWork:
    """What the site has, and why it has no more."""
    record = store.capture(capture).record
    graphs = shown_graphs(store, capture, site)
    reasons = {part: f"These files were made without {about}." for part, about in PARTS.items() if part in left_out}
    parts = {"others"} if record.encoding.keeps_values else set()
    parts |= {"maps"} if record.of_images and record.encoding.keeps_values else set()
    comparisons = []
    compared: dict[str, Callable[[], Comparison | str]] = {
        "similar": lambda: compare_graphs(store, graphs), "coactive": lambda: compare_activations(store, capture, site),
    }  # fmt: skip
    for part, compare_all in compared.items():
        if part in left_out or (part == "similar" and graphs is None):
            continue
        found = compare_all()
        if isinstance(found, str):
            reasons[part] = found
        else:
            comparisons.append(found)
            parts.add(part)
    names = None if are_all else frozenset(neuron_name(*neuron) for neuron in selected)
    documents = tuple(documents_with_peaks(store, capture, site, texts)) if texts else ()
    has_change = compare is not None and _same_tokens(store, capture, compare, site)
    if compare is not None and not has_change:
        reasons["change"] = (
            f"Captures {capture} and {compare} do not keep activations of the same tokens: there are no change scores."
        )
    job = SiteJob(
        store, target, capture, site, k, graphs, frozenset(parts - left_out), documents, names, compare, has_change
    )
    return SiteWork(job, selected, job.files(selected), comparisons, reasons)


def _same_tokens(store: Store, capture: str, other: str, site: str) -> bool:
    """Whether two captures can be compared token by token; `InvalidInputError` where not even neuron by neuron."""
    from actstore.engine.change.change import check_same_plan

    opened = [store.capture(name) for name in (capture, other)]
    records = [one.record for one in opened]
    layers = [dict(record.layers(site)) if site in record.sites else {} for record in records]
    if capture == other or layers[0] != layers[1]:
        raise InvalidInputError(
            f"`compare` names another capture with the same layers at {site}, found {other!r}. Leave it out, or name another."
        )
    if not all(record.encoding.keeps_values for record in records):
        return False
    try:
        check_same_plan(*opened)
    except InvalidInputError:
        return False
    return True


def _write(
    work: SiteWork,
    made: dict[str, Any],
    estimate: SiteEstimate,
    executor: Executor,
    on_file: Callable[[int, int], None],
) -> SiteReport:
    """Make what is missing; `index.html` comes last."""
    job = work.job
    put(job.target / MADE, (json.dumps(made, indent=1) + "\n").encode())
    missing = [item for item in work.files if not job.path(item.file).exists()]
    lists = {one.page: _missing_lists(work, one) for one in work.comparisons}
    n, done = len(missing) + sum(map(len, lists.values())), 0
    scan = Scan(executor, again="Write the site again with `resume=True`")
    for _ in scan(job.write, missing):
        on_file(done := done + 1, n)
    for one in work.comparisons:
        for _ in _write_lists(job, one, lists[one.page], executor):
            on_file(done := done + 1, n)
    put(job.target / "data" / "site.js", f"actstoreSite={json.dumps(job.about(work.reasons))}\n".encode())
    for name in sorted(FILES, key=lambda name: name == "index.html"):
        data, _ = bundle_file(name)
        put(job.target / name, data.replace(PLACE, LINK) if name == "index.html" else data)
    nbytes = sum(path.stat().st_size for path in job.target.rglob("*") if path.is_file())
    return SiteReport(str(job.target), estimate, n, nbytes)


def _missing_lists(work: SiteWork, comparison: Comparison) -> dict[str, dict[str | None, None]]:
    """File → names of its neurons, of the files of a comparison that are not there."""
    parts = ((comparison.page, *comparison.place, neuron_name(*neuron)) for neuron in work.neurons)
    files = sharded((file_of(one), None) for one in parts)
    return {file: names for file, names in files.items() if not work.job.path(file).exists()}


def _write_lists(
    job: SiteJob, comparison: Comparison, missing: dict[str, dict[str | None, None]], executor: Executor
) -> Iterator[str]:
    """Compare all neurons, and write what of it is missing."""
    if not missing:
        return
    file_of_name = {name: file for file, names in missing.items() for name in names}
    found: dict[str, dict[str | None, Any]] = {file: {} for file in missing}
    for name, document in comparison.documents(executor):
        if name in file_of_name:
            found[file_of_name[name]][name] = document
    for file, documents in found.items():
        put(job.path(file), script(file, documents))
        yield file
