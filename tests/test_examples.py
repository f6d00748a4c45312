"""The examples, run as a user runs them: small here, and as their documentation says under `slow`."""

from __future__ import annotations

import lzma
import re
import subprocess
import sys
from pathlib import Path

import pytest

import actstore

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_autoencoder_learns_and_its_features_are_neurons(tmp_path: Path) -> None:
    out = run("autoencoder", "--store", tmp_path / "s", "--tokens", 9000, "--features", 128, "-k", 16, "--epochs", 6)
    found = re.search(r"Held-out documents, ([\d,]+) tokens: explained variance (-?[\d.]+)", out)
    assert found is not None, out
    assert float(found[2]) > 0.2, "a mean explains 0"
    store = actstore.open(tmp_path / "s")
    features = store.capture("features")
    n_tokens = store.capture("corpus").record.plan.n_tokens
    assert features.record.plan.n_tokens == n_tokens
    assert features.record.layers("sae.features") == {2: 128}
    fires = sum((features.activations(2, neuron, "sae.features") > 0).sum() for neuron in range(128))
    assert 0 < fires <= 16 * n_tokens, "at most k features of a token"
    assert store.neuron("L2.N5").exemplars(1, "features", site="sae.features").num_rows <= 1


@pytest.mark.slow
def test_the_autoencoder_explains_what_its_page_says(tmp_path: Path) -> None:
    out = run("autoencoder", "--store", tmp_path / "s")
    assert float(re.search(r"explained variance ([\d.]+)", out)[1]) > 0.7  # type: ignore[index]
    assert "above zero at" in out


def test_a_probe_is_tested_on_the_other_half(tmp_path: Path) -> None:
    with lzma.open(
        EXAMPLES.parent / "demo" / "models" / "language-llama" / "texts.jsonl.xz", "rt", encoding="utf-8"
    ) as file:
        (tmp_path / "texts.jsonl").write_text("".join(list(file)[::12]), encoding="utf-8")
    out = run("probe", "--store", tmp_path / "s", "--corpus", tmp_path / "texts.jsonl", "--epochs", 4)
    rows = [line.split() for line in out.splitlines()[-4:]]
    probes, tables, most_frequent = ([float(row[at].rstrip("%")) for row in rows] for at in (1, 2, 3))
    assert max(probes) > max(tables) > max(most_frequent)
