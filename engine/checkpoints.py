"""Checkpoints: reads configurations and weights by folder or Hub id, and says in one sentence what is wrong where it cannot.

Knows how the transformers library names its failures; nothing about what a model is made of.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from actstore.store.errors import ModelError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_config(name: str, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration of a model folder or Hub id.

    Raises `ModelError` where there is no such folder or id, the Hub cannot be reached, or transformers does not know the type.
    """
    if not Path(name).is_dir() and not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"expected a model folder or a Hub id, and there is no folder {name!r}: give a folder that holds config.json,"
            " or an id such as 'openai-community/gpt2'"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_explain(name, error)) from error
    return config


def _explain(name: str, error: Exception) -> str:
    """What went wrong with a name, as one sentence."""
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 10:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    text = " ".join(causes)
    if "trust_remote_code" in text:
        return f"the model {name!r} brings its own code: read that code, then pass trust_remote_code=True to run it"
    if Path(name).is_dir():
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
    """The model with its weights on a device. Raises `ModelError` where they cannot be read or some are missing."""
    try:
        loaded: Any = kind.from_pretrained(
            name,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"the weights of {name!r} cannot be loaded as {kind.__name__} from safetensors: {first_line(error)}"
        ) from error
    model: PreTrainedModel
    model, report = loaded
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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
