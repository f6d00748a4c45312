"""The cache of keys and values that a model keeps between passes: its argument, what a pass returns, its number of tokens.

transformers renames the argument `past_key_values` to `cache` (both from 5.24 on, the old one gone in 5.40), and models with
code of their own keep the name that they were written with. Everything that passes, reads or measures a cache does it through
these functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

NAMES: Final = ("cache", "past_key_values")
"""Names of the argument of `forward`, and of the field of its output; the newer name first."""
_STATES: Final = (*NAMES, "cache_params", "state", "mems", "past_buckets_states", "past")
"""Every argument of transformers models that holds the state of earlier passes."""
_NO_STATE: Final = ("encoder_outputs", "attention_mask", "decoder_attention_mask")
"""Arguments that may be objects or nested tuples and hold no state of earlier passes of the same text."""


def cache_argument(model: PreTrainedModel) -> str | None:
    """The name under which `model.forward` takes a cache; None where it takes none.

    A head that passes its arguments on without naming them takes those of the model inside it.
    """
    for module in _named_forwards(model):
        parameters = inspect.signature(module.forward).parameters
        if name := next((name for name in NAMES if name in parameters), None):
            return name
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return None
    return None


def _named_forwards(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    from transformers import PreTrainedModel  # here, because measuring a cache needs no transformers

    yield model
    yield from (module for module in model.modules() if isinstance(module, PreTrainedModel) and module is not model)


def cache_arguments(model: PreTrainedModel, cache: Any = None) -> dict[str, Any]:
    """The arguments of a pass that returns its keys and values, and continues from `cache` where there is one.

    `ModelError` for a model that takes no cache.
    """
    if cache is None:
        return {"use_cache": True}
    name = cache_argument(model)
    if name is None:
        raise ModelError(
            f"expected {type(model).__name__} to take the keys and values of earlier tokens as one of {', '.join(NAMES)},"
            " and its forward has no such argument"
        )
    return {"use_cache": True, name: cache}


def cache_of(output: Any) -> Any:
    """The cache in the output of a pass; None where it holds none."""
    fields = dict(output.items()) if isinstance(output, Mapping) else {}
    return next((fields[name] for name in NAMES if fields.get(name) is not None), None)


def past_length(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The number of tokens that a model has read before the pass that these arguments call.

    A cache is recognised by its methods, whatever its argument is called. `ModelError` where the arguments hold something that
    may be the state of earlier tokens and does not say of how many.
    """
    lengths: set[int] = set()
    for name, value in [*(("", value) for value in args), *kwargs.items()]:
        measure = getattr(value, "get_seq_length", None)
        if callable(measure):
            lengths.add(int(measure()))
        elif name not in _NO_STATE and _may_be_state(name, value):
            raise ModelError(
                f"expected the library's cache of keys and values, and the model is called with {name or 'an argument'!r} of "
                f"type {type(value).__name__}, which does not say how many tokens it holds: generate with use_cache=False"
            )
    if len(lengths) > 1:
        raise ModelError(
            f"expected one cache of keys and values in a call of the model, found caches of {sorted(lengths)} tokens: generate "
            "with use_cache=False"
        )
    return lengths.pop() if lengths else 0


def _may_be_state(name: str, value: Any) -> bool:
    if value is None:
        return False
    if name in _STATES:
        return not isinstance(value, bool)
    if isinstance(value, tuple | list):
        return any(isinstance(item, tuple | list) and any(isinstance(v, Tensor) for v in item) for item in value)
    return hasattr(value, "__dict__") and not isinstance(value, Tensor | Mapping) and not callable(value)
