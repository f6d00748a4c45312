"""Text drawn from a model as a capture of its store: further evidence for graphs."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.capture.run import RunOptions
from actstore.engine.graphs.probes.run import ProbeOutput, ProbeRequest, capture_probes
from actstore.engine.graphs.probes.sampling import Sampled, Sampler, SampleSettings, prompts_of, take_tokens
from actstore.engine.inputs.documents import Document
from actstore.engine.models.fingerprint import fingerprint_of
from actstore.engine.models.tokenizer.special_tokens import configs_of, configured_special_ids
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.reader import Capture

SAMPLED: Final = "probes-sampled"
"""Name of a capture of sampled text, by default."""


def sample_probes(
    model: str,
    store: str | Path | Folder,
    *,
    name: str = SAMPLED,
    capture: str | None = None,
    settings: SampleSettings | None = None,
    output: ProbeOutput | None = None,
    options: RunOptions | None = None,
    progress: CaptureProgress | None = None,
) -> Capture:
    """The capture `name`, in the store, of windows that are drawn from `model`.

    capture: its windows give the first tokens of those that are drawn. An interrupted run is continued with `options.resume`.
    Windows drawn before the plan was complete are stored beside the capture until it is, and used by a run with the same
    settings. Errors: `InvalidInputError`, `ModelError`, `NotFoundError` before anything is written; `CaptureError` where the
    run was interrupted.

    >>> sample_probes("gpt2", "gpt2.actstore", settings=SampleSettings(n_tokens=600_000))
    """
    settings, progress = settings or SampleSettings(), progress or CaptureProgress()
    options = options or RunOptions()
    corpus = Store(store).capture(capture)
    prompts = prompts_of(corpus, settings.prompt)
    identity = {
        "kind": "sampled", "capture": corpus.record.name, "plan": corpus.record.plan.fingerprint,
        **dataclasses.asdict(settings),
    }  # fmt: skip
    folder = Folder(store, read_only=False, sync=options.sync, storage_options=options.storage_options)

    def windows(loaded: LoadedModel, tokenizer: TextTokenizer | None) -> Iterable[Document]:
        ends = (
            tokenizer.special_ids
            if tokenizer
            else configured_special_ids(*configs_of(loaded.model), roles=("eos_token_id",))
        )
        sampler = Sampler(loaded, prompts, ends, settings)
        saved = SavedBatches(
            folder, name, identity | {"batch_size": sampler.batch_size, "model": fingerprint_of(loaded)}
        )
        n_tokens = 0
        for number, ids in enumerate(take_tokens(sampler.batches(saved.load, saved.save), settings.n_tokens)):
            n_tokens += len(ids)
            progress.planned(number + 1, n_tokens)
            yield Document(source=f"sample {number}", ids=ids.astype(np.int64))

    finished = capture_probes(
        model,
        folder,
        ProbeRequest(name, identity, settings.window, windows, output or ProbeOutput()),
        options,
        progress,
    )
    SavedBatches.remove(folder, name)
    return finished


class SavedBatches:
    """Batches of sampled windows on disk, until the plan that holds them is complete."""

    def __init__(self, folder: Folder, name: str, identity: dict[str, Any]) -> None:
        """Those of a capture; batches that were drawn with another `identity` are deleted."""
        self._folder, self._key = folder, f"probes/{name}"
        settings = f"{self._key}/settings.json"
        if not folder.exists(settings) or folder.read_json(settings) != identity:
            self.remove(folder, name)
            folder.write_json(settings, identity)

    def load(self, number: int) -> Sampled | None:
        """A saved batch; None where there is none, or its file is incomplete."""
        if not self._folder.exists(key := f"{self._key}/{number}.npz"):
            return None
        try:
            with np.load(io.BytesIO(self._folder.read(key)), allow_pickle=False) as arrays:
                return Sampled(arrays["ids"], arrays["lengths"])
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, number: int, batch: Sampled) -> None:
        """Save a batch."""
        buffer = io.BytesIO()
        np.savez(buffer, ids=batch.ids, lengths=batch.lengths)
        self._folder.write(f"{self._key}/{number}.npz", buffer.getvalue())

    @staticmethod
    def remove(folder: Folder, name: str) -> None:
        """Delete the batches of a capture, first the settings that say of what they are."""
        folder.delete(f"probes/{name}/settings.json")
        folder.delete(f"probes/{name}")
