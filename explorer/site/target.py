"""The folder of a site: what the site there was made of, and what else is not written over."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from actstore.store.errors import InvalidInputError
from actstore.store.version import version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actstore.explorer.site.job import SiteJob

MADE: Final = "site.json"
"""What a site is made of, so that an interrupted one is not continued with something else."""


def made_of(job: SiteJob, selected: Sequence[tuple[int, int]]) -> dict[str, Any]:
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
        "parts": sorted(job.parts),
        "texts": len(job.texts),
        "compare": job.compare,
        "neurons": digest,
    }


def check_target(target: Path, made: dict[str, Any], *, resume: bool) -> None:
    """`InvalidInputError` where the folder holds something else, or a site of other settings."""
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / MADE).is_file():
        raise InvalidInputError(f"{target} holds files that are no site of actstore. Name another folder.")
    try:
        found = json.loads((target / MADE).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        found = None
    if not resume:
        raise InvalidInputError(
            f"{target} holds a site already. Continue it with `resume=True`, or name another folder."
        )
    if found != made:
        raise InvalidInputError(
            f"{target} holds a site of other neurons, settings or data, or of another version. Name another folder."
        )
