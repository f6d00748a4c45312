"""Names of classes, as Hugging Face `datasets` stores them with a table: its features, in JSON.

Columns of type ClassLabel hold the index of a name, or -1 for none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeGuard

from actstore.engine.inputs.value_names import describe_value
from actstore.store.errors import InvalidInputError

Features = Mapping[str, object]
"""Column → feature: an object with its `_type`, an object or a list of features where it is nested."""

_METADATA = b"huggingface"
NO_CLASS = -1


def features_in(metadata: Mapping[bytes, bytes] | None) -> Features:
    """The features in the metadata of an Arrow schema; none where `datasets` did not write it."""
    try:
        features = json.loads((metadata or {}).get(_METADATA, b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def class_columns(features: Features) -> dict[str, object]:
    """The features that contain a class, at any depth."""
    return {column: feature for column, feature in features.items() if _has_class(feature)}


def name_classes(value: object, feature: object, source: str, column: str) -> object:
    """The value with names in place of the classes' indices, at any depth; None stands for no class.

    Raises `InvalidInputError`, naming `source`, for an index without a name.
    """
    if value is None or not _has_class(feature):
        return value
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) and feature else _inner(feature)
        return [name_classes(item, inner, source, column) for item in value]
    if isinstance(value, dict) and isinstance(fields := _inner(feature), dict):
        return {key: name_classes(item, fields.get(key), source, column) for key, item in value.items()}
    if not _is_class(feature) or not isinstance(value, int):
        return value
    names = feature["names"]
    assert isinstance(names, list)
    if value == NO_CLASS:
        return None
    if not 0 <= value < len(names):
        raise InvalidInputError(
            f"{source}: column {column!r} holds a class by its index, below {len(names)} or -1 for none, found "
            f"{describe_value(value)}; write the data set again."
        )
    return names[value]


def _is_class(feature: object) -> TypeGuard[dict[str, object]]:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)


def _has_class(feature: object) -> bool:
    if _is_class(feature):
        return True
    inner = feature if isinstance(feature, list) else list(feature.values()) if isinstance(feature, dict) else []
    return any(_has_class(item) for item in inner if isinstance(item, dict | list))


def _inner(feature: object) -> object:
    """The feature of a sequence's items; of a sequence of objects (in `datasets`, an object of lists) its fields."""
    return feature["feature"] if isinstance(feature, dict) and "_type" in feature and "feature" in feature else feature
