"""Writing a site: the estimate, the files that are not there yet, and last the first page, without which there is no site."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from actstore.api.neurons import chosen_neurons
from actstore.engine.workers.scan import Scan, executor_of
from actstore.explorer.bundle_files import FILES, bundle_file
from actstore.explorer.site.job import SiteFile, SiteJob, first_graphs
from actstore.store.errors import InvalidInputError
from actstore.store.reader import Store
from actstore.store.storage.atomic import replacing
from actstore.store.version import version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actstore.api.neurons import NeuronInput

MADE: Final = "site.json"
"""What a site is made of, so that an interrupted one is not continued with something else."""
SAMPLES: Final = 3
"""Files of neurons that are made to estimate all."""
PLACE: Final = b"<!-- site -->\n"
LINK: Final = b'<script src="data/site.js"></script>\n'


@dataclass(frozen=True)
class SiteEstimate:
    """How large a site will be, and how long it takes in one process."""

    files: int
    neurons: int
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class SiteReport:
    """A site that is finished, or with `dry_run` would be made."""

    folder: str
    estimate: SiteEstimate
    written: int
    """Files that were written now; those that an interrupted run had written stay."""
    nbytes: int
    """Of all files."""


def write_site(
    store: Store | str | Path,
    folder: str | Path,
    neurons: NeuronInput | Iterable[NeuronInput] | None = None,
    *,
    layers: Sequence[int] | None = None,
    capture: str | None = None,
    site: str = "mlp.post",
    k: int = 10,
    resume: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    on_estimate: Callable[[SiteEstimate], None] = lambda estimate: None,
    on_file: Callable[[int, int], None] = lambda done, n: None,
) -> SiteReport:
    """As `actstore.site`."""
    if k < 1:
        raise InvalidInputError(f"`k` is a number of exemplars, 1 or more, found {k}.")
    opened = store if isinstance(store, Store) else Store(store)
    held = opened.capture(capture)
    selected = chosen_neurons(held, site, neurons, layers)
    if selected is None:
        selected = [(layer, index) for layer, width in held.record.layers(site).items() for index in range(width)]
    if not selected:
        raise InvalidInputError(f"Capture {held.record.name!r} has no neuron at {site} that a site could be made of.")
    for layer, index in selected:
        held.check_neuron(layer, index, site)
    target = Path(folder)
    name = held.record.name
    job = SiteJob(opened, target, name, site, k, first_graphs(opened, name, site))
    _check_target(target, job, selected, resume=resume)
    files = job.files(selected)
    estimate = _estimate(job, files, len(selected))
    on_estimate(estimate)
    if dry_run:
        return SiteReport(str(target), estimate, 0, 0)
    return _write(job, files, selected, estimate, workers, on_file)


def _write(
    job: SiteJob,
    files: Sequence[SiteFile],
    selected: Sequence[tuple[int, int]],
    estimate: SiteEstimate,
    workers: int | None,
    on_file: Callable[[int, int], None],
) -> SiteReport:
    """Make what is missing; `index.html` comes last."""
    job.target.mkdir(parents=True, exist_ok=True)
    _put(job.target / MADE, (json.dumps(_settings(job, selected), indent=1) + "\n").encode())
    missing = [item for item in files if not job.path(item.file).exists()]
    scan = Scan(executor_of(workers), again="Write the site again with `resume=True`")
    for done, _ in enumerate(scan(job.write, missing), 1):
        on_file(done, len(missing))
    _put(job.target / "data" / "site.js", f"actstoreSite={json.dumps(job.about())}\n".encode())
    for name in sorted(FILES, key=lambda name: name == "index.html"):
        data, _ = bundle_file(name)
        _put(job.target / name, data.replace(PLACE, LINK) if name == "index.html" else data)
    nbytes = sum(path.stat().st_size for path in job.target.rglob("*") if path.is_file())
    return SiteReport(str(job.target), estimate, len(missing), nbytes)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(data)


def _estimate(job: SiteJob, files: Sequence[SiteFile], n_neurons: int) -> SiteEstimate:
    """From some files of each kind of page, spread over all; the first, which is made to warm up, does not count in time."""
    kinds: dict[str, list[SiteFile]] = {}
    for item in files:
        kinds.setdefault(item.file.partition("/")[0], []).append(item)
    nbytes = seconds = 0.0
    for items in kinds.values():
        sample = items[:: max(1, len(items) // SAMPLES)][:SAMPLES]
        job.make(sample[0])
        began, size = time.perf_counter(), sum(len(job.make(item)) for item in sample)
        nbytes += size / len(sample) * len(items)
        seconds += (time.perf_counter() - began) / len(sample) * len(items)
    bundle = sum(len(bundle_file(name)[0]) for name in FILES)
    return SiteEstimate(len(files) + len(FILES) + 2, n_neurons, int(nbytes) + bundle, seconds)


def _settings(job: SiteJob, selected: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What decides the bytes of a site's files."""
    digest = hashlib.sha256(json.dumps(list(selected)).encode()).hexdigest()
    record = job.store.peek(job.capture).record
    return {
        "written_by": f"actstore {version()}",
        "store": job.store.root_record.id or job.store.folder.location,
        "capture": job.capture,
        "fingerprint": record.plan.fingerprint,
        "site": job.site,
        "exemplars": job.exemplars,
        "graphs": job.graphs,
        "neurons": digest,
    }


def _check_target(target: Path, job: SiteJob, selected: Sequence[tuple[int, int]], *, resume: bool) -> None:
    """`InvalidInputError` where the folder holds something else, or a site of other settings."""
    if target.exists() and not target.is_dir():
        raise InvalidInputError(f"{target} is a file. Name a folder for the site.")
    if not target.exists() or not any(target.iterdir()):
        return
    made = target / MADE
    if not made.is_file():
        raise InvalidInputError(f"{target} holds files that are no site of actstore. Name another folder.")
    try:
        found = json.loads(made.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        found = None
    if not resume:
        raise InvalidInputError(
            f"{target} holds a site already. Continue it with `resume=True`, or name another folder."
        )
    if found != _settings(job, selected):
        raise InvalidInputError(
            f"{target} holds a site of other neurons, settings or data, or of another version. Name another folder."
        )
