"""`actstore coactivation`: one neuron's neighbours, or everyone's, for people, for machines and as a file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from planted_stores import Planted, plant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tests.conftest import Result  # type: ignore[import-not-found]

    Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neuron 2 of layer 1 follows neuron 4 of layer 0, and neuron 3 goes against both; neuron 1 never changes."""
    rows: dict[int, NDArray[np.float32]] = {}

    def values(random: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
        random[1] = -1
        rows[layer] = random
        if layer == 1:
            random[2] = 2 * rows[0][4] + 0.1 * random[2]
            random[3] = 1 - rows[0][4]
        return random

    path = tmp_path_factory.mktemp("coactivation") / "store"
    plant(path, what=Planted(values=values))
    return path


@pytest.fixture
def cli(cli: Cli) -> Cli:
    return partial(cli, "coactivation")


def test_people_see_the_nearest_first(cli: Cli, store: Path) -> None:
    lines = cli(store, "L0.N4", "-k", 2).out.splitlines()
    assert lines[0].startswith("L0.N4: fires, above 0, on ")
    assert lines[0].endswith("on 54 of 129 tokens, 41.9 %")
    assert lines[1].split() == ["neuron", "correlation", "Jaccard", "both", "fire", "fires"]
    assert lines[2].split()[0] == "L1.N2"
    assert float(lines[2].split()[1]) > 0.99
    assert len(lines) == 4


def test_the_json_has_what_was_asked_and_found(cli: Cli, store: Path) -> None:
    found = cli(store, "L0.N4", "--sort", "jaccard", "--threshold", 0.5, "-k", 100, "--json").json
    assert {name: found[name] for name in ("capture", "site", "positions", "sort", "threshold", "tokens", "neuron")} == {
        "capture": "corpus", "site": "mlp.post", "positions": "counted", "sort": "jaccard", "threshold": 0.5, "tokens": 129,
        "neuron": "L0.N4",
    }  # fmt: skip
    assert set(found["neurons"][0]) == {"neuron", "correlation", "jaccard", "both_fire", "fires", "tokens"}
    first = found["neurons"][0]
    assert (first["neuron"], first["tokens"]) == ("L1.N2", 129)
    assert first["jaccard"] == pytest.approx(
        first["both_fire"] / (found["fires"] + first["fires"] - first["both_fire"])
    )
    by_name = {row["neuron"]: row for row in found["neurons"]}
    # A neuron that never changes has no correlation, and here never fires: it shares no token.
    assert (by_name["L1.N1"]["correlation"], by_name["L1.N1"]["jaccard"], by_name["L1.N1"]["fires"]) == (None, 0, 0)
    assert by_name["L1.N3"]["correlation"] == pytest.approx(-1, abs=1e-6)
    assert len(found["neurons"]) == 44


def test_without_a_neuron_all_are_compared(cli: Cli, store: Path, tmp_path: Path) -> None:
    out = cli(store, "-k", 3, "--output", tmp_path / "nearest.parquet").out
    assert "The nearest of 45 neurons by correlation over 129 tokens; the strongest pairs:" in out
    assert out.splitlines()[2].split()[:2] == ["L0.N4", "L1.N2"]
    assert out.splitlines()[-1] == f"{tmp_path / 'nearest.parquet'}: 129 rows."  # of 43 neurons that change
    table = pq.read_table(tmp_path / "nearest.parquet")
    found = cli(store, "-k", 3, "--json").json
    assert (len(found["neurons"]), found["file"]) == (45, None)
    rows = [
        (neuron["neuron"], other["neuron"], other["correlation"])
        for neuron in found["neurons"]
        for other in neuron["nearest"]
    ]
    assert rows == [
        (row["name"], row["other_name"], row["correlation"])
        for row in table.select(["name", "other_name", "correlation"]).to_pylist()
    ]
    (following,) = [neuron for neuron in found["neurons"] if neuron["neuron"] == "L1.N2"]
    assert following["nearest"][0]["neuron"] == "L0.N4"
    within = cli(store, "-k", 3, "--within-layers", "--layers", "1", "--json").json
    assert {other["neuron"].split(".")[0] for neuron in within["neurons"] for other in neuron["nearest"]} == {"L1"}


def test_mistakes_are_refused_in_a_sentence(refused: Callable[..., str], store: Path, tmp_path: Path) -> None:
    refuse = partial(refused, store)
    assert refuse("L0.N5") == "Layer 0 has neurons 0 to 4 at mlp.post, found neuron 5."
    assert refuse("N5") == "A neuron is named by layer and index, such as L3.N17, found 'N5'."
    assert refuse("L0.N1", "--layers", "7").startswith("Capture 'corpus' has no layer 7")
    assert refuse("L0.N1", "--layers", "1", "--within-layers") == (
        "L0.N1 is of none of the --layers 1, and --within-layers compares it with its own layer only. Leave one out."
    )
    assert refuse("--threshold", "nan").startswith("Expected --threshold, an activation, to be a number")
    assert refuse("--output", tmp_path / "x.csv").startswith(
        "The table is written as Parquet: expected --output to end in"
    )
    assert "does not exist" in refuse("--output", tmp_path / "none" / "x.parquet")
    assert "nearer to zero" not in refuse("--sort", "cosine")


def test_a_precision_that_rounds_is_a_warning(cli: Cli, tmp_path: Path) -> None:
    plant(tmp_path / "store", what=Planted(precision="int8"))
    found = cli(tmp_path / "store", "L0.N1", "--json")
    assert "Warning: Capture 'corpus' has precision int8" in found.err
    assert "precision int8" in found.json["warnings"][0]
