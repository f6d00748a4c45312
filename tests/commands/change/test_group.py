"""`change` from the command line, on a model and a changed copy of it: what it says, what it refuses, what it does not need."""

from __future__ import annotations

import functools
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import actstore
from actstore.engine.capture.api import RunOptions, capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]


@pytest.fixture
def cli(cli: Callable[..., Result]) -> Callable[..., Result]:
    """Run `actstore change …` in this process."""
    return functools.partial(cli, "change")


@pytest.fixture(scope="module")
def made(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, its copy in which three neurons of layer 1 read otherwise, and a store of each; one of another context."""
    root = tmp_path_factory.mktemp("change")
    tuned = shutil.copytree(tiny_model, root / "tuned")
    weights = load_file(tuned / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][[2, 5, 7]] += torch.tensor([[30.0], [20.0], [10.0]])
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    made = {"base": tiny_model, "tuned": tuned, "base-store": root / "base", "tuned-store": root / "tuned-store",
            "other-store": root / "other"}  # fmt: skip
    common: dict[str, Any] = {"options": RunOptions(memory=100_000), "max_documents": 15}
    capture(str(tiny_model), corpus, made["base-store"], context=16, **common)
    capture(str(tuned), corpus, made["tuned-store"], context=16, **common)
    capture(str(tuned), corpus, made["other-store"], context=24, **common)
    made["prompts"] = root / "prompts.jsonl"
    made["prompts"].write_text('{"prompt": "the quick brown"}\n\n{"text": "def add(a"}\n')
    return made


def test_the_changed_neurons_come_first_and_no_others_are_named(
    cli: Callable[..., Result], made: dict[str, Path]
) -> None:
    done = cli(made["base-store"], made["tuned-store"], "--share", "0.2", "--json")
    assert (done.status, done.err) == (0, "")
    value = json.loads(done.out)
    assert {row["neuron"] for row in value["neurons"]} == {"L1.N2", "L1.N5", "L1.N7"}
    scores = [row["score"] for row in value["neurons"]]
    assert scores == sorted(scores, reverse=True)
    assert value["selected"] == 3
    assert [(row["layer"], row["selected"]) for row in value["layers"]] == [(0, 0), (1, 3)]
    assert len(json.loads(cli(made["base-store"], made["tuned-store"], "-k", "2", "--json").out)["neurons"]) == 2
    shown = cli("show", made["base-store"], made["tuned-store"])
    assert "L1.N2" in shown.out
    assert "of 48 neurons" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base-store", "other-store"), "differ in the number of"),
        (("base-store", "tuned-store", "--share", "0"), "a share of all neurons, above 0"),
        (("base-store", "tuned-store", "--site", "mlp.up"), "has no site 'mlp.up'. Its sites are: mlp.post"),
        (("base-store", "tuned-store", "--positions", "generated"), "holds no generated token"),
        (("base-store", "tuned-store", "--other-capture", "b"), "has no capture 'b'"),
        (("base-store", "base"), "There is no store at"),
    ],
)
def test_what_cannot_be_compared(
    cli: Callable[..., Result], made: dict[str, Path], arguments: tuple[str, ...], message: str
) -> None:
    done = cli(*(made.get(argument, argument) for argument in arguments))
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_capture_is_not_compared_with_itself(
    cli: Callable[..., Result], made: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(made["base-store"])
    for other in (made["base-store"], f"{made['base-store']}/", tmp_path / "link"):
        for line in ((made["base-store"], other), ("patch", made["base-store"], other, made["prompts"])):
            done = cli(*line)
            assert (done.status, done.out) == (2, "")
            assert done.err == (
                f"Error: Both are capture 'corpus' of {made['base-store']}, and a comparison needs two captures: name the "
                "store of the other model, or with --other-capture another capture.\n"
            )


def test_that_nothing_differs_is_an_answer(cli: Callable[..., Result], made: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(made["base-store"], tmp_path / "copy")
    n_tokens = json.loads(cli(made["base-store"], copy, "--json").out)["tokens"]
    sentence = f"No neuron differs: both captures have the same activations at all {n_tokens:,} tokens compared."
    done = cli(made["base-store"], copy)
    assert (done.status, done.out, done.err) == (0, f"{sentence}\n", "")
    value = json.loads(cli(made["base-store"], copy, "--json").out)
    assert (value["selected"], value["neurons"], value["warnings"]) == (0, [], [sentence])
    refused = cli("patch", made["base-store"], copy, made["prompts"])
    assert (refused.status, refused.err) == (2, f"Error: {sentence} There is nothing to patch.\n")
    answer = actstore.open(made["base-store"]).change(copy)
    assert (answer.table.num_rows, answer.warnings) == (0, (sentence,))
    assert actstore.open(made["base-store"]).change(made["tuned-store"]).warnings == ()


def test_patching_the_changed_neurons_makes_the_model_the_other(
    cli: Callable[..., Result], made: dict[str, Path]
) -> None:
    asked = ("patch", made["base-store"], made["tuned-store"], made["prompts"], "--max-new-tokens", "6", "--scorer",
             "likelihood", "--random", "1", "--quiet")  # fmt: skip
    done = cli(*asked, "--json")
    assert done.status == 0, done.err
    value = json.loads(done.out)
    # One neuron in twenty of 48 is two; of the three that changed, one is left as it was.
    assert (value["prompts"], value["neurons"], value["random"][0]["neurons"]) == (2, 2, 2)
    assert [row["prompt"] for row in value["generations"]] == ["the quick brown", "def add(a"]
    every = json.loads(cli(*asked, "--share", "1", "--json").out)
    assert every["neurons"] == 3
    assert [row["patched"] for row in every["generations"]] == [row["other"] for row in every["generations"]]
    assert every["patched"]["score"] == pytest.approx(every["other"])
    shown = cli(*asked)
    assert "causal effect" in shown.out


def test_a_function_of_ones_own_scores_texts(cli: Callable[..., Result], made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text("def longer(prompt, answer):\n    return len(answer) - len(prompt)\n")
    asked = (
        "patch",
        made["base-store"],
        made["tuned-store"],
        made["prompts"],
        "--max-new-tokens",
        "6",
        "--random",
        "0",
    )
    done = cli(*asked, "--scorer", "function", "--function", f"{tmp_path / 'scores.py'}:longer", "--quiet", "--json")
    assert done.status == 0, done.err
    value = json.loads(done.out)
    store = actstore.open(made["base-store"])
    by_object = store.change.patch(
        made["tuned-store"], ["the quick brown", "def add(a"], max_new_tokens=6, random=0,
        scorer=lambda prompt, answer: float(len(answer) - len(prompt)),
    )  # fmt: skip
    assert by_object.details.first.mean() == value["model"]
    texts = [(row["prompt"], row["model"]) for row in value["generations"]]
    assert value["model"] == sum(len(answer) - len("<s>" + prompt) for prompt, answer in texts) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--other-model": "base"}, "holds another model than"),
        ({"--scorer": "regex"}, "--scorer regex needs a regular expression. Name it with --pattern."),
        ({"--pattern": "sorry"}, "--pattern is an option of --scorer regex, and --scorer is refusal."),
        ({"--scorer": "regex", "--pattern": "("}, "cannot be read"),
        ({"--scorer": "function"}, "--scorer function needs a function, as module:name. Name it with --function."),
        ({"--function": "math:hypot"}, "--function is an option of --scorer function, and --scorer is refusal."),
        ({"--scorer": "function", "--function": "math"}, "as module:function or file.py:function, found 'math'"),
        ({"--scorer": "function", "--function": "no.such:f"}, "cannot be imported (ModuleNotFoundError"),
        ({"--scorer": "function", "--function": "math:nothing"}, "math has no function 'nothing' to score with"),
        ({"--scorer": "function", "--function": "operator:add"}, "A scorer gives a number for each generation"),
        ({"--chat": ""}, "has no chat template with its tokenizer"),
        ({"--max-new-tokens": "100"}, "reads at most 64 tokens"),
        ({"prompts": "absent"}, "There is no file"),
        ({"prompts": "empty"}, "holds no prompt"),
        ({"prompts": "wrong"}, "wrong.jsonl:2 should be an object with a text"),
    ],
)
def test_what_cannot_be_patched(
    cli: Callable[..., Result], made: dict[str, Path], tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.jsonl").write_text('{"text": "a"}\n{"texts": "b"}\n')
    files = {"absent": tmp_path / "absent", "empty": tmp_path / "empty.txt", "wrong": tmp_path / "wrong.jsonl"}
    options = {k: v for k, v in changes.items() if k != "prompts"}
    given = [part for key, value in options.items() for part in (key, made.get(value, value)) if part]
    prompts = files[changes["prompts"]] if "prompts" in changes else made["prompts"]
    done = cli("patch", made["base-store"], made["tuned-store"], prompts, *given, "--quiet")
    assert (done.status, done.out) == (2, "")
    assert message in done.err


def test_comparing_stores_needs_neither_transformers_nor_torch_nor_the_models(
    run_without: Callable[..., Any], made: dict[str, Path]
) -> None:
    line = ("change", made["base-store"], made["tuned-store"], "--json")
    done = run_without(("transformers", "tokenizers", "torch"), line)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["neurons"][0]["neuron"].startswith("L1.")
