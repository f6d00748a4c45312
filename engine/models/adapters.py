"""Adapters: small weights trained beside a model (LoRA and its kin), which change what it computes without being its weights.

A capture keeps what neurons did together with what they write. With an adapter that is not merged into the weights, one of the
two would be the base model's and the other not, so every model that carries one is refused. Knows how peft and adapters save
and attach theirs; needs neither.
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
"""What peft and adapters write beside a model, or alone."""
_LIBRARIES: Final = frozenset({"peft", "adapters"})
_PARAMETER: Final = re.compile(
    r"(^|[._])(lora|adapters?|ia3|vera|oft|boft|hada|lokr|base_layer)([._]|$)", re.IGNORECASE
)


def refuse_adapter_files(name: str, config: PreTrainedConfig | None = None) -> None:
    """Raise `ModelError` where a model folder or Hub id holds an adapter, alone or beside the weights.

    `config` is the model's, where it has one: the Hub is then asked for the very revision that it came from.
    """
    folder = Path(name)
    if folder.is_dir():
        found = next((folder / file for file in FILES if (folder / file).is_file()), None)
    else:
        found = _on_the_hub(name, getattr(config, "_commit_hash", None))
    if found is not None:
        raise ModelError(_refusal(name, found, has_model=config is not None))
    saved = getattr(config, "adapters", None)
    if isinstance(saved, dict) and saved.get("adapters"):
        raise ModelError(
            f"expected plain weights in {name!r}, and its config.json lists adapters ({', '.join(saved['adapters'])}) that"
            " would be left out: merge them into the weights (adapters: model.merge_adapter(name)) and save those alone"
        )


def _on_the_hub(name: str, revision: str | None) -> Path | None:
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(name, revision=revision)
    except OSError:  # no such model, as reading its configuration says better
        return None
    return None if found is None else Path(found)


def _refusal(name: str, found: Path, *, has_model: bool) -> str:
    try:
        base = json.loads((found.parent / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    shown = repr(base) if isinstance(base, str) and base else "base"
    merge = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({shown}), {name!r})"
    what = "an adapter beside the weights" if has_model else "an adapter and no model"
    unmerged = ", which is not merged into them" if has_model else ""
    alone = f", or take {found.name} away to run the weights beside it alone" if has_model else ""
    return (
        f"expected a model in {name!r}, and it holds {what} ({found.name}){unmerged}: merge it into its base model with peft,"
        f" {merge}.merge_and_unload().save_pretrained(folder), and name that folder{alone}"
    )


def refuse_adapter_weights(name: str, unused: Iterable[str]) -> None:
    """Raise `ModelError` where a checkpoint's weights that its model has no place for are an adapter's."""
    if found := sorted(key for key in unused if _PARAMETER.search(key)):
        raise ModelError(
            f"expected plain weights in {name!r}, and {len(found)} of them are an adapter's, {found[0]} first, which would be"
            " left out: merge the adapter into the weights (peft: merge_and_unload()) and save those alone"
        )


def refuse_attached_adapters(model: nn.Module) -> None:
    """Raise `ModelError` where a model in memory runs adapters beside its own weights."""
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
