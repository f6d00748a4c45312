"""The weights that a store has beside its activations: write vectors, final norm and unembedding.

A module of its own because it needs torch, which reading activations does not.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from actstore.store.errors import ActstoreError, FormatError, NotFoundError
from actstore.store.files.checksums import checksum_metadata, verify_checksums
from actstore.store.files.first_use import check_at_first_use
from actstore.store.layout import weights_key
from actstore.store.model.root import bound_checksums, read_root
from actstore.store.storage.listing import is_readable
from actstore.store.storage.pieces import MemorySource
from actstore.store.tokens import MADE_OF_ARRAYS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from actstore.store.storage.folder import Folder


_REQUIRED: Final = {
    "layer": ("write_vectors",),
    "unembedding": ("weight",),
    "final_norm": ("weight", "bias", "epsilon", "centres"),
}
"""The tensors of which a part of the weights must have one."""
POST_NORM: Final = ("post_gain", "post_centres")
"""The tensors of a layer that say what its write vectors are multiplied with before they are added to the residual stream."""


def write_weights(
    folder: Folder, layers: Iterable[tuple[int, dict[str, Tensor]]], others: dict[str, dict[str, Tensor]]
) -> tuple[str, ...]:
    """Write the weights, and return the names of the parts written.

    `layers`: per layer `write_vectors` [neuron, d_model], `bias` and those of `POST_NORM`; `others`: `unembedding` and
    `final_norm`, left out where empty.
    """
    written = []
    for part, tensors in itertools.chain(((f"layer-{layer}", tensors) for layer, tensors in layers), others.items()):
        if tensors:
            _write(folder, part, _detached(tensors))
            written.append(part)
    return tuple(written)


def _write(folder: Folder, part: str, tensors: dict[str, Tensor]) -> None:
    """Write a part, with its checksums."""
    metadata = checksum_metadata(part, save_safetensors(tensors))
    folder.write(weights_key(part), save_safetensors(tensors, metadata=metadata))


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_weights(folder: Folder, part: str) -> dict[str, Tensor]:
    """The tensors of one part of the weights; `NotFoundError` where the store was made without weights.

    `FormatError` where the part is damaged, or has been removed.
    """
    try:
        data = folder.read(weights_key(part))
    except NotFoundError:
        raise _missing(folder, part) from None
    with _reading(folder, part):
        verify_checksums(part, MemorySource(data), bound_to=bound_checksums(folder, part))
        tensors = load_safetensors(data)
        required = _REQUIRED.get(part.partition("-")[0])
        if required is not None and not tensors.keys() & {*required}:
            raise ValueError(f"it lacks the tensor {required[0]!r}")
        return tensors


@contextmanager
def _reading(folder: Folder, part: str) -> Iterator[None]:
    """Whatever libraries raise over damaged bytes becomes a `FormatError` that names the part."""
    try:
        yield
    except ActstoreError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(
            f"{folder}/{weights_key(part)} is damaged: {reason}.",
            "Restore it from a copy, or capture into a new store.",
        ) from None


def _verify(folder: Folder, part: str) -> None:
    verify_checksums(part, folder.source(weights_key(part)), bound_to=bound_checksums(folder, part))


@contextmanager
def _opened(folder: Folder, part: str) -> Iterator[Any]:
    """A part on a local disk, to read some rows of: it is verified whole when it is first used."""
    with _reading(folder, part):
        key = weights_key(part)
        check_at_first_use(folder, key, lambda: _verify(folder, part))
        path = folder.local_path(key)
        assert path is not None
        with safe_open(path, framework="pt") as file:
            yield file


def _missing(folder: Folder, part: str) -> FormatError | NotFoundError:
    if part in read_root(folder).weights:
        return FormatError(
            f"{folder}/{weights_key(part)} is missing, a part of the weights that the store was given.",
            "Restore it from a copy, or capture into a new store.",
        )
    model = read_root(folder)
    if part == "unembedding" and (model.weights or is_readable(folder, weights_key(f"layer-{model.layers[0].layer}"))):
        return NotFoundError(
            f"{folder} holds no unembedding, for {model.name} ({model.model_type}, {model.kind}) has no head that turns its "
            "residual stream into tokens: contributions and promoted tokens do not exist for it. Capture a model with a "
            "language-model head into another store."
        )
    if model.model_type == MADE_OF_ARRAYS:
        return NotFoundError(
            f"{folder} holds no weights ({part}): it was made of arrays alone. Make it again with `model`, the one that "
            "computed them."
        )
    needed = ", of a model with a language-model head" if model.kind in ("encoder", "vision") else ""
    return NotFoundError(
        f"{folder} holds no weights ({part}): it was captured without them. Capture into a new store with weights, which is "
        f"the default{needed}."
    )


def check_part(folder: Folder, part: str) -> None:
    """Raise as `read_weights` where the store does not have a part, without reading it."""
    if not is_readable(folder, weights_key(part)):
        raise _missing(folder, part)


def read_rows(folder: Folder, part: str, name: str, rows: Sequence[int]) -> Tensor:
    """Some rows of a matrix among the weights, in the given order; on a local disk nothing else is read, once it is verified.

    `NotFoundError` as `read_weights`; `IndexError` for a row out of range.
    """
    if folder.local_path() is None or not folder.exists(weights_key(part)):
        return read_weights(folder, part)[name][list(rows)]
    with _opened(folder, part) as file:
        matrix = file.get_slice(name)
        n_rows = matrix.get_shape()[0]
        if outside := [row for row in rows if not 0 <= row < n_rows]:
            raise IndexError(f"row {outside[0]} of {n_rows}")
        return torch.cat([matrix[row : row + 1] for row in rows]) if rows else matrix[0:0]


def read_post_norm(folder: Folder, layer: int) -> dict[str, Tensor]:
    """`post_gain` [d_model] and `post_centres` of a layer; empty where nothing stands between it and the residual stream."""
    part = f"layer-{layer}"
    if folder.local_path() is None or not folder.exists(weights_key(part)):
        tensors = read_weights(folder, part)
        return {name: tensors[name] for name in POST_NORM if name in tensors}
    with _opened(folder, part) as file:
        return {name: file.get_tensor(name) for name in POST_NORM if name in file.keys()}  # noqa: SIM118  (no mapping)


def count_rows(folder: Folder, part: str, name: str) -> int:
    """The number of rows of a matrix among the weights; `NotFoundError` as `read_weights`."""
    if folder.local_path() is None or not folder.exists(weights_key(part)):
        return len(read_weights(folder, part)[name])
    with _opened(folder, part) as file:
        return int(file.get_slice(name).get_shape()[0])


def after_post_norm(write_vectors: Tensor, post_norm: dict[str, Tensor]) -> Tensor:
    """Write vectors [neuron, d_model] as they reach the residual stream, but for a scale per position.

    `post_norm`: as `read_post_norm` gives it. In float32, if it says anything.
    """
    gain = post_norm.get("post_gain")
    if gain is None:
        return write_vectors
    exact = write_vectors.float()
    if post_norm["post_centres"]:
        exact = exact - exact.mean(dim=1, keepdim=True)
    return exact * gain.to(exact.device).float()


@dataclass(frozen=True)
class FinalNorm:
    """The norm between the residual stream and the unembedding: `gain ⊙ (h - mean(h) if it centres) / rms + bias`."""

    gain: Tensor | None
    """[d_model] float32; None stands for a gain of 1."""
    epsilon: float
    """Added to the mean square; 0 for stores of an earlier version, which do not record it."""
    centres: bool
    """Whether the mean is subtracted first, as in LayerNorm; False for stores of an earlier version, which do not record it."""
    is_there: bool = True

    def centred(self, write_vectors: Tensor) -> Tensor:
        """The write vectors [neuron, d_model] as they reach the unembedding: float32 without their mean if the norm centres."""
        if not self.centres:
            return write_vectors
        exact = write_vectors.float()
        return exact - exact.mean(dim=1, keepdim=True)


def final_norm_of(parts: dict[str, Tensor]) -> FinalNorm:
    """The final norm whose `weight`, `epsilon` and `centres` are among `parts`."""
    weight, epsilon, centres = (parts.get(name) for name in ("weight", "epsilon", "centres"))
    return FinalNorm(
        None if weight is None else weight.float(),
        0.0 if epsilon is None else float(epsilon),
        centres is not None and bool(centres),
        bool(parts),
    )


def read_final_norm(folder: Folder) -> FinalNorm:
    """The store's final norm; the identity where the model has none."""
    return final_norm_of(read_final_norm_parts(folder))


def read_final_norm_parts(folder: Folder) -> dict[str, Tensor]:
    """The tensors of the store's final norm, none where the model has none; `FormatError` where they have been removed."""
    try:
        # Where the root's record lists a norm that was removed, this is a FormatError: as none, every score would be wrong.
        return read_weights(folder, "final_norm")
    except NotFoundError:
        return {}
