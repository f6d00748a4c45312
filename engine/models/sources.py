"""Where a run's model comes from: a name or folder that is loaded, or a model that is in memory already.

What the two have in common for a run: a specification before anything is loaded, the loaded model, its tokenizer. Knows nothing
about what is run.
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
from actstore.engine.models.tokenizer.special_tokens import configured_special_ids, special_ids_of_files
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.layers import ModelSpec

    TokenizerInput = str | Path | PreTrainedTokenizerBase | None


@dataclass(frozen=True)
class ModelSource:
    """A model as it was given."""

    name: str
    """As stores know it; of a model in memory where it was loaded from, else its class."""
    model: PreTrainedModel | None = None
    """None where it is to be loaded."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """The one of a pipeline."""

    @classmethod
    def of(cls, given: ModelInput) -> ModelSource:
        """What `plain_model` finds in it, or the name or path that it is; `InvalidInputError` and `ModelError` as there."""
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
        """The model, loaded, or as it is in memory: there `dtype` and `device` are to be its own or "auto"."""
        if self.model is None:
            loaded = load_model(self.name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            refuse_float64(self.name, loaded.spec.dtype)  # a configuration need not say what the weights are in
            return loaded
        own = str(self._loaded.dtype).removeprefix("torch.")
        if dtype not in ("auto", own):
            raise InvalidInputError(
                f"Expected the model in memory in {dtype}, found {own}. Convert it first, model.to(torch.{dtype}), or leave "
                "dtype out."
            )
        place = self._loaded.device
        if device != "auto" and not _is_on(place, device):
            raise InvalidInputError(
                f"Expected the model in memory on {device}, found it on {place}. Move it first, model.to({device!r}), or "
                "leave device out."
            )
        return self._loaded

    def config(self, *, trust_remote_code: bool = False) -> PreTrainedConfig:
        """The model's configuration."""
        if self.model is not None:
            return self.model.config
        return load_config(self.name, trust_remote_code=trust_remote_code)

    def special_ids(self, *, trust_remote_code: bool = False) -> frozenset[int]:
        """The tokens that stand for no text by the model's configurations alone, for ids of which there is no tokenizer."""
        if self.model is not None:
            return configured_special_ids(self.model.config, self.model.generation_config)
        return special_ids_of_files(self.name, trust_remote_code=trust_remote_code)

    def ready_to_run(self) -> AbstractContextManager[None]:
        """While open, a model in memory is fit to run; afterwards it is as it was."""
        return nullcontext() if self.model is None else in_evaluation(self.model)

    def load_tokenizer(self, given: TokenizerInput = None, *, trust_remote_code: bool = False) -> TextTokenizer:
        """The tokenizer `given` by name or in memory, else the model's own; `InvalidInputError` where there is none."""
        chosen = self.tokenizer if given is None else given
        if chosen is None:
            if self.model is not None and not self.model.name_or_path:
                raise InvalidInputError(
                    f"This {self.name} in memory has no name or path by which to find its tokenizer. Give it, by name or as a "
                    "loaded tokenizer, with RunOptions(tokenizer=…), or capture a corpus of token ids."
                )
            chosen = self.name
        if isinstance(chosen, str | os.PathLike):
            return TextTokenizer.load(os.fspath(chosen), trust_remote_code=trust_remote_code)
        from transformers import PreTrainedTokenizerBase

        if not isinstance(chosen, PreTrainedTokenizerBase):
            raise InvalidInputError(
                f"Expected tokenizer to be a name, a folder or a loaded tokenizer of transformers, found "
                f"{type(chosen).__name__}."
            )
        tokenizer = TextTokenizer(chosen)
        tokenizer.check(chosen.name_or_path or type(chosen).__name__)
        return tokenizer


def _is_on(place: torch.device, wanted: str) -> bool:
    try:
        device = torch.device(wanted)
    except RuntimeError:
        return False
    return device.type == place.type and device.index in (None, place.index)
