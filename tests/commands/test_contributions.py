"""`contributions` from the command line, on a captured model: against hooks on it, without it, and mistaken."""

from __future__ import annotations

import functools
import json
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import planted_stores
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

import actstore
from actstore.display import terminal
from actstore.engine.capture.api import RunOptions, capture
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.conftest import Result  # type: ignore[import-not-found]

CONTEXT = 16


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore contributions …` in this process."""
    return functools.partial(cli, "contributions")


@pytest.fixture(scope="module")
def path(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny model: `corpus` in windows of 16, `last` with last positions only, `counted` without values."""
    path = tmp_path_factory.mktemp("contributions") / "store"
    common: dict[str, Any] = {"context": CONTEXT, "label_columns": ("language",), "max_documents": 25}
    capture(str(tiny_model), corpus, path, options=RunOptions(memory=100_000), **common)
    capture(str(tiny_model), corpus, path, name="last", positions="last", **common)
    capture(str(tiny_model), corpus, path, name="counted", precision="none", **common)
    return path


class Reference(NamedTuple):
    """What a loop over the corpus with hooks of one's own finds."""

    scores: dict[str, NDArray[np.float64]]
    """By label, the mean contribution of each neuron (both layers) to each text position's next token."""
    following: dict[int, NDArray[np.float64]]
    """By token, the mean over the positions that it follows."""


@pytest.fixture(scope="module")
def reference(tiny_model: Path, corpus: Path) -> Reference:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    seen: list[torch.Tensor] = []
    for block in model.model.layers:
        block.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    vectors = torch.cat([block.mlp.down_proj.weight.T for block in model.model.layers]).double()
    products = vectors @ (model.lm_head.weight.double() * model.model.norm.weight.double()).T
    by_label: dict[str, list[torch.Tensor]] = {}
    by_token: dict[int, list[torch.Tensor]] = {}
    for line in corpus.read_text(encoding="utf-8").splitlines()[:25]:
        row = json.loads(line)
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), CONTEXT - 1):
            window = ids[start : start + CONTEXT - 1]
            seen.clear()
            with torch.inference_mode():
                model(torch.tensor([[tokenizer.bos_token_id, *window]]))
            activations = torch.cat(seen, dim=1).double()[1:]
            for i, token in enumerate(ids[start + 1 : start + len(window) + 1]):
                score = activations[i] * products[:, token]
                by_label.setdefault(row["language"], []).append(score)
                by_token.setdefault(token, []).append(score)
    means = {label: torch.stack(scores).mean(0).detach().numpy() for label, scores in by_label.items()}
    return Reference(means, {t: torch.stack(scores).mean(0).detach().numpy() for t, scores in by_token.items()})


def check(neurons: list[dict[str, Any]], expected: NDArray[np.float64]) -> None:
    """The rows of a document are the neurons with the largest scores, descending."""
    names = [f"L{layer}.N{i}" for layer in range(2) for i in range(24)]
    scores = dict(zip(names, expected.tolist(), strict=True))
    assert len({row["neuron"] for row in neurons}) == len(neurons) > 0
    found = [row["score"] for row in neurons]
    size = np.abs(expected).max()
    np.testing.assert_allclose(
        found, sorted(expected.tolist(), reverse=True)[: len(found)], rtol=1e-4, atol=1e-5 * size
    )
    np.testing.assert_allclose(found, [scores[row["neuron"]] for row in neurons], rtol=1e-4, atol=1e-5 * size)


def test_one_target_equals_hooks_on_the_model(cli: Callable[..., Result], path: Path, reference: Reference) -> None:
    store = Store(path)
    assert store.vocabulary is not None
    texts: list[str] = store.vocabulary["text"].to_pylist()
    usual = sorted(reference.following, key=lambda t: texts.count(texts[t]) > 1)[:6]
    for token in usual:
        done = cli(path, "--target", texts[token], "--capture", "corpus", "-k", "7", "--json")
        value = json.loads(done.out)
        assert (value["target"], value["token"], value["capture"], len(value["neurons"])) == (
            texts[token],
            token,
            "corpus",
            7,
        )
        check(value["neurons"], reference.following[token])
        by_id = cli(path, "--target-id", token, "--capture", "corpus", "-k", "7", "--json")
        assert by_id.out == done.out


def test_next_tokens_by_label_equal_hooks_on_the_model(
    cli: Callable[..., Result], path: Path, reference: Reference
) -> None:
    value = json.loads(cli(path, "--next-tokens", "--by", "language", "-k", "9", "--json").out)
    assert set(value["labels"]) == set(reference.scores)
    for label, expected in reference.scores.items():
        check(value["labels"][label], expected)
    assert value["target"] is None


def test_at_a_place_it_is_in_order_of_every_neuron(cli: Callable[..., Result], path: Path) -> None:
    store = Store(path)
    window = store.capture("corpus").windows().to_pylist()[0]
    place = f"{window['document']}:3@{window['window']}"
    value = json.loads(cli(path, "--at", place, "-k", "48", "--json").out)
    inputs = store.capture("corpus").plan.array("inputs/ids")
    assert value["token"] == inputs[window["input_start"] + 4]
    assert value["at"] == {"document": window["document"], "position": 3, "window": window["window"]}
    scores = [row["score"] for row in value["neurons"]]
    assert len(scores) == 48
    assert scores == sorted(scores, reverse=True)


def test_at_a_place_each_neuron_is_shown_with_its_activation_and_what_it_writes_there(
    cli: Callable[..., Result], path: Path
) -> None:
    store = Store(path)
    window = store.capture("corpus").windows().to_pylist()[0]
    asked = (path, "--at", f"{window['document']}:3@{window['window']}", "-k", "48")
    tokens = store.capture("corpus").tokens().to_pydict()
    (slot,) = [
        i
        for i, (w, p) in enumerate(zip(tokens["window"], tokens["position"], strict=True))
        if (w, p) == (window["window"], 3)
    ]
    lines = cli(*asked).out.splitlines()
    assert lines[1].split() == ["neuron", "score", "activation", "writes"]
    signs = set()
    for row, line in zip(json.loads(cli(*asked, "--json").out)["neurons"], lines[2:], strict=True):
        activation = float(store.neuron(row["neuron"]).activations("corpus")[slot])
        assert row["activation"] == activation
        side = "top_texts" if activation > 0 else "bottom_texts"
        (texts,) = store.sql(f"select {side} from model where name = '{row['neuron']}'")[side].to_pylist()
        name, _, shown, written = line.split(maxsplit=3)
        assert (name, shown) == (row["neuron"], f"{activation:.4g}")
        assert written.startswith(terminal.visible(texts[0].replace(" ", "␣")))
        signs.add(side)
    assert signs == {"top_texts", "bottom_texts"}


def test_several_targets(cli: Callable[..., Result], path: Path) -> None:
    arguments = (path, "--target-id", 290, "--target-id", 300, "--everywhere", "-k", "3", "--json")
    value = json.loads(cli(*arguments).out)
    assert [entry["token"] for entry in value["targets"]] == [290, 300]
    alone = json.loads(cli(path, "--target-id", 300, "--everywhere", "-k", "3", "--json").out)
    assert value["targets"][1]["neurons"] == alone["neurons"]
    paper = json.loads(cli(*arguments, "--paper-form").out)
    assert paper["targets"][0]["neurons"] != []


def test_the_table_shows_each_neurons_own_tokens(cli: Callable[..., Result], path: Path) -> None:
    done = cli(path, "--target-id", 290, "--everywhere", "-k", "2")
    heading, columns, first, *_ = done.out.splitlines()
    text = Store(path).token_text(290)
    assert heading.startswith(f"{text!r} (290), mean over ")
    assert columns.split()[:2] == ["neuron", "score"]
    name = first.split()[0]
    (own,) = Store(path).sql(f"select top_texts from model where name = '{name}'")["top_texts"].to_pylist()
    assert own[0].strip() == "" or own[0].strip() in first


def test_filling_in_top_tokens(cli: Callable[..., Result], path: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    shutil.copytree(path, tmp_path / "store")
    table = tmp_path / "store" / "neurons.parquet"
    before = pq.read_table(table)
    pq.write_table(before.select(["layer", "neuron", "name", "module", "write_norm"]), table)  # as older stores have it
    planted_stores.change_root(Folder(tmp_path / "store", read_only=False), files=None)
    shown = cli(tmp_path / "store", "--target-id", 290, "--everywhere", "-k", "2")
    assert shown == cli(path, "--target-id", 290, "--everywhere", "-k", "2")
    done = cli(tmp_path / "store", "--fill-top-tokens")
    assert (done.status, done.out) == (0, "")
    assert "The top and bottom tokens of 48 neurons are in the table" in done.err
    after = pq.read_table(table)
    assert after.column_names == before.column_names
    assert after["top_texts"].to_pylist() == before["top_texts"].to_pylist()
    assert after["write_norm"].to_pylist() == before["write_norm"].to_pylist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Name a target with --target, a position with --at, or take each position's own next token with --next-tokens."),
        (("--next-tokens", "--target-id", "290"), "leave --target out"),
        (("--next-tokens", "--at", "0:5"), "leave --at out"),
        (("--target", "quick brown"), "is not one token of"),
        (("--target", "\u4eac\u4eac"), "is not one token of"),
        (("--target", ""), "found an empty one"),
        (("--target-id", "400"), "go from 0 to 399, found 400"),
        (("--target-id", "290", "--by", "colour"), "has no label 'colour'. Its labels are: language."),
        (("--target-id", "290", "--capture", "nothing"), "has no capture 'nothing'"),
        (("--target-id", "290", "--at", "0:0", "--capture", "last"), "Capture again with"),
        (("--next-tokens", "--capture", "counted"), "(precision none)"),
        (("--target-id", "290", "--at", "900:0"), "has documents 0 to 24, found document 900."),
        (("--target-id", "290", "--at", "0:3:1"), "such as 3:17"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    cli: Callable[..., Result], path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = cli(path, *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert words in done.err


def test_what_is_not_one_token_is_said_as_the_tokenizer_cuts_it(
    cli: Callable[..., Result], path: Path, tiny_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for text in ("jumpsuit", " overthe", "naïveté", "東京", "doggy", " renard brunatre"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) > 1
        error = cli(path, "--target", text).err
        assert f"but {len(ids)}: " in error, (text, error)
        assert [f"({i})" in error for i in ids] == [True] * len(ids)
        first = Store(path).token_text(ids[0])
        offer = repr(first) if "\ufffd" not in first else f"by its id, {ids[0]}"
        assert f"Ask for the first, {offer}" in error
        assert offer in error
    assert "or ' jumps', which is one token" in cli(path, "--target", "jumps").err


def test_a_write_vector_is_the_models(path: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for layer, index in ((0, 23), (1, 3)):
        expected = model.model.layers[layer].mlp.down_proj.weight[:, index].detach().numpy()
        vector = Store(path).neuron(layer, index).write_vector()
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, expected)
    shutil.copytree(path, tmp_path / "store")
    (tmp_path / "store/weights/layer-1.safetensors").unlink()
    with pytest.raises(actstore.errors.FormatError, match=r"layer-1\.safetensors is missing"):
        Store(tmp_path / "store").neuron("L1.N3").write_vector()


@pytest.fixture
def spelled(tiny_model: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A store in which the first word has its space 12 times of 13, the second always, and the third follows twice."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = {tokenizer.decode([i]): i for i in range(2, 400)}
    words = [text for text in ids if text.isalpha() and f" {text}" in ids][:2]
    words.append(next(text for text in ids if text.isalpha() and f" {text}" not in ids and not text.isascii()))
    first, second, third = ([ids[word], ids.get(f" {word}", 0)] for word in words)
    tokens = [5, first[0], *[6, first[1]] * 12, 7, *[second[1], 6] * 3, third[0], 6, third[0], 6]
    rng = np.random.default_rng(0)
    with actstore.CaptureBuilder(tmp_path / "spelled", model=str(tiny_model)) as builder:
        arrays = {("mlp.post", n): rng.standard_normal((len(tokens), 24)).astype(np.float32) for n in range(2)}
        builder.add(arrays, ids=tokens)
    return tmp_path / "spelled", words


def test_a_rare_spelling_is_said_to_be_one(
    cli: Callable[..., Result], spelled: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    path, (first, second, third) = spelled
    rare = f"{first!r} follows 1 position of capture 'corpus', and {' ' + first!r} 12: name that spelling"
    done = cli(path, "--target", first)
    assert done.err.startswith(f"Warning: {rare}")
    assert "mean over the 1 position it follows" in done.out
    assert cli(path, "--target", f" {first}").err == ""
    few = f"{third!r} follows 2 positions of capture 'corpus': its scores are means over no more than that."
    done = cli(path, "--target", third, "--target", f" {first}", "--json")
    assert done.err == f"Warning: {few}\n"
    assert [target["tokens"] for target in done.json["targets"]] == [2, 12]
    assert cli(path, "--target", first, "--everywhere").err == cli(path, "--target", first, "--at", "0:3").err == ""
    refused = cli(path, "--target", second)
    assert (
        f"{second!r} follows no position of text that capture 'corpus' keeps. {' ' + second!r} follows 3."
        in refused.err
    )
    with caplog.at_level("WARNING", logger="actstore"):
        actstore.open(path).contributions(first)
    assert [record.message.startswith(rare) for record in caplog.records] == [True]


def test_without_transformers_tokenizers_and_the_model(
    run_without: Callable[..., Any], path: Path, tmp_path: Path
) -> None:
    """In a process of its own that can import neither, on a store whose model's folder is unknown to it."""
    shutil.copytree(path, tmp_path / "store")
    line = ("contributions", "store", "--next-tokens", "--by", "language", "-k", "2", "--json")
    done = run_without(("transformers", "tokenizers"), line)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    table = Store(path).contributions(k=2, by="language", capture="corpus")
    rows = [row for rows in value["labels"].values() for row in rows]
    assert [row["neuron"] for row in rows] == table["name"].to_pylist()
    assert [row["score"] for row in rows] == table["score"].to_pylist()


@pytest.fixture(scope="module")
def headless(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder without a head, and stores of it: `store`, and `bare` without its weights."""
    folder = tmp_path_factory.mktemp("headless")
    sizes = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    BertModel(BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)).save_pretrained(folder / "bert")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / file, folder / "bert")
    for name, weights in (("store", True), ("bare", False)):
        capture(folder / "bert", corpus, folder / name, options=RunOptions(weights=weights), max_documents=5)
    return folder


@pytest.mark.parametrize(
    "asked",
    [("--target", " the"), ("--target", "no token"), ("--next-tokens",), ("--at", "0:1"), ("--target", " the", "--everywhere"),
     ("--fill-top-tokens",)],
    ids=" ".join,
)  # fmt: skip
def test_without_a_head_there_is_nothing_to_ask_in_a_better_way(
    headless: Path, refused: Callable[..., str], asked: tuple[str, ...]
) -> None:
    said = refused(headless / "store", *asked)
    assert "bert (bert, encoder) has no head that turns its residual stream into tokens: contributions and" in said
    assert said.endswith("do not exist for it. Capture a model with a language-model head into another store.")
    bare = refused(headless / "bare", *asked)
    assert bare.endswith(
        "Capture into a new store with weights, which is the default, of a model with a language-model head."
    )
