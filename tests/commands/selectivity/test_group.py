"""`actstore selectivity`: its JSON, its tables, and each mistake of a user's in one sentence."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import pytest

from actstore.engine.capture.api import capture
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore selectivity …` in this process."""
    return functools.partial(cli, "selectivity")


@pytest.fixture(scope="module")
def store(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of the tiny model: by language with gate signs, without signs, without labels."""
    target = tmp_path_factory.mktemp("selectivity") / "store"
    for name, settings in {
        "corpus": {"label_columns": ("language",)},
        "no-sign": {"label_columns": ("language",), "gate_sign": False, "max_tokens": 300},
        "no-label": {"max_tokens": 300},
    }.items():
        capture(str(tiny_model), corpus, target, name=name, **settings)  # type: ignore[arg-type]
    return target


def test_json_names_the_neurons_of_each_label(cli: Callable[..., Result], store: Path) -> None:
    done = cli(store, "--by", "language", "--share", "0.1", "--activation-quantile", "0.8", "--json")
    assert (done.status, done.err) == (0, "")
    found = done.json
    assert list(found["labels"]) == ["en", "fr", "py"]
    union = {name for names in found["labels"].values() for name in names}
    assert len(union) == found["selected"] == len(found["scores"]) == round(0.1 * found["neurons"])
    assert found["neurons"] == 48
    assert found["counts"] == {label: len(names) for label, names in found["labels"].items()}
    statistics = Store(store).capture("corpus").statistics()
    for label, row in zip(found["labels"], statistics.label_tokens, strict=False):
        assert found["tokens"][label] == row
    for score in found["scores"]:
        layer, neuron = map(int, re.findall(r"\d+", score["neuron"]))
        for i, (label, p) in enumerate(score["probabilities"].items()):
            assert p == statistics.gate_positives[layer][i, neuron] / statistics.label_tokens[i]
            assert (p > found["threshold"]) == (score["neuron"] in found["labels"][label])
    entropies = [score["entropy"] for score in found["scores"]]
    assert entropies == sorted(entropies)
    assert {label: sum(layers.values()) for label, layers in found["by_layer"].items()} == found["counts"]
    scores = {score["neuron"]: score for score in found["scores"]}
    for label, rows in found["neurons_by_label"].items():
        assert [row["neuron"] for row in rows] == found["labels"][label]
        for row in rows:
            assert row["entropy"] == scores[row["neuron"]]["entropy"]
            assert row["probabilities"] == scores[row["neuron"]]["probabilities"]
            assert row["probability"] == row["probabilities"][label] > found["threshold"]


def test_show_is_the_default_and_prints_tables(cli: Callable[..., Result], store: Path) -> None:
    short, long = (cli(*words, store, "--by", "language", "--share", "0.1") for words in ((), ("show",)))
    assert short == long
    assert short.status == 0
    assert "of 48 neurons are selective by language in capture 'corpus'" in short.out
    assert re.search(r"label\s+tokens\s+neurons\s+L0\s+L1", short.out)
    # Each neuron stands beside its entropy and its P of every label.
    assert re.search(r"label +neuron +entropy +P\(en\) +P\(fr\) +P\(py\)", short.out)
    found = cli(store, "--by", "language", "--share", "0.1", "--json").json
    rows = [(label, row) for label, rows in found["neurons_by_label"].items() for row in rows]
    assert rows
    for label, row in rows:
        numbers = "".join(f" +{row['probabilities'][of]:.4f}" for of in found["labels"])
        assert re.search(rf"{label} +{re.escape(row['neuron'])} +{row['entropy']:.4f}{numbers}", short.out)


def test_of_many_labels_a_neuron_is_shown_with_its_own_and_the_next(
    cli: Callable[..., Result], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actstore.commands.selectivity import group as selectivity

    monkeypatch.setattr(selectivity, "SHOWN_LABELS", 2)
    asked = ("--by", "language", "--share", "0.1")
    shown, found = cli(store, *asked).out, cli(store, *asked, "--json").json
    assert re.search(r"label +neuron +entropy +P +next highest", shown)
    for label, rows in found["neurons_by_label"].items():
        for row in rows:
            others = {p: of for of, p in row["probabilities"].items() if of != label}
            assert re.search(
                rf"{label} +{re.escape(row['neuron'])} +{row['entropy']:.4f} +{row['probability']:.4f} +"
                rf"({'|'.join(others.values())}) {max(others):.4f}",
                shown,
            )


def test_few_tokens_are_warned_of_on_standard_error(cli: Callable[..., Result], store: Path) -> None:
    done = cli(store, "--by", "language", "--capture", "no-sign", "--site", "mlp.post", "--json")
    assert done.status == 0
    assert re.search(r"Warning: Label 'en' has \d+ tokens; fewer than 1,000 make", done.err)
    assert len(done.json["warnings"]) == done.err.count("Warning: ")


def test_sites_and_settings_reach_the_computation(cli: Callable[..., Result], store: Path) -> None:
    gate, post = (
        cli(store, "--by", "language", "--site", site, "--share", "0.2", "--json").json
        for site in ("mlp.gate", "mlp.post")
    )
    assert gate["scores"] != post["scores"]
    assert cli(store, "--by", "language", "--share", "0.2", "--json").json["scores"] == gate["scores"]
    low = cli(store, "--by", "language", "--activation-quantile", "0.5", "--modality", "text", "--json").json
    assert low["threshold"] < gate["threshold"]
    assert low["tokens"] == gate["tokens"]


def test_evaluate_adds_the_matrix(cli: Callable[..., Result], store: Path, tiny_model: Path, corpus: Path) -> None:
    asked = ("--by", "language", "--share", "0.1", "--activation-quantile", "0.8", "--random", "2", "--json")
    own = cli("evaluate", store, *asked)
    assert (own.status, own.err) == (0, "")
    found = own.json
    labels = ["en", "fr", "py"]
    assert list(found["matrix"]) == list(found["random"]["matrix"]) == list(found["labels"]) == labels
    assert all(list(row) == labels for row in found["matrix"].values())
    assert found["corpus"] is None
    few = cli("evaluate", store, *asked, "--max-tokens", "100").json
    assert all(100 <= n < 164 for n in few["predicted"].values())
    for row in labels:
        for column in labels:
            change = found["matrix"][row][column]
            assert 2.718281828 ** (found["masked_nats"][row][column] - found["nats"][column]) - 1 == pytest.approx(
                change, abs=1e-6
            )
    # The corpus that was captured, read anew, gives the very same windows.
    again = cli("evaluate", store, corpus, *asked).json
    assert again["corpus"] == str(corpus)
    assert again["predicted"] == found["predicted"]
    for row in labels:
        assert again["matrix"][row] == pytest.approx(found["matrix"][row], abs=1e-5)
    table = cli("evaluate", store, *asked[:-1])
    assert "perplexity unchanged" in table.out
    assert "random, as fr" in table.out
    assert re.search(r"[+-]\d+\.\d %", table.out)


def test_lens_says_how_undecided_each_layer_is(
    cli: Callable[..., Result], refused: Callable[..., str], store: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    capture(str(tiny_model), corpus, tmp_path / "stream", sites=("resid.post",), max_tokens=300)
    found = cli("lens", tmp_path / "stream", "--max-tokens", "50", "--json").json
    assert found["tokens"] == {"text": 50}
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    assert all(0 < row["entropies"]["text"] < 6 for row in found["layers"])  # ln 400 = 5.99
    assert re.search(r"after layer\s+text\s+L0\s+\d", cli("lens", tmp_path / "stream").out)
    assert "has no dense values of it" in refused("lens", store, "--capture", "corpus")
    assert "Expected a device such as cpu" in refused("lens", tmp_path / "stream", "--device", "abacus")


@pytest.mark.slow
def test_the_lens_needs_no_transformers(
    run_without: Callable[..., Any], tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    capture(str(tiny_model), corpus, tmp_path / "stream", sites=("resid.post",), max_tokens=100)
    done = run_without(("transformers", "tokenizers"), ("selectivity", "lens", "stream", "--json"))
    assert done.returncode == 0, done.stderr
    assert '"layers": [{"layer": 0' in done.stdout


def test_mistakes_are_one_sentence(refused: Callable[..., str], store: Path, tiny_model: Path, tmp_path: Path) -> None:
    by = ("--by", "language")
    assert "has no label 'domain'. Its labels are: language." in refused(store, "--by", "domain")
    assert "Its labels are: none; capture with" in refused(store, *by, "--capture", "no-label")
    assert "has no gate signs of layer 0" in refused(store, *by, "--capture", "no-sign")
    assert "image tokens for none of 'language' only" in refused(store, *by, "--modality", "image")
    assert "a share of all neurons, above 0 and at most 1" in refused(store, *by, "--share", "2")
    assert "must be at least 1, found 0" in refused("evaluate", store, *by, "--max-tokens", "0")
    assert "There is no file or folder" in refused("evaluate", store, tmp_path / "none.jsonl", *by)
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text('{"text": "the quick brown fox"}\n')
    assert "language" in refused("evaluate", store, unlabelled, *by)
    one = tmp_path / "one.jsonl"
    one.write_text('{"text": "the quick brown fox", "language": "en"}\n')
    assert "found none of 'fr'" in refused("evaluate", store, one, *by)
