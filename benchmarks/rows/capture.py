"""Capturing a whole model against the bare forward pass, against hooks with numpy.save, and against the peers.

The model is a Llama of 6 layers, width 512 and 1,536 neurons per layer with random weights: what it computes does not change
how long it takes, and random activations compress worse than a trained model's. The peers need an environment of
their own, which `make peers` installs; without it their rows are left out.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actstore.engine.capture.block_filler import fill_blocks
from actstore.engine.capture.progress import CaptureProgress
from actstore.engine.models.load import LoadedModel, load_model
from actstore.store import layout
from actstore.store.capture.plan import PlannedWindow, PlanWriter
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.files.precision import PRECISIONS
from actstore.store.files.records import CaptureRecord, PlanRecord
from actstore.store.model import root
from actstore.store.storage.folder import Folder
from benchmarks.registry import Candidate, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
LAYERS, D_MODEL, NEURONS, VOCABULARY = 6, 512, 1536, 4096
WINDOW, BATCH_WINDOWS, BLOCK = 256, 8, 16_384
LABELS = (("half", "even"), ("half", "odd"))


@contextmanager
def work_folder() -> Iterator[Path]:
    """A temporary folder with the model in `model`."""
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as name:
        folder = Path(name)
        make_model(folder)
        # TransformerLens needs a tokenizer; this one has the 4,096 tokens of `VOCABULARY`.
        for file in ROOT.glob("demo/models/stdlib-llama/tokenizer*"):
            shutil.copy(file, folder / "model")
        yield folder


def make_model(folder: Path, *, n_layers: int = LAYERS, d_model: int = D_MODEL, n_neurons: int = NEURONS) -> None:
    """A Llama with random weights in `folder`/model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=d_model, intermediate_size=n_neurons, num_hidden_layers=n_layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def make_ids(n_tokens: int) -> Tensor:
    """Random tokens [window, position]."""
    return torch.randint(0, VOCABULARY, (n_tokens // WINDOW, WINDOW), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Bench:
    """A model, the tokens it reads, and the folder it may write to."""

    folder: Path
    model: LoadedModel
    ids: Tensor
    block: int = BLOCK

    @property
    def decoder(self) -> nn.Module:
        """The model without its head, which no capture needs."""
        decoder: nn.Module = self.model.model.model  # type: ignore[assignment]
        return decoder

    def forward(self) -> None:
        """The bare forward pass, batch by batch."""
        with torch.inference_mode():
            for batch in self.ids.split(BATCH_WINDOWS):
                self.decoder(input_ids=batch, use_cache=False)

    def plan(self, precision: str) -> tuple[Folder, CaptureRecord]:
        """A planned capture of all layers, with two labels and twenty exemplars per neuron."""
        folder = Folder(self.folder / precision, read_only=False)
        block = min(self.block, self.ids.numel())
        n_blocks = self.ids.numel() // block
        plan = PlanWriter(folder, "corpus", block, {})
        plan.add_document({"source": "synthetic", "sha256": "", "n_tokens": self.ids.numel()})
        everywhere, text = np.arange(WINDOW, dtype=np.int32), np.full(WINDOW, layout.TEXT, np.uint8)
        windows = [
            PlannedWindow(0, row.astype(np.int32), everywhere, text, (i % 2,)) for i, row in enumerate(self.ids.numpy())
        ]
        batches = [windows[i : i + BATCH_WINDOWS] for i in range(0, len(windows), BATCH_WINDOWS)]
        per_block = len(batches) // n_blocks
        for i in range(n_blocks):
            plan.add_block(batches[i * per_block : (i + 1) * per_block])
        fingerprint = plan.close(LABELS)
        record = CaptureRecord(
            "corpus", root.now(), root.written_by(), "none", "float32", precision,
            {"mlp.post": {str(layer.layer): layer.neurons for layer in self.model.spec.layers}}, (), None, 20, {},
            PlanRecord(
                fingerprint, "synthetic", "", "", {}, ("half",), LABELS, 1, plan.n_windows, plan.n_tokens, block, n_blocks
            ),
            compression=PRECISIONS[precision].default_compression,
        )  # fmt: skip
        record = create_capture(folder, record)
        return folder, record

    def capture(self, precision: str) -> Callable[[], None]:
        """A function that fills, encodes, writes and commits every block of a capture and adds up its statistics."""
        folder, record = self.plan(precision)

        def run() -> None:
            running = RunningStatistics(folder, record)
            with CaptureWriter(folder, record, n_threads=os.cpu_count() or 2, overlap=False) as writer:
                writer.running = running
                fill_blocks(folder, record, self.model, writer, list(range(record.plan.n_blocks)), CaptureProgress())
            running.advance()

        return run

    def hooks(self) -> None:
        """The usual script: a hook on every down_proj, float16, `numpy.save` of each layer of each batch; no statistics."""
        target = self.folder / "hooks"
        target.mkdir(exist_ok=True)
        batch_number = itertools.count()

        def hook(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, inputs: np.save(target / f"{batch}-{layer}.npy", inputs[0].half().numpy())

        with torch.inference_mode(), ExitStack() as stack:
            layers: Any = self.decoder.layers
            for i, layer in enumerate(layers):
                stack.callback(layer.mlp.down_proj.register_forward_pre_hook(hook(i)).remove)
            for windows in self.ids.split(BATCH_WINDOWS):
                batch = next(batch_number)
                self.decoder(input_ids=windows, use_cache=False)


@contextmanager
def prepare(quick: bool) -> Iterator[dict[str, Candidate]]:
    """One block of 16,384 tokens, files in the page cache."""
    with work_folder() as folder:
        bench = Bench(folder, load_model(folder / "model"), make_ids(4096 if quick else BLOCK))
        yield {
            BARE: Candidate(bench.forward),
            "actstore, statistics only": Candidate(bench.capture("none")),
            "actstore, float16 and statistics": Candidate(bench.capture("half")),
            "actstore, float32 and statistics": Candidate(bench.capture("exact")),
            "actstore, int8 and statistics": Candidate(bench.capture("int8")),
            "hooks and numpy.save of float16, no statistics": Candidate(bench.hooks),
        }


class Peers:
    """A process in an environment of peers that runs jobs by name, one per line of input."""

    def __init__(self, python: Path, script: str, *arguments: object) -> None:
        command = [python, Path(__file__).with_name(script), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.names: list[str] = json.loads(self._answer())

    def run(self, name: str) -> None:
        """Run one job and wait for its end."""
        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)
        if self._answer() != "done":
            raise RuntimeError(f"{name} failed in the peers' environment")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def prepare_peers(quick: bool) -> Iterator[dict[str, Candidate]]:
    """The same model in another process, 4,096 tokens: delphi holds 28 bytes per value until it saves."""
    with work_folder() as folder, ExitStack() as stack:
        torch.save(make_ids(2048 if quick else 4096), folder / "ids.pt")
        peers = Peers(PEERS, "peers.py", folder)
        stack.callback(peers.close)
        bench = Bench(folder, load_model(folder / "model"), make_ids(2048 if quick else 4096))
        yield {
            BARE: Candidate(bench.forward),
            "actstore, float16 and statistics": Candidate(bench.capture("half")),
            **{name: Candidate(lambda name=name: peers.run(name)) for name in peers.names},  # type: ignore[misc]
        }


BARE = "bare forward pass"
TESTS = ("tests/engine/capture", "tests/store")
SHAPE = f"{LAYERS} layers × {D_MODEL} × {NEURONS:,} Llama, {WINDOW}-token windows"
ROWS = (
    Row(f"capture, {SHAPE}", prepare, TESTS, repeats=9),
    *((Row(f"capture beside the peers, {SHAPE}", prepare_peers, TESTS, repeats=5),) if PEERS.exists() else ()),
)
SKIPPED = (
    {}
    if PEERS.exists()
    else {"capture beside the peers": "capture beside TransformerLens and delphi: `make peers` installs them"}
)
