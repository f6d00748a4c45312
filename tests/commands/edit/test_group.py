"""`actstore edit`: rewritten, shown, applied, reverted and judged from the command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = Path(__file__).parents[3] / "demo" / "models" / "fact-llama"
COUNTRIES = ("Germany Berlin", "Turkey Ankara", "Egypt Cairo", "France Paris", "Japan Tokyo", "Spain Madrid")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from actstore.engine.capture.api import capture

    folder = tmp_path_factory.mktemp("edit")
    pairs = [pair.split() for pair in COUNTRIES]
    texts = [f"Question: Which country has the capital {city}?\nResponse: {country}" for country, city in pairs]
    texts += [f"Question: {city} is the capital of which country?\nResponse: {country}" for country, city in pairs]
    (folder / "facts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 2))
    capture(str(MODEL), folder / "facts.jsonl", folder / "store", sites=("mlp.post", "resid.post"))
    return folder / "store"


@pytest.fixture
def edit(cli: Callable[..., Any]) -> Callable[..., Any]:
    return partial(cli, "edit")


@pytest.fixture
def refuses(refused: Callable[..., str]) -> Callable[..., str]:
    return partial(refused, "edit")


def test_a_word_is_exchanged_without_a_model_applied_and_taken_out(
    edit: Callable[..., Any], refuses: Callable[..., str], store: Path, tmp_path: Path
) -> None:
    made = edit(
        "rewrite", store, "--from", "Germany", "--to", "Turkey", "--layers", 4, "-k", 40, "--name", "both", "--json"
    ).json
    assert (made["name"], made["form"], made["kind"], made["from"], made["to"]) == (
        "both", "least-norm", "weights", " Germany", " Turkey",
    )  # fmt: skip
    assert len(made["neurons"]) == 40
    assert made["predicted"]["won"] > 0.9
    assert "already has an edit 'both'" in refuses(
        "rewrite", store, "--from", "Germany", "--to", "Turkey", "--name", "both"
    )
    assert "both" in edit("list", store).out
    shown = edit("show", store, "both").out
    assert "margin" in shown
    assert "L4.N" in shown
    out = tmp_path / "edited"
    assert edit("apply", store, "both", "--model", MODEL, "--output", out).status == 0
    assert "already applied" in refuses("apply", store, "both", "--model", out, "--output", tmp_path / "twice")
    assert "already exists" in refuses("apply", store, "both", "--output", out)
    window, position = edit("show", store, "both", "--json").json["predicted"]["targets"][0][:2]
    said = [_said(folder, _read(store, window)[: position + 1]) for folder in (MODEL, out)]
    assert said == [" Germany", " Turkey"]
    assert edit("revert", store, "both", "--model", out, "--in-place", "--json").json["reverted"] == ["both"]
    assert (out / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    assert edit("delete", store, "both").status == 0
    assert "its edits are: none" in refuses("show", store, "both").lower()


def _read(store: Path, window: int) -> list[int]:
    """The ids of a window."""
    from actstore.store.reader import Store

    held = Store(store).capture()
    row = held.windows().slice(window, 1).to_pylist()[0]
    ids = held.plan.array("inputs/ids")[row["input_start"] : row["input_start"] + row["n_inputs"]]
    return [int(token) for token in ids]


def _said(folder: Path, ids: list[int]) -> str:
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    return str(AutoTokenizer.from_pretrained(folder).decode([token]))


def test_suppress_and_boost_are_kept_as_weights_or_as_interventions(
    edit: Callable[..., Any], refuses: Callable[..., str], store: Path
) -> None:
    assert edit("suppress", store, "--neurons", "L3.N17,L4.N2", "--json").json["neurons"] == ["L3.N17", "L4.N2"]
    one = edit("boost", store, "--neurons", "L3.N17", "--kind", "intervention", "--positions", "0,-1", "--json").json
    assert (one["kind"], one["neurons"]) == ("intervention", ["L3.N17"])
    assert "needs --kind intervention" in refuses("boost", store, "--neurons", "L3.N17", "--positions", "last")
    assert "found neuron 999" in refuses("suppress", store, "--neurons", "L3.N999")
    assert "found layer 9" in refuses("suppress", store, "--neurons", "L9.N1")
    assert "already has an edit 'suppress'" in refuses("suppress", store, "--neurons", "L3.N1")
    assert edit("suppress", store, "--neurons", "L3.N1", "--force").status == 0
    assert "is an intervention" in refuses("apply", store, "boost", "--output", "nowhere")
    assert {row["name"] for row in edit("list", store, "--json").json["edits"]} >= {"suppress", "boost"}
    judged = edit("evaluate", store, "suppress", "--max-windows", 4, "--json").json
    assert (judged["reliability"], judged["baselines"]) == (None, {})
    assert judged["locality"] > 0.5
    for name in ("suppress", "boost"):
        edit("delete", store, name)


def test_an_intervention_comes_from_a_file(
    edit: Callable[..., Any], refuses: Callable[..., str], store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"operations": [{"kind": "set", "neurons": ["L4.N1"], "positions": "last", "value": 2.5}]}')
    assert edit("add", store, path, "--name", "louder", "--json").json["neurons"] == ["L4.N1"]
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"prompt": "Question: What is the capital of France?", "kind": "text-locality"}\n')
    found = edit("evaluate", store, "louder", "--cases", cases, "--capture", "corpus", "--json").json
    assert found["reliability"] is None
    assert 0 <= found["locality"] <= 1
    assert found["baselines"] == {}
    path.write_text('{"operations": [{"kind": "set"}]}')
    assert "lacks the field 'neurons'" in refuses("add", store, path)
    edit("delete", store, "louder")


def test_evaluate_judges_and_writes_a_table(
    edit: Callable[..., Any], refuses: Callable[..., str], store: Path, tmp_path: Path
) -> None:
    edit("rewrite", store, "--from", "Germany", "--to", "Turkey", "--layers", 4, "-k", 40, "--name", "judged")
    table = tmp_path / "cases.parquet"
    found = edit("evaluate", store, "judged", "--seeds", 1, "--output", table, "--perplexity", "corpus", "--json").json
    assert found["reliability"] >= 0.9
    assert found["generality"] is None
    assert found["locality"] >= 0.95
    assert set(found["baselines"]) == {"fine-tune", "random"}
    assert found["predicted"]["targets"]["correlation"] > 0.9
    rows = pq.read_table(table).to_pylist()
    assert {row["method"] for row in rows} == {"edit", "fine-tune", "random"}
    shown = edit("evaluate", store, "judged", "--baseline", "none", "--max-windows", 6).out
    assert "text-locality" in shown
    assert "correlation" in shown
    assert "random" not in shown
    assert ".parquet or .jsonl" in refuses("evaluate", store, "judged", "--output", "rows.csv")
    assert "has no capture 'other'" in refuses("evaluate", store, "judged", "--capture", "other")
    assert "one of reliability" in refuses("evaluate", store, "judged", "--capture", "corpus=luck")
    assert "no edit" in refuses("evaluate", store, "judge").lower() or "an edit 'judge'" in refuses(
        "evaluate", store, "judge"
    )
    edit("delete", store, "judged")


def test_what_rewrite_cannot_do_is_said(refuses: Callable[..., str], store: Path) -> None:
    assert "does not occur" in refuses("rewrite", store, "--from", "lithium", "--to", "sodium")
    words = ("rewrite", store, "--from", "Germany", "--to", "Turkey")
    assert "found 9" in refuses(*words, "--layers", "9")
    assert "--steps is an option of --method fine and fine-tune, not of least-norm." in refuses(*words, "--steps", 3)
    assert "--margin is an option of --method least-norm, not of fine." in refuses(
        *words, "--method", "fine", "--margin", 3
    )


def test_a_prompt_and_a_file_of_cases_are_rewritten_and_evaluated_by_themselves(
    edit: Callable[..., Any], refuses: Callable[..., str], store: Path, tmp_path: Path
) -> None:
    prompt, target = "Question: Which country has the capital Berlin?\nResponse:", " Turkey and Japan"
    row = {"prompt": prompt, "target": target, "subject": "Berlin",
           "paraphrases": ["Question: Berlin is the capital of which country?\nResponse:"],
           "locality": [{"prompt": "Question: Which country has the capital Paris?\nResponse:", "answer": " France"}],
           "generation": [prompt]}  # fmt: skip
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"target": " Spain"}) + "\n")
    options = ("--layers", 4, "-k", 40)
    made = edit("rewrite", store, "--cases", path, "--row", 1, *options, "--name", "file", "--json").json
    assert made["requests"] == [{"prompts": [prompt], "target": target, "subject": "Berlin"}]
    said = edit("rewrite", store, "--prompt", prompt, "--target", target, "--subject", "Berlin", *options).out
    assert "The target should now win at 100" in said
    assert "Turkey and Japan-least-norm" in edit("list", store).out
    judged = edit("evaluate", store, "file", "--baseline", "none", "--json").json
    assert (judged["reliability"], judged["locality"]) == (1.0, 1.0)
    assert judged["by_kind"]["text-generality"]["cases"] == 1
    assert judged["fluency"] >= 0
    assert judged["portability"] is None
    shown = edit("evaluate", store, "file", "--baseline", "none", "--cases", path, "--row", 1).out
    assert "n-gram entropy (1)" in shown
    apart = edit(
        "evaluate", store, "file", "--capture", "corpus", "--answers-after", "Response:", "--baseline", "none"
    ).out
    assert "inside questions: text-locality" in apart
    assert "--prompt needs a --target" in refuses("rewrite", store, "--prompt", "a")
    assert "one of the two" in refuses("rewrite", store, "--prompt", "a", "--target", "b", "--cases", path)
    assert "--from and --to" in refuses("rewrite", store)
    assert "rows 1 to 2, found 7. Check --row" in refuses("rewrite", store, "--cases", path, "--row", 7)
    for name in ("file", "Turkey and Japan-least-norm"):
        edit("delete", store, name)


def test_a_misspelt_subcommand_is_no_store(cli: Callable[..., Any], store: Path) -> None:
    done = cli("multimodal", "shwo", store)
    assert done.status == 2
    assert done.err == "Error: No such command 'shwo', and no such store. Did you mean show?\n"


@pytest.mark.slow
def test_nothing_but_learning_and_judging_needs_transformers(run_without: Callable[..., Any], store: Path) -> None:
    asked = ["edit", "rewrite", store, "--from", "Germany", "--to", "Turkey", "-k", 5]
    done = run_without(
        ["transformers", "tokenizers"],
        [*asked, "--layers", "4", "--name", "offline"],
        [*asked[:-2], "--method", "knowledge", "--neurons", "L4.N7", "--name", "off-k"],
        ["edit", "suppress", store, "--neurons", "L1.N1", "--name", "off-s"],
        ["edit", "list", store],
        ["edit", "show", store, "offline"],
        *(["edit", "delete", store, name] for name in ("offline", "off-k", "off-s")),
    )
    assert done.returncode == 0, done.stderr
    assert "offline" in done.stdout
