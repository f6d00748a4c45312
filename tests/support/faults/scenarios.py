"""The commands under faults, the states that they start from, and the inputs of all: tiny models, texts, questions, pictures.

A scenario runs in a folder of its own: `store`, `source` where that is a copy, `model` where a command edits one in place,
`output` for what it writes elsewhere. Shared inputs lie beside and are never written to.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.client import Ended, Server

CAPTURE = "capture {model} {corpus} {store} --quiet --label language --context 32 --memory 100kB"
ATTRIBUTE = "attribute {model} {questions} {store} --name questions --steps 2"
SAMPLE = "graphs probe {store} --capture corpus --sample 100 --window 16 --quiet"
SUPPRESS = "edit suppress {store} --neurons L0.N1,L0.N20,L1.N3"
IN_PLACE = "suppress --model {copy} --in-place"


@dataclass(frozen=True)
class Scenario:
    """A command and the state it starts from; `again`: what is added to the command to run it after a fault, in turn."""

    name: str
    start: str
    command: str
    again: tuple[str, ...] = ("",)
    half: bool = False
    """Whether it starts where a kill at half of its changes left off, and continues from there."""

    @property
    def run(self) -> str:
        """The command that faults are about."""
        return f"{self.command} {self.again[0]}" if self.half else self.command


RESUME = ("--resume", "")
FORCE = ("", "--force")
SCENARIOS = (
    Scenario("capture", "empty", CAPTURE, RESUME),
    Scenario("capture int8", "empty", f"{CAPTURE} --precision int8", RESUME),
    Scenario("capture --bundle", "empty", f"{CAPTURE} --precision int8 --bundle", RESUME),
    Scenario("capture sparse", "empty", f"{CAPTURE} --precision sparse", RESUME),
    Scenario("capture none", "empty", f"{CAPTURE} --precision none", RESUME),
    Scenario("capture into a store", "captured", f"{CAPTURE} --name second --max-tokens 300", RESUME),
    Scenario("capture --resume", "empty", f"{CAPTURE} --precision half", RESUME, half=True),
    Scenario(
        "capture images",
        "empty",
        "capture {vision} {pictures} {store} --generate --max-new-tokens 4 --quiet --memory 100kB",
        RESUME,
    ),
    Scenario("attribute", "captured", ATTRIBUTE, RESUME),
    Scenario("graphs build", "captured", "graphs build {store} --neurons L0.N3,L1.N7,L1.N9 --quiet", RESUME),
    Scenario(
        "graphs probe",
        "graphed",
        "graphs probe {store} --neurons L0.N3,L1.N7 --exemplars 4 --substitutes 1 --capture corpus --quiet",
        RESUME,
    ),
    Scenario("graphs probe --sample", "captured", SAMPLE, RESUME),
    Scenario("contributions --fill-top-tokens", "captured", "contributions {store} --fill-top-tokens --quiet"),
    Scenario("edit suppress", "captured", SUPPRESS, FORCE),
    Scenario("edit rewrite", "captured", "edit rewrite {store} --from fox --to dog -k 8 --quiet", FORCE),
    Scenario("edit delete", "edited", "edit delete {store} boost"),
    Scenario("edit apply", "edited", "edit apply {store} suppress --model {copy} --output {output}/model", FORCE),
    Scenario("edit apply --in-place", "edited", f"edit apply {{store}} {IN_PLACE}"),
    Scenario("edit revert --in-place", "applied", f"edit revert {{store}} {IN_PLACE}"),
    Scenario("export", "captured", "export {store} --output {output}/values.parquet --neurons L0.N3 --quiet", FORCE),
    Scenario("naica --output", "asked", "naica {store} --by relation --output {output}/layers.svg --quiet"),
    Scenario("copy", "to be copied", "copy {source} {store} --quiet"),
    Scenario("reorder", "captured", "reorder {store} --order mlp.post=token,resid.post=neuron --quiet"),
    Scenario("info", "captured", "info {store} --json"),
    Scenario("verify", "captured", "verify {store} --quiet"),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

CAPTURE_BOTH = f"{CAPTURE} --site mlp.post --site resid.post"
RICH = (
    ATTRIBUTE,
    f"{CAPTURE} --name int8 --precision int8 --max-tokens 300",
    f"{CAPTURE} --name sparse --precision sparse --max-tokens 300",
    f"{CAPTURE} --name bundled --precision int8 --max-tokens 300 --bundle",
    f"{CAPTURE} --name also-bundled --precision half --max-tokens 300 --bundle",
    "graphs build {store} --capture corpus --neurons L0.N3,L1.N7 --quiet",
    SAMPLE,
    SUPPRESS,
    "edit boost {store} --neurons L1.N5 --name boost --kind intervention",
)
GRAPHS = ("graphs build {store} --neurons L0.N3,L1.N7 --quiet",)
SMALL = (f"{CAPTURE} --precision int8 --max-tokens 300", SUPPRESS)
PLAN = f"{CAPTURE.replace('capture', 'plan', 1)} --precision int8"
STATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ()),
    "planned": ("empty", (PLAN,)),
    "captured": ("empty", (CAPTURE_BOTH,)),
    "graphed": ("captured", ("graphs build {store} --neurons L0.N3,L1.N7 --quiet",)),
    "asked": ("captured", (f"{ATTRIBUTE} --label relation",)),
    "edited": ("captured", (SUPPRESS, "edit boost {store} --neurons L1.N5 --name boost")),
    "applied": ("edited", (f"edit apply {{store}} {IN_PLACE}",)),
    "to be copied": ("empty", tuple(line.replace("{store}", "{source}") for line in (*SMALL, *GRAPHS))),
    "rich": ("captured", RICH),
    "small": ("empty", SMALL),
}
for name, lines in (("rich", (CAPTURE_BOTH, *RICH)), ("small", SMALL)):
    STATES[f"{name}, foreign"] = ("empty", tuple(line.replace("{model}", "{other}") for line in lines))
    STATES[f"{name}, older"] = ("empty", tuple(line.replace("{corpus}", "{older}") for line in lines))
"""State → the state before, and the commands that lead from one to the other."""


def make_inputs(folder: Path, *, vision: bool) -> None:
    """Models, texts, questions and pictures in a new folder; runs in a child of the server, which has the libraries."""
    from tiny_text import make_texts, save_llama, save_tokenizer

    folder.mkdir(parents=True)
    for name, seed in (("model", 0), ("other-model", 1)):
        save_llama(folder / name, seed, max_position_embeddings=128)
        save_tokenizer(folder / name)
        _say_fox(folder / name)
    rows = [{"text": text, "language": ["en", "fr", "py"][i % 3]} for i, text in enumerate(make_texts(24))]
    for name, documents in (("corpus", rows), ("older", rows[::-1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
    questions = {
        f"q{i}": {
            "sentences": [f"{sentence}?\n A. fox\n B. dog\nResponse:" for sentence in texts],
            "obj_label": ["A", "B"],
            "relation": ["animal", "number"][i % 2],
        }
        for i, texts in enumerate((("the quick brown", "the lazy"), ("one two", "three four")))
    }
    (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    if vision:
        from tiny_vision import tiny_vision_model

        tiny_vision_model("llava", folder / "vision")
        _draw_pictures(folder / "pictures")


def _say_fox(folder: Path) -> None:
    """A word that the model says, to be exchanged; the weights in several files, as those of larger models are."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fox = AutoTokenizer.from_pretrained(folder).encode(" fox")[-1]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[fox] *= 10
    for file in folder.glob("model*.safetensors"):
        file.unlink()
    model.save_pretrained(folder, max_shard_size="40kB")


def _draw_pictures(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    chance = np.random.default_rng(0)
    with (folder / "images.jsonl").open("w", encoding="utf-8") as file:
        for i in range(4):
            Image.fromarray(chance.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
            file.write(json.dumps({"image": f"{i}.png", "prompt": "describe it"}) + "\n")


class Workshop:
    """Inputs, states as they were made once, and folders to run scenarios in."""

    def __init__(self, server: Server, folder: Path, *, vision: bool = False) -> None:
        """Make the inputs below `folder`."""
        self.server, self.folder = server, folder
        self.inputs = folder / "inputs"
        made = server.run("faults.scenarios:make_inputs_at", str(self.inputs), vision, timeout_s=300)
        if made.status:
            raise RuntimeError(made.err)
        server.warm([self.inputs / name for name in ("model", "vision") if (self.inputs / name).is_dir()])
        self.states: dict[str, Path] = {}

    def words(self, command: str, work: Path, store: str | None = None) -> list[str]:
        """A command line in a folder, whose store is elsewhere where `store` says so."""
        own = {
            "store": store or work / "store", "source": work / "source", "copy": work / "model", "output": work / "output",
        }  # fmt: skip
        shared = {
            "model": "model", "other": "other-model", "vision": "vision", "corpus": "corpus.jsonl", "older": "older.jsonl",
            "questions": "questions.json", "pictures": "pictures",
        }  # fmt: skip
        places = own | {name: self.inputs / file for name, file in shared.items()}
        return [word.format_map(places) for word in command.split()]

    def cli(self, command: str, work: Path, *, store: str | None = None, **how: Any) -> Ended:
        """Run a command line in a folder, which is the one that faults are about."""
        return self.server.cli(self.words(command, work, store), folder=work, **how)

    def state(self, name: str) -> Path:
        """A folder as the commands of a state left it; it is copied, never changed."""
        if name not in self.states:
            before, commands = STATES[name]
            # States are made where scenarios run, for a store keeps the paths of its inputs.
            work = self.fresh(before) if before else self.folder / "work"
            if not before:
                shutil.rmtree(work, ignore_errors=True)
                (work / "output").mkdir(parents=True)
                shutil.copytree(self.inputs / "model", work / "model")
            for command in commands:
                done = self.cli(command, work, timeout_s=600)  # the first run of a kernel compiles it
                if done.status:
                    raise RuntimeError(f"{command}: {done.err}")
            shutil.copytree(work, self.folder / "states" / name)
            self.states[name] = self.folder / "states" / name
        return self.states[name]

    def fresh(self, name: str) -> Path:
        """A folder in this state, to run in; there is one at a time."""
        state, work = self.state(name), self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(state, work)
        return work


def make_inputs_at(folder: str, vision: bool) -> None:
    """`make_inputs`, called with what JSON can hold."""
    make_inputs(Path(folder), vision=vision)


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder by its relative name, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path
