"""Token ids of a record, without the padding that its attention mask names.

A tokenised data set holds what its tokenizer returned: ids, and columns that say how a model is to read them. The mask is
applied; a column that differs from what a capture does (one segment, positions from 0) is refused, as it would change the
activations.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from actstore.engine.inputs.value_names import describe_value
from actstore.store.errors import InvalidInputError

MASK = "attention_mask"
POSITIONS = "position_ids"
_ALL_ZERO = ("token_type_ids", "global_attention_mask")
MODEL_INPUTS = (MASK, *_ALL_ZERO, POSITIONS)
"""Columns that are read together with the ids: one integer per token."""

ZERO_OR_ONE = "0 or 1"

Integers = npt.NDArray[np.integer]


def read_token_ids(source: str, column: str, record: Mapping[str, object]) -> npt.NDArray[np.int64]:
    """The ids in `column` that the record's attention mask keeps, int64 `[token]`; null is no ids.

    Raises `InvalidInputError`, naming `source`, for values that are no token ids, for a mask that is not one 0 or 1 per id or
    that masks a token between two it keeps, and for token types, positions or global attention that the model is not run with.
    """
    ids = _token_ids(source, column, record[column])
    span = _unmasked(source, record, ids.size)
    for name in _ALL_ZERO:
        _expect(source, name, record, span, np.zeros_like(ids))
    _expect(source, POSITIONS, record, span, np.arange(ids.size) - (span.start or 0))
    return ids[span]


def _token_ids(source: str, column: str, value: object) -> npt.NDArray[np.int64]:
    def wrong(found: str) -> InvalidInputError:
        return InvalidInputError(
            f"{source}: column {column!r} must hold token ids (integers from 0), found {found}; "
            "fix the row, or name another with `ids_column`."
        )

    array = _array([] if value is None else value, wrong, truth_values=False)
    if array.dtype.kind not in "iu":
        raise wrong(f"a list of {array.dtype}")
    ids = array.astype(np.int64)  # a copy: the values may lie in a batch that is about to be released
    if ids.size and ids.min() < 0:
        position = int((ids < 0).argmax())
        raise wrong(f"{array[position]} at position {position}")
    return ids


def _unmasked(source: str, record: Mapping[str, object], n_ids: int) -> slice:
    """The run of positions that the mask keeps; all of them where there is no mask."""
    mask = _integers(source, MASK, record, n_ids, ZERO_OR_ONE)
    if mask is None:
        return slice(0, n_ids)
    ones = np.flatnonzero(mask)
    if not ones.size:
        return slice(0, 0)
    start, stop = int(ones[0]), int(ones[-1]) + 1
    if ones.size != stop - start:
        gap = start + int(np.argmin(mask[start:stop]))
        raise InvalidInputError(
            f"{source}: column {MASK!r} masks position {gap}, between tokens that it keeps, and only padding before and "
            "after a document can be left out; split the record there, or leave the column out."
        )
    return slice(start, stop)


def _expect(source: str, column: str, record: Mapping[str, object], span: slice, expected: Integers) -> None:
    """Refuse a column that differs, within the unmasked span, from what the model is run with."""
    values = _integers(source, column, record, expected.size, "integer")
    if values is None:
        return
    differs = np.flatnonzero(values[span] != expected[span])
    if differs.size:
        position = int(differs[0]) + (span.start or 0)
        raise InvalidInputError(
            f"{source}: column {column!r} holds {values[position]} at position {position}, and a capture runs the model with "
            f"{expected[position]} there, so its activations would be others; leave the column out to capture the ids "
            "without it."
        )


def _integers(source: str, column: str, record: Mapping[str, object], n_ids: int, kind: str) -> Integers | None:
    """The integers or truth values of a column, one per id; None where the record has none."""

    def wrong(found: str) -> InvalidInputError:
        return InvalidInputError(
            f"{source}: column {column!r} must hold one {kind} per token id ({n_ids} of them), found {found}; fix the row, or "
            "leave the column out."
        )

    value = record.get(column)
    if value is None:
        return None
    array = _array(value, wrong, truth_values=True)
    if array.dtype.kind not in "iub":
        raise wrong(f"a list of {array.dtype}")
    if array.size != n_ids:
        raise wrong(f"{array.size}")
    integers: Integers = array.astype(np.int64)
    if kind == ZERO_OR_ONE and (other := np.flatnonzero((integers != 0) & (integers != 1))).size:
        raise wrong(f"{array[other[0]]} at position {other[0]}")
    return integers


def _array(value: object, wrong: Callable[[str], InvalidInputError], *, truth_values: bool) -> npt.NDArray[np.generic]:
    """A list, numpy array or tensor as an array of one axis; `truth_values` may stand for 0 and 1 in it."""
    if not isinstance(value, np.ndarray) and hasattr(value, "__array__"):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "b" and not truth_values:
        value = value.tolist()
    if isinstance(value, list | tuple):
        for position, item in enumerate(value):
            is_bool = isinstance(item, bool | np.bool_)
            if not (isinstance(item, int | np.integer) or is_bool) or (is_bool and not truth_values):
                raise wrong(f"{describe_value(item)} at position {position}")
        try:
            value = np.array(value, dtype=np.int64)
        except OverflowError:
            raise wrong("a number that needs more than 64 bits") from None
    if not isinstance(value, np.ndarray):
        raise wrong(describe_value(value))
    if value.ndim != 1:
        raise wrong(f"an array of {value.ndim} axes")
    return value
