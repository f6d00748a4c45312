"""Installations without the packages that run models: what needs one says so, and how to install it."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from actstore.store.calls import checked, is_public
from actstore.store.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)

READING: Final = (
    "duckdb",
    "google-crc32c",
    "numba",
    "numcodecs",
    "numpy",
    "obstore",
    "psutil",
    "pyarrow",
    "rich",
    "safetensors",
    "typer",
    "zarr",
)
"""What a store is read with, statistics and graphs included; the README's line for a light installation names them."""
RUNNING: Final = ("torch", "transformers", "tokenizers", "triton")
"""What runs models, and multiplies with their weights."""
SERVING: Final = ("starlette", "uvicorn")
"""What `serve` answers a browser with."""


def missing(error: ModuleNotFoundError) -> MissingPackageError | None:
    """The sentence for a package of ours that is not installed; None for any other."""
    package = (error.name or "").partition(".")[0]
    names = {name.replace("-", "_"): name for name in (*READING, *RUNNING, *SERVING, "llvmlite")}
    if package not in names:
        return None
    return MissingPackageError(
        f"This needs the package {names[package]}, which is not installed here. `pip install actstore` installs everything.",
        name=error.name,
    )


def explained(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, in which a missing package of ours is a `MissingPackageError`; `checked`, too."""
    function = checked(function)

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            explanation = missing(error)
            if explanation is None or isinstance(error, MissingPackageError):
                raise
            raise explanation from None

    return call


def explains(kind: Class) -> Class:
    """The class, all of whose own public methods are `explained`; inherited ones may lie on a hot path, like `token_text`."""
    for name, member in list(vars(kind).items()):
        if inspect.isfunction(member) and is_public(name):
            wrapped: Any = explained(member)
            setattr(kind, name, wrapped)
    return kind
