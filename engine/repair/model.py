"""The model of a store, loaded when the first damage needs it, once for each number type."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Self

from actstore.engine.models.fingerprint import check_model, fingerprint_of, location_of
from actstore.engine.models.sources import ModelSource

if TYPE_CHECKING:
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.engine.models.vision.inputs import VisionProcessor
    from actstore.engine.repair.outcome import RepairOptions
    from actstore.store.files.records import ModelRecord
    from actstore.store.storage.folder import Folder


class RepairModel:
    """The model with which a store is repaired; use as a context manager."""

    def __init__(self, folder: Folder, record: ModelRecord, options: RepairOptions) -> None:
        """The model that `options` name, else that of `record`."""
        self._folder, self._record, self.options = folder, record, options
        self._loaded: dict[str, LoadedModel] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def _source(self) -> ModelSource:
        named = self.options.model
        source = ModelSource.of(location_of(self._record) if named is None else named)
        self._stack.enter_context(source.ready_to_run())
        return source

    def load(self, dtype: str, fingerprint: str) -> LoadedModel:
        """The model in a number type; `InvalidInputError` where its fingerprint is another, or it is not to be found."""
        source = self._source
        if dtype not in self._loaded:
            options = self.options
            self._loaded[dtype] = source.load(
                dtype=dtype, device=options.device, trust_remote_code=options.trust_remote_code
            )
        model = self._loaded[dtype]
        check_model(self._folder, fingerprint, fingerprint_of(model), model.spec.name)
        return model

    def processor(self) -> VisionProcessor:
        """The processor of a model that reads images."""
        from actstore.engine.models.vision.inputs import VisionProcessor  # only here: it loads the image library

        return VisionProcessor.load(self._source.name, trust_remote_code=self.options.trust_remote_code)

    def tokenizer(self, *, of_images: bool) -> TextTokenizer:
        """The model's tokenizer: that of its processor, in a store whose captures are of images."""
        if of_images:
            return self.processor().tokenizer
        return self._source.load_tokenizer(trust_remote_code=self.options.trust_remote_code)
