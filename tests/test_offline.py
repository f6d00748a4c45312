"""Everything that reads a store works where transformers is not installed and the model's folder is gone.

A store holds a capture with labels and one of questions; a second is of the same plan through a changed model; a third holds
captions of images, and answers. The models' folders are removed before anything is asked. What runs a model (`attribute`, the
evaluations) is not asked here. What asks for no weights works where torch is not installed either.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vision import tiny_vision_model

import actstore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WITHOUT = ("transformers", "tokenizers", "datasets", "accelerate")
LAUNCH = """
import contextlib, io, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in without:
            raise ImportError(f"{name} is not installed here")

without = set(sys.argv[1:])
sys.meta_path.insert(0, Blocked())
from actstore import cli

for arguments in json.loads(sys.stdin.read()):
    sys.argv = ["actstore", *arguments, "--json"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        cli.terminal.out.file = shown
        status = cli._run(cli.application())
    print(json.dumps([status, shown.getvalue()]), flush=True)
"""

OF_CAPTIONS = ("--capture", "captions", "--nouns", "content")
COMMANDS: dict[str, tuple[str, ...]] = {
    "info": ("info", "STORE"),
    "verify": ("verify", "STORE"),
    "stats": ("stats", "STORE", "--capture", "corpus", "--by", "language"),
    "top": ("top", "STORE", "L1.N3", "--capture", "corpus"),
    "sql": ("sql", "STORE", "select count(*) as n from queries", "--capture", "questions"),
    "export": ("export", "STORE", "--output", "neurons.parquet", "--neurons", "L0.N1", "--capture", "corpus"),
    "contributions": ("contributions", "STORE", "--target", " fox", "--capture", "corpus"),
    "at a place": ("contributions", "STORE", "--at", "0:5", "--capture", "corpus"),
    "by label": ("contributions", "STORE", "--next-tokens", "--by", "language", "--capture", "corpus"),
    "naica": ("naica", "STORE", "--output", "layers.svg", "--by", "topic"),
    "naica by contribution": ("naica", "STORE", "--attribution", "contribution"),
    "knowledge": ("knowledge", "STORE"),
    "selectivity": ("selectivity", "STORE", "--by", "language", "--capture", "corpus"),
    "change": ("change", "STORE", "OTHER", "--capture", "corpus"),
    "coverage": ("coverage", "STORE", "--capture", "corpus", "--reference", "corpus"),
    "coactivation": ("coactivation", "STORE", "L1.N3", "--capture", "corpus"),
    "coactivations": ("coactivation", "STORE", "--capture", "corpus", "-k", "3", "--output", "nearest.parquet"),
    "graph build": ("graphs", "build", "STORE", "--capture", "corpus"),
    "graph show": ("graphs", "show", "STORE", "L1.N3", "--output", "neuron.svg"),
    "graph search": ("graphs", "search", "STORE", "--activating", "fox"),
    "graph similar": ("graphs", "similar", "STORE", "L1.N3"),
    "graph repeats": ("graphs", "repeats", "STORE", "--capture", "corpus"),
    "graph evaluate": ("graphs", "evaluate", "STORE", "--capture", "corpus", "--exemplars", "6", "--ordinary", "4"),
    "graph tables": ("sql", "STORE", "select * from graph_lines limit 3", "--capture", "corpus"),
    "probe": ("coverage", "probe", "STORE", "--capture", "corpus", "--by", "language", "--positive", "fr"),
    "multimodal": ("multimodal", "IMAGES", *OF_CAPTIONS, "--output", "maps"),
    "multimodal properties": ("multimodal", "properties", "IMAGES", *OF_CAPTIONS, "-k", "3", "--regions", "none"),
    "edit rewrite": ("edit", "rewrite", "IMAGES", "--from", "or", "--to", "z", "--capture", "answers"),
    "edit suppress": ("edit", "suppress", "IMAGES", "--neurons", "L0.N1", "--name", "quiet"),
    "edit list": ("edit", "list", "IMAGES"),
}
"""What is asked, by what it is called here; the model-free face of the program."""

LIGHT = {
    "info of images": ("info", "IMAGES"),
    "verify images": ("verify", "IMAGES"),
    "top of images": ("top", "IMAGES", "L0.N1", "--capture", "captions"),
    "stats of images": ("stats", "IMAGES", "--capture", "captions"),
    "sql on images": ("sql", "IMAGES", "select prompt, caption from documents", "--capture", "captions"),
    "export of images": (
        "export",
        "IMAGES",
        "--output",
        "neuron.parquet",
        "--neurons",
        "L0.N1",
        "--capture",
        "answers",
    ),
    "multimodal map": (
        "multimodal",
        "map",
        "IMAGES",
        "L0.N1",
        "--document",
        "1",
        "--output",
        "map.png",
        *OF_CAPTIONS[:2],
    ),
}
"""What needs neither torch nor the pictures' model."""

KEYS = {
    "info": "captures", "verify": "ok", "stats": "neurons", "top": "exemplars", "sql": "rows", "export": "bytes",
    "contributions": "neurons", "at a place": "neurons", "by label": "labels", "naica": "queries",
    "naica by contribution": "queries", "knowledge": "queries", "selectivity": "labels", "change": "neurons",
    "coactivation": "neurons", "coactivations": "neurons", "coverage": "criteria",
    "probe": "layers", "graph build": "nodes", "graph show": "lines", "graph search": "neurons",
    "graph similar": "neurons", "graph repeats": "neurons", "graph evaluate": "baselines", "graph tables": "rows",
    "multimodal": "captions", "multimodal properties": "rankings", "edit rewrite": "predicted", "edit suppress": "neurons",
    "edit list": "edits", "info of images": "captures", "verify images": "ok", "top of images": "exemplars",
    "stats of images": "neurons", "sql on images": "rows", "export of images": "bytes", "multimodal map": "patches",
}  # fmt: skip
"""A key of each answer that must hold something."""


@pytest.fixture(scope="module")
def answers(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Any]]:
    """What every command gave, in a process that knows neither transformers nor the models."""
    folder = tmp_path_factory.mktemp("offline")
    model, changed = folder / "model", folder / "changed"
    for copy in (model, changed):
        shutil.copytree(tiny_model, copy)
    weights = load_file(changed / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1.5
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    settings: dict[str, Any] = {"context": 32, "max_tokens": 900, "label_columns": ("language",)}
    for source, store in ((model, "STORE"), (changed, "OTHER")):
        actstore.capture(str(source), corpus, folder / store, **settings)
    questions = folder / "questions.jsonl"
    rows = [
        {
            "question": f"Which is {i}?",
            "options": ["fox", "dog", "chien", "ten"],
            "answer": "ABCD"[i % 4],
            "topic": f"t{i % 2}",
        }
        for i in range(8)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    actstore.attribute(str(model), questions, folder / "STORE", steps=4)
    seeing, pictures = tiny_vision_model("llava", folder / "llava"), draw(folder / "pictures")
    actstore.capture(str(seeing), pictures, folder / "IMAGES", name="captions")
    answered: dict[str, Any] = {"generate": True, "max_new_tokens": 6, "sites": ("mlp.post", "resid.post")}
    held = actstore.capture(str(seeing), pictures, folder / "IMAGES", name="answers", **answered)
    said = "".join(held.documents()["caption"].to_pylist())
    assert "or" in said, f"the model is to say the word that is rewritten, and says {said!r}"
    for source in (model, changed, questions, seeing):
        shutil.rmtree(source) if source.is_dir() else source.unlink()
    return ask(folder, COMMANDS, WITHOUT) | ask(folder, LIGHT, (*WITHOUT, "torch"))


def ask(folder: Path, commands: Mapping[str, Sequence[str]], without: Sequence[str]) -> dict[str, tuple[int, Any]]:
    """Status and answer of each command, in one process without some packages."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, *without], input=json.dumps(list(commands.values())), cwd=folder, capture_output=True,
        text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands), done.stderr
    found = {}
    for name, line in zip(commands, lines, strict=True):
        status, out = json.loads(line)
        found[name] = status, json.loads(out) if status == 0 else done.stderr
    return found


def draw(folder: Path) -> Path:
    """A few pictures with what is said of them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "images.jsonl").open("w", encoding="utf-8") as file:
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
            row = {"image": f"{i}.png", "prompt": "describe it", "caption": "a red circle"}
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.mark.parametrize("name", [*COMMANDS, *LIGHT])
def test_a_store_answers_without_model_and_transformers(name: str, answers: dict[str, tuple[int, Any]]) -> None:
    status, value = answers[name]
    assert status == 0, value
    assert value[KEYS[name]], sorted(value)
