"""Arrays as a builder takes them: rows of floats in NumPy, under a site and a layer; all else is refused in a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.store.errors import InvalidInputError
from actstore.store.sites import parse_hook

if TYPE_CHECKING:
    from numpy.typing import NDArray

Place = tuple[str, int]
"""A site and a layer."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_RESERVED: Final = "attribution."
"""What begins the names of sites that hold attributions to answers, which come with prompts."""


@dataclass(frozen=True)
class Rows:
    """The values of one site in one layer: what `dtype` says, bfloat16 as its bits in uint16."""

    values: NDArray[Any]
    """[token, neuron] or [sequence, token, neuron]."""
    dtype: str
    """`float32`, `float16` or `bfloat16`."""


def places(activations: object) -> dict[Place, Rows]:
    """The arrays of one call by site and layer.

    `activations` maps (site, layer), or a hook name of TransformerLens, to an array, or a site to arrays by layer.
    """
    if not isinstance(activations, Mapping) or not activations:
        raise InvalidInputError(
            '`activations` is a dictionary such as {("mlp.post", 3): array}, {"blocks.3.mlp.hook_post": array} or '
            f'{{"mlp.post": {{3: array}}}}, found {type(activations).__name__}.'
        )
    found: dict[Place, Rows] = {}
    for key, value in activations.items():
        inner = value if isinstance(value, Mapping) else {None: value}
        for layer, array in inner.items():
            place = _place(key, layer)
            if place in found:
                raise InvalidInputError(
                    f"Two arrays of `activations` are of {place[0]} in layer {place[1]}. Leave one out."
                )
            found[place] = as_rows(array, f"{place[0]} of layer {place[1]}")
    return found


def _place(key: object, layer: object) -> Place:
    name: object
    hook = parse_hook(key) if isinstance(key, str) else None
    if hook is not None and layer is None:
        name, layer = hook
    elif isinstance(key, tuple) and len(key) == 2 and layer is None:
        name, layer = key
    else:
        name = key
    if not isinstance(layer, int | np.integer) or isinstance(layer, bool) or layer < 0:
        raise InvalidInputError(
            f'Activations have a site and a layer, such as ("mlp.post", 3), found {key!r:.80}'
            f"{'' if layer is None else f' and the layer {layer!r:.20}'}."
        )
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 100 or name.startswith(_RESERVED):
        raise InvalidInputError(
            f"A site's name is words of letters, digits, '_' and '-' with dots between, such as sae.features, and does not "
            f"begin with {_RESERVED!r}: found {name!r:.80}."
        )
    return name, int(layer)


def as_rows(array: object, what: str) -> Rows:
    """An array of NumPy, torch, JAX or anything that NumPy can read as [token, neuron] or [sequence, token, neuron].

    float64 is rounded to float32. `InvalidInputError` for integers, which would be steps of an unknown size, and other shapes.
    """
    values, dtype = _numpy(array)
    if dtype is None:
        raise InvalidInputError(
            f"Activations are float32, float16, bfloat16 or float64, found {values.dtype} for {what}. Convert them first; "
            "quantised values times their scale."
        )
    if values.ndim not in (2, 3) or not values.shape[-1]:
        raise InvalidInputError(
            f"The array for {what} is [token, neuron] or [sequence, token, neuron], found the shape {values.shape}. Flatten "
            "heads into one axis first."
        )
    return Rows(values, dtype)


def _numpy(array: Any) -> tuple[NDArray[Any], str | None]:
    """In NumPy, with the name of its format; None where it is none of ours."""
    if hasattr(array, "detach"):  # torch
        import torch

        tensor = array.detach().to("cpu")
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.uint16).numpy(), "bfloat16"
        array = tensor.numpy()
    values = np.asarray(array)
    name = values.dtype.name
    if name == "bfloat16":  # of ml_dtypes, as JAX has it
        return np.ascontiguousarray(values).view(np.uint16), name
    if name == "float64":
        return values.astype(np.float32), "float32"
    return values, name if name in ("float32", "float16") else None


def converted(rows: Rows, dtype: str, what: str) -> NDArray[Any]:
    """The values in `dtype`, of which every one of `rows` can be one; `InvalidInputError` where some would be rounded."""
    if rows.dtype == dtype:
        return rows.values
    if dtype != "float32":
        raise InvalidInputError(
            f"The arrays before were {dtype}, found {rows.dtype} for {what}. Pass `dtype` float32 when the builder is made, or "
            "convert the array."
        )
    if rows.dtype == "float16":
        return rows.values.astype(np.float32)
    return as_float32(rows.values)


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Floats as float32, bits of bfloat16 in uint16 among them."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def check_finite(values: NDArray[Any], what: str) -> None:
    """`InvalidInputError` naming the first value that is NaN or infinite."""
    finite = np.isfinite(as_float32(values))
    if not finite.all():
        where = [int(i) for i in np.argwhere(~finite)[0]]
        raise InvalidInputError(
            f"The array for {what} has a value that is NaN or infinite, first at {where}. Pass `non_finite` keep when the "
            "builder is made to store such values (NaN means that there is no value), or clean the array."
        )
