"""Tensors by hook name: a dictionary, TransformerLens' ActivationCache, or a safetensors file of such names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from actstore.engine.building.formats.batch import Batch, ReadOptions
from actstore.engine.models.names import SITES
from actstore.store.errors import InvalidInputError
from actstore.store.sites import parse_hook

logger = logging.getLogger("actstore")

IDS: Final = ("tokens", "ids", "input_ids", "token_ids")
"""Names of the tensor of token ids in a file."""


def read(source: Any, options: ReadOptions) -> Iterator[Batch]:
    """The one batch of a cache; heads are put side by side into one axis."""
    if isinstance(source, str | Path):
        yield from (_of_file(path, options) for path in _files(Path(source)))
        return
    tensors = getattr(source, "cache_dict", source)
    if not isinstance(tensors, Mapping):
        raise InvalidInputError(
            f"Expected a dictionary of tensors by hook name, or an ActivationCache, found {type(source).__name__}."
        )
    yield Batch(_selected({str(name): tensor for name, tensor in tensors.items()}, options), options.ids)


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise InvalidInputError(f"{path} has no safetensors file. Check the path.")
    return files


def _of_file(path: Path, options: ReadOptions) -> Batch:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        wanted = [name for name in names if name in IDS or parse_hook(name) is not None]
        tensors = {name: file.get_tensor(name) for name in wanted}
    ids = next((tensors[name] for name in IDS if name in tensors), options.ids)
    return Batch(_selected({name: t for name, t in tensors.items() if name not in IDS}, options), ids, path.name)


def _selected(tensors: Mapping[str, Any], options: ReadOptions) -> dict[tuple[str, int], Any]:
    """The tensors that are wanted, by site and layer, as [sequence, token, neuron] or [token, neuron]."""
    chosen: dict[tuple[str, int], Any] = {}
    left_out: list[str] = []
    for name, tensor in tensors.items():
        place = parse_hook(name)
        named = any(name == hook or name.endswith(f".{hook}") for hook in options.hooks)
        if place is None or not (named if options.hooks else place[0] in SITES):
            left_out.append(name)
        elif (options.layers is None or place[1] in options.layers) and place not in chosen:
            # TransformerBridge has some places under two names, of the same values.
            chosen[place] = _flat(tensor, name)
    if not chosen:
        raise InvalidInputError(
            f"None of {len(tensors)} tensors is of a site that was asked for, such as blocks.3.mlp.hook_post: found "
            f"{', '.join(list(tensors)[:4]) or 'none'}. Name others in `hooks`."
        )
    if left_out and not options.hooks:
        logger.warning(
            "Left out, as no site of a model has their values: %d tensors, %s first.", len(left_out), left_out[0]
        )
    return chosen


def _flat(tensor: Any, name: str) -> Any:
    if tensor.ndim == 4:  # [sequence, token, head, d_head]
        if "pattern" in name or "attn_scores" in name:
            raise InvalidInputError(f"{name} has a row per pair of tokens, not per token. Leave it out of `hooks`.")
        return tensor.reshape(*tensor.shape[:2], -1)
    return tensor
