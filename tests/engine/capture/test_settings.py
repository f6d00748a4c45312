"""What a capture keeps: defaults that fit the model, everything else refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from actstore.engine.capture.settings import CaptureSettings
from actstore.engine.models.load import ModelSpec, inspect_model
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> ModelSpec:
    return inspect_model(tiny_model)


def test_the_defaults_follow_the_model(spec: ModelSpec) -> None:
    settings = CaptureSettings.resolve({}, spec)
    assert (settings.context, settings.gate_sign, settings.precision) == (64, True, "exact")
    assert settings.widths(spec) == {"mlp.post": {0: 24, 1: 24}}


def test_gate_signs_are_kept_only_where_they_mean_something(spec: ModelSpec) -> None:
    assert CaptureSettings.resolve({"precision": "none"}, spec).gate_sign is False
    assert CaptureSettings.resolve({"sites": ("resid.post",)}, spec).gate_sign is False
    assert CaptureSettings.resolve({"gate_sign": False}, spec).gate_sign is False
    assert CaptureSettings.resolve({"precision": "none", "gate_sign": True}, spec).gate_sign is True
    with pytest.raises(InvalidInputError, match=r"`gate_sign` needs the site mlp\.post"):
        CaptureSettings.resolve({"sites": ("resid.post",), "gate_sign": True}, spec)


def test_a_site_is_captured_in_the_chosen_layers_at_its_own_width(spec: ModelSpec) -> None:
    settings = CaptureSettings.resolve({"sites": ("mlp.post", "resid.post"), "layers": (1, 1)}, spec)
    assert settings.widths(spec) == {"mlp.post": {1: 24}, "resid.post": {1: 16}}


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"precision": "float8"}, "one of exact, half, int8, sparse, none: found 'float8'"),
        ({"keep": 0.1}, "`keep` is the share of values kept at precision sparse, and the precision is exact"),
        ({"precison": "half"}, "has no setting 'precison'. Did you mean 'precision'.* Its settings: sites, "),
        ({"keep": 0.0}, "above 0 and at most 1, found 0.0"),
        ({"keep": float("nan")}, "found nan"),
        ({"exemplars": 1001}, "between 0 and 1000, found 1001"),
        ({"exemplars": -1}, "found -1"),
        ({"batch_tokens": 0}, "`batch_tokens` must be at least 1, found 0"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1, found 0"),
        ({"sites": ("mlp.middle",)}, "no site 'mlp.middle'. Its sites are mlp.post, mlp.gate"),
        ({"sites": ()}, "At least one site"),
        ({"layers": (2,)}, "layers 0 to 1, found layer 2"),
        ({"layers": (-1,)}, "layers 0 to 1, found layer -1"),
        ({"layers": ()}, "At least one layer"),
        ({"context": 65}, "at most 64 tokens at once, found a context of 65"),
        ({"context": 0}, "found a context of 0"),
        ({"begin": "sometimes"}, "`begin` is one of auto, always, never: found 'sometimes'"),
        ({"label_columns": ("a", "a")}, "label column 'a' is named twice"),
    ],
)
def test_what_the_model_cannot_give_is_refused_with_what_was_found(
    spec: ModelSpec, requested: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CaptureSettings.resolve(requested, spec)


def test_settings_survive_json_and_differences_name_what_changed(spec: ModelSpec) -> None:
    settings = CaptureSettings.resolve({"layers": (0,), "label_columns": ("language",)}, spec)
    again = CaptureSettings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings
    assert again.differences({"layers": (0,), "precision": "exact"}) == []
    assert again.differences({"layers": (0, 1), "precision": "half"}) == [
        "layers is 0 there and 0, 1 now",
        "precision is exact there and half now",
    ]


def test_settings_of_a_later_release_are_passed_over(spec: ModelSpec) -> None:
    settings = CaptureSettings.resolve({}, spec)
    assert CaptureSettings.from_json(settings.to_json() | {"from_the_future": 1}) == settings
