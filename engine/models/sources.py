"""Where a run's model comes from: a name or folder to be loaded, or a model in memory.

What both offer a run: a specification before anything is loaded, the loaded model, its tokenizer.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from actstore.engine.models.checkpoints import load_config
from actstore.engine.models.in_memory import in_evaluation, plain_model
from actstore.engine.models.load import LoadedModel, inspect_model, load_model
from actstore.engine.models.quantised import refuse_float64
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.engine.models.tokenizer.special_tokens import configs_of, configured_special_ids, special_ids_of_files
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.layers import ModelSpec

    TokenizerInput = str | Path | PreTrainedTokenizerBase | None


@dataclass(frozen=True)
class ModelSource:
    """A model as the caller passed it."""

    name: str
    """Its name in stores; of a model in memory where it was loaded from, else its class."""
    model: PreTrainedModel | None = None
    """None where it is to be loaded."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """That of a pipeline."""

    @classmethod
    def of(cls, given: ModelInput) -> ModelSource:
        """The source of a name, a path, or a model in memory; `InvalidInputError` and `ModelError` as `plain_model` raises."""
        if isinstance(given, str | os.PathLike):
            return cls(os.fspath(given))
        model = plain_model(given)
        name = model.name_or_path or type(model).__name__
        return cls(name, model, None if given is model else getattr(given, "tokenizer", None))

    def inspect(self, *, dtype: str = "auto", trust_remote_code: bool = False) -> ModelSpec:
        """The model's specification, read without its weights where it is to be loaded.

        Raises `ModelError` where it would run in a number type that no capture stores, with `dtype` as for `load`.
        """
        if self.model is not None:
            return self._loaded.spec
        spec = inspect_model(self.name, trust_remote_code=trust_remote_code)
        refuse_float64(self.name, spec.dtype if dtype == "auto" else dtype)
        return spec

    @cached_property
    def _loaded(self) -> LoadedModel:
        assert self.model is not None
        with in_evaluation(self.model):
            return LoadedModel(self.model, name=self.name)

    def load(self, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False) -> LoadedModel:
        """The model, loaded or from memory; in memory `dtype` and `device` must be its own or "auto"."""
        if self.model is None:
            loaded = load_model(self.name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            refuse_float64(self.name, loaded.spec.dtype)  # a configuration need not say what the weights are in
            return loaded
        own = str(self._loaded.dtype).removeprefix("torch.")
        if dtype not in ("auto", own):
            raise InvalidInputError(
                f"Expected the model in memory in {dtype}, found {own}. Convert it first, model.to(torch.{dtype}), or leave "
                "`dtype` out."
            )
        actual = self._loaded.device
        if device != "auto" and not _is_on(actual, device):
            raise InvalidInputError(
                f"Expected the model in memory on {device}, found it on {actual}. Move it first, model.to({device!r}), or "
                "leave `device` out."
            )
        return self._loaded

    def config(self, *, trust_remote_code: bool = False) -> PreTrainedConfig:
        """The model's configuration."""
        if self.model is not None:
            return self.model.config
        return load_config(self.name, trust_remote_code=trust_remote_code)

    def special_ids(self, *, trust_remote_code: bool = False) -> frozenset[int]:
        """The special tokens by the model's configurations alone, for a corpus of ids without a tokenizer."""
        if self.model is not None:
            return configured_special_ids(*configs_of(self.model))
        return special_ids_of_files(self.name, trust_remote_code=trust_remote_code)

    def ready_to_run(self) -> AbstractContextManager[None]:
        """While open, a model in memory is ready to run; afterwards it is restored."""
        return nullcontext() if self.model is None else in_evaluation(self.model)

    def load_tokenizer(self, given: TokenizerInput = None, *, trust_remote_code: bool = False) -> TextTokenizer:
        """The tokenizer `given` by name or in memory, else the model's own; `InvalidInputError` where there is none."""
        source = self.tokenizer if given is None else given
        if source is None:
            if self.model is not None and not self.model.name_or_path:
                raise InvalidInputError(
                    f"This {self.name} in memory has no name or path by which to find its tokenizer. Pass it as `tokenizer`, "
                    "by name or loaded, or capture a corpus of token ids."
                )
            source = self.name
        if isinstance(source, str | os.PathLike):
            return TextTokenizer.load(os.fspath(source), trust_remote_code=trust_remote_code)
        from transformers import PreTrainedTokenizerBase

        if not isinstance(source, PreTrainedTokenizerBase):
            raise InvalidInputError(
                f"Expected `tokenizer` to be a name, a folder or a loaded tokenizer of transformers, found "
                f"{type(source).__name__}."
            )
        tokenizer = TextTokenizer(source)
        tokenizer.check(source.name_or_path or type(source).__name__)
        return tokenizer


def _is_on(actual: torch.device, name: str) -> bool:
    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    return device.type == actual.type and device.index in (None, actual.index)
