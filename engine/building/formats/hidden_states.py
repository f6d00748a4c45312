"""One safetensors file per sample, with `hidden_states` and `token_ids`: as vLLM saves and speculators reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open

from actstore.engine.building.formats.batch import Batch, ReadOptions
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

STATES: Final = "hidden_states"
"""[token, layer, d_model]."""
IDS: Final = "token_ids"
"""[token]."""


def read(source: Any, options: ReadOptions) -> Iterator[Batch]:
    """A batch per file, in the order of the numbers in their names.

    The numbers in `options.layers` are those of vLLM's `eagle_aux_hidden_state_layer_ids`: the stream before the layer of that
    number, so number n is `resid.post` of layer n − 1, and 0 is `resid.pre` of layer 0. vLLM saves them in ascending order.
    """
    files = sample_files(Path(source))
    if not files:
        raise InvalidInputError(f"{source} has no safetensors file. Check the path.")
    if options.layers is None:
        raise InvalidInputError(
            "Hidden states per sample do not say of which layers they are. Pass `layers`, the numbers of "
            "`eagle_aux_hidden_state_layer_ids` with which they were made."
        )
    for path in files:
        yield _sample(path, tuple(sorted(options.layers)))


def sample_files(path: Path) -> list[Path]:
    """The files of a folder in the order of the last number in their names; a file alone."""
    files = path.rglob("*.safetensors") if path.is_dir() else [path]

    def number(file: Path) -> tuple[int, str]:
        digits = re.findall(r"\d+", file.stem)
        return (int(digits[-1]) if digits else -1), str(file)

    return sorted(files, key=number)


def holds_samples(path: Path) -> bool:
    """Whether a file is one of a sample."""
    try:
        with safe_open(path, framework="np") as file:
            return {STATES, IDS} <= set(file.keys())
    except (SafetensorError, OSError):
        return False


def _sample(path: Path, layers: tuple[int, ...]) -> Batch:
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if not {STATES, IDS} <= names:
                raise InvalidInputError(
                    f"{path} lacks {STATES} or {IDS}: it has {', '.join(sorted(names)) or 'nothing'}."
                )
            states, ids = file.get_tensor(STATES), file.get_tensor(IDS)
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(f"{path} cannot be read as safetensors: {error}. Check the file.") from None
    if states.ndim != 3 or states.shape[1] != len(layers) or len(ids) != len(states):
        raise InvalidInputError(
            f"{path} has {STATES} of the shape {tuple(states.shape)} for {len(ids)} tokens and {len(layers)} layers, expected "
            f"({len(ids)}, {len(layers)}, width). Check `layers`."
        )
    places = [("resid.post", n - 1) if n else ("resid.pre", 0) for n in layers]
    return Batch({place: states[:, i] for i, place in enumerate(places)}, ids, path.name)
