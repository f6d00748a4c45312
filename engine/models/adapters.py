"""Adapters: small weights trained next to a model (LoRA and the like), which change what it computes.

A capture stores activations together with write vectors. With an adapter that is not merged into the weights, activations would
be those of the adapted model and write vectors those of the base model, so every model with an adapter is refused. Neither
peft nor adapters need be installed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from transformers import PreTrainedConfig

CONFIG: Final = "adapter_config.json"
FILES: Final = (CONFIG, "adapter_model.safetensors", "adapter_model.bin", "pytorch_adapter.bin")
"""Files that peft and adapters write, next to a model's files or alone."""
_LIBRARIES: Final = frozenset({"peft", "adapters"})
_PARAMETER: Final = re.compile(
    r"(^|[._])(lora|adapters?|ia3|vera|oft|boft|hada|lokr|base_layer)([._]|$)", re.IGNORECASE
)


def refuse_adapter_files(name: str, config: PreTrainedConfig | None = None) -> None:
    """Raise `ModelError` where a model folder or Hub id holds an adapter, alone or next to the weights.

    `config` is the model's, where it has one: the Hub is then asked for the revision that it came from.
    """
    folder = Path(name)
    if folder.is_dir():
        file_path = next((folder / file for file in FILES if (folder / file).is_file()), None)
    else:
        file_path = _on_the_hub(name, getattr(config, "_commit_hash", None))
    if file_path is not None:
        raise ModelError(_refusal(name, file_path, has_model=config is not None))
    saved = getattr(config, "adapters", None)
    if isinstance(saved, dict) and saved.get("adapters"):
        raise ModelError(
            f"expected plain weights in {name!r}, and its config.json lists adapters ({', '.join(saved['adapters'])}) that"
            " would be left out: merge them into the weights (adapters: model.merge_adapter(name)) and save those alone"
        )


def _on_the_hub(name: str, revision: str | None) -> Path | None:
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        file_path = find_adapter_config_file(name, revision=revision)
    except OSError:  # no such model: reading its configuration explains that better
        return None
    return None if file_path is None else Path(file_path)


def _refusal(name: str, file_path: Path, *, has_model: bool) -> str:
    try:
        base = json.loads((file_path.parent / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    shown = repr(base) if isinstance(base, str) and base else "base"
    merge = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({shown}), {name!r})"
    what = "an adapter next to the weights" if has_model else "an adapter and no model"
    unmerged = ", which is not merged into them" if has_model else ""
    alone = f", or remove {file_path.name} to run the weights next to it alone" if has_model else ""
    return (
        f"expected a model in {name!r}, and it holds {what} ({file_path.name}){unmerged}: merge it into its base model with"
        f" peft, {merge}.merge_and_unload().save_pretrained(folder), and name that folder{alone}"
    )


def refuse_adapter_weights(name: str, unused: Iterable[str]) -> None:
    """Raise `ModelError` where weights of a checkpoint that its model does not use are an adapter's."""
    if keys := sorted(key for key in unused if _PARAMETER.search(key)):
        raise ModelError(
            f"expected plain weights in {name!r}, and {len(keys)} of them are an adapter's, {keys[0]} first, which would be"
            " left out: merge the adapter into the weights (peft: merge_and_unload()) and save those alone"
        )


def refuse_attached_adapters(model: nn.Module) -> None:
    """Raise `ModelError` where a model in memory runs adapters in addition to its own weights."""
    attached = next((path for path, module in model.named_modules() if _is_of_adapter(module)), None)
    if attached is None and not getattr(model, "_hf_peft_config_loaded", False):
        return
    where = f" at {attached}" if attached else ""
    raise ModelError(
        f"expected a model whose weights are all its own, and this {type(model).__name__} runs an adapter{where}: capture what"
        " peft's model.merge_and_unload() returns, or model.unload() for the base model alone"
    )


def _is_of_adapter(module: nn.Module) -> bool:
    libraries = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
    return bool(libraries & _LIBRARIES)
