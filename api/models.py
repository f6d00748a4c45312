"""The model that a method runs: the store's own, or one that is given by name, by path or loaded."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actstore.store.calls import checks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from actstore.engine.edit.readings import Reader
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.multimodal.replay import Replay
    from actstore.store.capture.reader import Capture
    from actstore.store.model.root import Root


@checks
@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded. Of a loaded model nothing is changed."""

    dtype: str = "auto"
    """`float32`, `bfloat16`, …; `auto` is the checkpoint's own."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, …; `auto` takes a GPU where there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""


@contextmanager
def open_model(
    root: Root, model: ModelInput | None, options: ModelOptions | None = None, *, dtype: str = "auto"
) -> Iterator[tuple[LoadedModel, str]]:
    """The model, ready to run, and the name or path that it was given by; the store's own where `model` is None.

    `dtype` stands in for an option that is `auto`. A model in memory is afterwards as it was.
    """
    from actstore.engine.models.fingerprint import location_of
    from actstore.engine.models.sources import ModelSource

    options = options or ModelOptions()
    source = ModelSource.of(location_of(root.model) if model is None else model)
    wanted = options.dtype
    if wanted == "auto" and source.model is None:
        wanted = dtype
    with source.ready_to_run():
        loaded = source.load(dtype=wanted, device=options.device, trust_remote_code=options.trust_remote_code)
        yield loaded, source.name


@contextmanager
def open_reader(capture: Capture, model: ModelInput | None, options: ModelOptions | None) -> Iterator[Reader]:
    """A capture's model with its tokenizer or processor."""
    from actstore.engine.edit.readings import Reader

    options = options or ModelOptions()
    with open_model(capture.store, model, options, dtype=capture.record.dtype) as (loaded, name):
        yield Reader.load(loaded, name, trust_remote_code=options.trust_remote_code)


@contextmanager
def open_replay(
    capture: Capture,
    model: ModelInput | None = None,
    options: ModelOptions | None = None,
    *,
    loading: AbstractContextManager[None] | None = None,
) -> Iterator[Replay]:
    """The model of a capture of images, ready to read them again; that of the store where `model` is None.

    `loading` is entered while the model is loaded.
    """
    from actstore.engine.models.vision.inputs import VisionProcessor
    from actstore.engine.multimodal.replay import Replay

    trusted = options is not None and options.trust_remote_code
    with ExitStack() as opened:
        with loading or nullcontext():
            loaded, name = opened.enter_context(open_model(capture.store, model, options, dtype=capture.record.dtype))
        yield Replay(loaded, VisionProcessor.load(name, trust_remote_code=trusted), capture)
