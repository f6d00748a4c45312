"""What a neuron writes where: by the sign of its activations."""

from __future__ import annotations

import numpy as np
import pytest

from actstore.store.model.top_tokens import OwnTokens

OWN = OwnTokens(["small"], ["large"])


@pytest.mark.parametrize(
    ("activations", "written"),
    [
        ([2.0], ["small"]), ([-2.0], ["large"]), ([-0.1] * 60, ["large"]), ([1, 1, -9], ["small"]), ([0, 0, -1], ["large"]),
        ([1, -1], None), ([0.0], None), ([np.nan], None), ([], None), ([np.nan, -1], ["large"]), ([np.inf], ["small"]),
    ],
)  # fmt: skip
def test_the_side_is_that_of_most_activations(activations: list[float], written: list[str] | None) -> None:
    assert OWN.written(np.array(activations, np.float32)) == written


def test_one_activation_is_a_number_too() -> None:
    assert OWN.written(np.float32(-3)) == ["large"]  # type: ignore[arg-type]
