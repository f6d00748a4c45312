"""Checkpoints: configurations and weights by folder or Hub id; where they cannot be read, one sentence says why.

The module that interprets the errors of the transformers library.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from actstore.engine.models.adapters import refuse_adapter_files, refuse_adapter_weights
from actstore.engine.models.quantised import refuse_quantised_checkpoint
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("actstore")

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_SAFETENSORS: Final = ("model.safetensors", "model.safetensors.index.json")
_PICKLES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
JOURNAL: Final = ".actstore-edit.json"
"""The file in a model's folder that stands there from the first to the last file that `edit apply --in-place` replaces."""


def load_config(name: str, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a model folder or Hub id.

    Raises `ModelError` where there is no such folder or id, the Hub cannot be reached, transformers does not know the type, it
    holds an adapter, or the weights are quantised: the small files alone show each of these.
    """
    if not os.path.isdir(name) and not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"expected a model folder or a Hub id, and there is no folder {name[:200]!r}: give a folder that holds config.json,"
            " or an id such as 'openai-community/gpt2'"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Warning:  # raised only where the user turned warnings into errors
        raise
    except Exception as error:  # a model's own code may raise anything
        if os.path.isdir(name) or "does not appear to have a file named" in str(error):
            refuse_adapter_files(name)
        raise ModelError(_explain(name, error, trusted=trust_remote_code)) from error
    refuse_adapter_files(name, config)
    refuse_quantised_checkpoint(name, config)
    return config


def _explain(name: str, error: Exception, *, trusted: bool) -> str:
    """Why a name cannot be read, as one sentence."""
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 10:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    text = " ".join(causes)
    if "trust_remote_code" in text and not trusted:
        return f"the model {name!r} brings its own code: read that code, then pass `trust_remote_code=True` to run it"
    if os.path.isdir(name):
        if not (Path(name) / "config.json").is_file():
            return f"expected a model in the folder {name!r}, and it holds no config.json: give the one save_pretrained wrote"
        return f"the config.json in {name!r} cannot be read by transformers {transformers.__version__}: {first_line(error)}"
    if re.search(r"RepositoryNotFound|40[134]|not a valid model identifier", text):
        return (
            f"expected a model folder or a Hub id, and found neither at {name!r}: there is no such folder,"
            " and the Hub has no such model open to you"
        )
    return (
        f"there is no folder {name!r}, and the Hugging Face Hub cannot be reached to look for a model of that name:"
        " check the network, or download the model first"
    )


def load_weights(
    kind: type[PreTrainedModel], name: str, *, dtype: str, device: torch.device, trust_remote_code: bool
) -> PreTrainedModel:
    """The model with its weights on a device. Raises `ModelError` where they cannot be read or some are missing.

    They are read from safetensors. Where there are none, from pytorch_model.bin by torch's restricted unpickler, which makes
    tensors and runs no code; a sentence in the log says so.
    """
    refuse_interrupted_edit(name)
    pickled = _pickled_weights(name)
    try:
        with _without_conversion():
            loaded: Any = kind.from_pretrained(
                name,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                use_safetensors=pickled is None,
                weights_only=True,
            )
    except Warning:  # raised only where the user turned warnings into errors
        raise
    except Exception as error:  # damaged pickles and a model's own code may raise anything
        raise ModelError(_explain_weights(kind, name, pickled, error)) from error
    if pickled is not None:
        logger.warning(
            "The weights of %s were read from %s by torch's restricted unpickler, which runs no code: there are none as "
            "safetensors.",
            name,
            pickled,
        )
    model: PreTrainedModel
    model, report = loaded
    refuse_adapter_weights(name, report["unexpected_keys"])
    in_blocks = sorted(key for key in report["missing_keys"] if re.search(r"\.\d+\.", key))
    if in_blocks:
        raise ModelError(
            f"expected {name!r} to hold every weight of {kind.__name__}, and {len(in_blocks)} are missing, {in_blocks[0]} first"
            ": the checkpoint is incomplete or belongs to another architecture"
        )
    if dtype == "auto" and device.type == "cpu" and model.dtype == torch.float16:
        model = model.float()  # type: ignore[no-untyped-call]
    model.to(device)  # type: ignore[arg-type]
    return model


def refuse_interrupted_edit(name: str) -> None:
    """Raise `ModelError` where a change of the folder's own files was interrupted half-way; a Hub id may name the folder."""
    folder = Path(name)
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        try:
            config = cached_file(name, "config.json", local_files_only=True)
        except (OSError, ValueError):
            return
        if config is None:
            return
        folder = Path(config).parent
    if (folder / JOURNAL).exists():
        raise ModelError(
            f"The files of {folder} are half changed: an edit was being written into them, in place, when the process was "
            "stopped. Run that `store.edits.apply(…)` or `store.edits.revert(…)` again, which finishes it."
        )


def _pickled_weights(name: str) -> str | None:
    """The pickled file that holds the weights, or the index of several; None where there are safetensors, or neither."""
    if any(_has_file(name, file) for file in _SAFETENSORS):
        return None
    return next((file for file in _PICKLES if _has_file(name, file)), None)


def _has_file(name: str, file: str) -> bool:
    from transformers.utils.hub import has_file

    try:
        return bool(has_file(name, file))
    except Exception:  # the Hub cannot be reached: loading explains that better
        return bool(has_file(name, file, local_files_only=True))


@contextmanager
def _without_conversion() -> Iterator[None]:
    """Keep transformers from asking the Hub for a converted copy: that is in a pull request, not in the model."""
    before = os.environ.get(_CONVERSION)
    os.environ[_CONVERSION] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONVERSION]
        else:
            os.environ[_CONVERSION] = before


_CONVERSION: Final = "DISABLE_SAFETENSORS_CONVERSION"


def _explain_weights(kind: type[PreTrainedModel], name: str, pickled: str | None, error: Exception) -> str:
    """Why weights cannot be loaded, as one sentence."""
    if pickled is not None and isinstance(error, pickle.UnpicklingError):
        return (
            f"expected tensors alone in {pickled} of {name!r}, and it holds objects that would run code, which is refused:"
            " get the weights as safetensors from where the model was published"
        )
    source = "safetensors" if pickled is None else pickled
    return f"the weights of {name!r} cannot be loaded as {kind.__name__} from {source}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
