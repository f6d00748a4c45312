"""How large a site will be and how long it takes, from some of its files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from actstore.explorer.bundle_files import FILES, bundle_file
from actstore.explorer.site.job import images_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.explorer.site.job import SiteFile, SiteJob
    from actstore.explorer.site.neighbours import Comparison

SAMPLES: Final = 3
"""Files of each kind of page that are made to estimate all."""
LIST_BYTES: Final = 520
"""Of a neuron's list of ten others in a file, compressed; measured."""


@dataclass(frozen=True)
class SiteEstimate:
    """How large a site will be, and how long it takes in one process."""

    files: int
    """Images not counted."""
    neurons: int
    nbytes: int
    seconds: float


def estimate_site(
    job: SiteJob, files: Sequence[SiteFile], comparisons: Sequence[Comparison], n_neurons: int
) -> SiteEstimate:
    """From some files of each kind, spread over all; the first, which is made to warm up, does not count in time."""
    kinds: dict[str, list[SiteFile]] = {}
    for item in files:
        kinds.setdefault(item.file.partition("/")[0], []).append(item)
    nbytes = float(sum(len(bundle_file(name)[0]) for name in FILES))
    seconds = 0.0
    for items in kinds.values():
        sample = items[:: max(1, len(items) // SAMPLES)][:SAMPLES]
        job.make(sample[0])
        began, size = time.perf_counter(), sum(len(job.make(item)) for item in sample)
        nbytes += size / len(sample) * len(items)
        seconds += (time.perf_counter() - began) / len(sample) * len(items)
    nbytes += n_neurons * LIST_BYTES * len(comparisons) + _image_bytes(job, kinds.get("maps", []))
    seconds += sum(one.seconds for one in comparisons)
    n_lists = len(kinds.get("neuron", ())) * len(comparisons)
    return SiteEstimate(len(files) + n_lists + len(FILES) + 2, n_neurons, int(nbytes), seconds)


def _image_bytes(job: SiteJob, maps: Sequence[SiteFile]) -> float:
    """Of all images: as many as neurons could show, or as the capture has."""
    if not maps:
        return 0.0
    shown = sorted(images_of(job.documents(maps[0])))
    if not shown:
        return 0.0
    sample = shown[:SAMPLES]
    mean = sum(len(job.image(document)) for document in sample) / len(sample)
    return mean * min(job.store.peek(job.capture).record.plan.n_documents, len(shown) * len(maps))
