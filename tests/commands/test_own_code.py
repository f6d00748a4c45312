"""A model that brings its own code: captured, and then run again by every kind of command that needs it."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import actstore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

CODE = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OwnConfig(PreTrainedConfig):
    model_type = "own-of-the-tests"
    vocab_size: int = 400
    hidden_size: int = 16
    max_position_embeddings: int = 64
    num_hidden_layers: int = 2


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.q, self.k, self.v, self.o = nn.LayerNorm(d), *(nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 24), nn.Linear(24, d)

    def forward(self, x):
        y = self.norm(x)
        a = nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y), is_causal=True)
        x = x + self.o(a)
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None, **_):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return CausalLMOutput(logits=self.head(self.norm(x)))
"""
AUTO = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder with its own code, and the tiny model's tokenizer; transformers copies the code to `tmp_path`."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    folder = tmp_path / "own-model"
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / file, folder)
    (folder / "own.py").write_text(CODE)
    config = {
        "model_type": "own-of-the-tests",
        "auto_map": AUTO,
        "architectures": ["OwnForCausalLM"],
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(0)
    linear = {"q": (16, 16), "k": (16, 16), "v": (16, 16), "o": (16, 16), "up": (24, 16), "down": (16, 24)}
    shapes = {f"layers.{i}.{name}.weight": shape for i in range(2) for name, shape in linear.items()}
    shapes |= {f"layers.{i}.{name}.bias": shape[:1] for i in range(2) for name, shape in linear.items()}
    norms = ("layers.0.norm", "layers.1.norm", "norm")
    shapes |= {f"{norm}.{part}": (16,) for norm in norms for part in ("weight", "bias")}
    shapes |= {"embed.weight": (400, 16), "head.weight": (400, 16)}
    weights = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


def test_a_class_that_transformers_cannot_generate_with(
    cli: Callable[..., Result], refused: Callable[..., str], own_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    store, trust = tmp_path / "store", ("--trust-remote-code", "--quiet")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def f(x):")
    generated = cli("capture", own_model, prompts, store, "--generate", "--max-new-tokens", 3, *trust)
    assert generated.status == 0, generated.err  # by its forward pass alone
    assert cli("edit", "suppress", store, "--neurons", "L0.N1", "--name", "off").status == 0
    cases = tmp_path / "cases.jsonl"
    cases.write_text(
        "".join(
            json.dumps({"prompt": "def", "target": " f", "kind": kind}) + "\n"
            for kind in ("reliability", "text-locality")
        )
    )
    evaluate = ("edit", "evaluate", store, "off", "--cases", cases, *trust)
    assert cli(*evaluate).status == 0
    assert "cannot generate: its class OwnForCausalLM is no GenerationMixin" in refused(*evaluate, "--generate")
    model = AutoModelForCausalLM.from_pretrained(own_model, trust_remote_code=True)
    windows = pa.table({"ids": [[4, 5, 6, 7], [8, 9, 10]]})
    pq.write_table(windows, tmp_path / "ids.parquet")
    capture = actstore.capture(model, tmp_path / "ids.parquet", tmp_path / "of-ids", ids_column="ids")
    assert capture.record.plan.n_tokens == 7


@pytest.mark.slow
def test_every_command_that_runs_it_again_can_be_told_to_run_its_code(
    cli: Callable[..., Result], refused: Callable[..., str], own_model: Path, corpus: Path, tmp_path: Path
) -> None:
    store, edited = tmp_path / "store", tmp_path / "edited"
    trust = "--trust-remote-code"
    capture = ("capture", own_model, corpus, store, "--max-tokens", 500, "--label", "language")
    made = cli(*capture, trust)
    assert made.status == 0, made.err
    suppress = cli("edit", "suppress", store, "--neurons", "L0.N1,L1.N3", "--name", "off")
    assert suppress.status == 0, suppress.err
    commands: list[tuple[object, ...]] = [
        ("inspect", own_model),
        (*capture, "--resume"),
        ("verify", store, "--refill", 1),
        ("edit", "evaluate", store, "off"),
        ("edit", "apply", store, "off", "--output", edited),
        ("edit", "revert", store, "off", "--model", edited, "--in-place"),
    ]
    for command in commands:
        said = refused(*command)
        assert "brings its own code: read that code, then pass --trust-remote-code to run it." in said, command
        done = cli(*command, trust)
        assert done.status == 0, (command, done.err)
    assert (edited / "model.safetensors").read_bytes() == (own_model / "model.safetensors").read_bytes()
    refilled = cli("verify", store, "--refill", 1, trust, "--json").json
    assert [row["largest_difference"] for row in refilled["refilled"]] == [0]
