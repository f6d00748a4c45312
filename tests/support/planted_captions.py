"""A capture of images with captions, planted without a model: every id, activation, weight and patch is chosen here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores as stores
import pyarrow as pa
import torch

from actstore.kernels.pack import naive
from actstore.kernels.pack.columns import Columns
from actstore.store import layout
from actstore.store.capture.patches import PATCHES, PatchesWriter
from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.statistics.capture_statistics import CaptureStatistics
from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.files.records import LayerRecord, PlanRecord
from actstore.store.model import root
from actstore.store.model.directions import WriteDirections
from actstore.store.model.top_tokens import find_top_tokens, token_names, top_columns
from actstore.store.model.weights import write_weights
from actstore.store.reader import Capture, Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PIECES = [
    "<s>", "</s>", "<image>", " a", " red", " green", " cir", "cle", " square", " and", " with", ".", " is", " there",
    " the", " left", "é", b"\xe2\x9c", b"\x93", "two", " star", " Red", "s", " photo", ":",
]  # fmt: skip
N_TOKENS = len(PIECES)
IDS = {piece: i for i, piece in enumerate(PIECES)}
LANGUAGE, VISION = (5, 40), 6
SIDE = 3
"""Patches a side of every image."""
PROMPT = (" a", " photo", ":")
D = 8


def ids_of(*pieces: Any) -> list[int]:
    return [IDS[piece] for piece in pieces]


CAPTIONS = [
    ids_of(" a", " red", " cir", "cle", " and", " a", " green", " square", ".", "</s>"),
    ids_of(" there", " is", " a", " green", " cir", "cle", "s", " with", " a", " green", " star"),
    ids_of(" a", " Red", " square", b"\xe2\x9c", b"\x93", " star", "</s>"),
    ids_of(" is", " the", "."),
    ids_of(" a", " cir", "cle", " and", " the", " cir", "cle"),
]
"""Repeats, a noun of two tokens, another that begins with these, a character of two tokens, one without a noun."""


@dataclass(frozen=True)
class PlantedCaptions:
    """What to plant."""

    captions: Sequence[Sequence[int]] = field(default_factory=lambda: CAPTIONS)
    kept: Callable[[int, int], NDArray[np.int32]] = field(default=lambda n, n_prompt: np.arange(n, dtype=np.int32))
    """(positions, of which in the prompt) → those kept."""
    values: Callable[[NDArray[np.float32], str, int], NDArray[np.float32]] = field(
        default=lambda values, site, layer: values
    )
    images: Sequence[str] | None = None
    size: tuple[int, int] = (30, 24)
    box: Callable[[int, int], tuple[float, float, float, float]] = field(
        default=lambda r, c: (c / SIDE, r / SIDE, (c + 1) / SIDE, (r + 1) / SIDE)
    )
    sites: tuple[str, ...] = ("mlp.post", "mlp.gate")
    precision: str = "exact"
    n_prompt: bool = True
    """Whether documents say where their answers begin."""
    centres: bool = False
    block_slots: int = 64
    seed: int = 0
    top_tokens: bool = True


def make_weights(seed: int) -> dict[str, Any]:
    """Write vectors by layer, unembedding and gain."""
    generator = torch.Generator().manual_seed(seed + 7)
    layers = {i: torch.randn(n, D, generator=generator) for i, n in enumerate((*LANGUAGE, VISION))}
    return {
        "layers": layers,
        "unembedding": torch.randn(N_TOKENS, D, generator=generator),
        "gain": torch.rand(D, generator=generator) + 0.5,
    }


def plant_captions(where: str | Path, name: str = "images", **what: Any) -> tuple[Capture, dict[str, Any]]:
    """The capture, and what was planted: weights, and values by (site, layer) as [neuron, token of the tokens table]."""
    asked = replace(PlantedCaptions(), **what)
    folder = Folder(where, read_only=False)
    windows, rows, patches = _plan(asked)
    settings = {"block_slots": asked.block_slots, "positions": "all"}
    writer = PlanWriter(folder, name, asked.block_slots, settings)
    for row in rows:
        writer.add_document(row)
    blocks: list[list[PlannedWindow]] = [[]]
    for window in windows:
        if sum(len(w.kept) for w in blocks[-1]) + len(window.kept) > asked.block_slots:
            blocks.append([])
        blocks[-1].append(window)
    for block in blocks:
        writer.add_block([block])
    plan_record = PlanRecord(
        writer.close(()), "planted", "c" * 64, "t" * 64, settings, (), (), len(rows), len(windows),
        sum(len(w.kept) for w in windows), asked.block_slots, len(blocks),
    )  # fmt: skip
    weights = make_weights(asked.seed)
    if not root.is_store(folder):
        _write_root(folder, weights, asked)
    sites = {site: {str(i): n for i, n in enumerate((*LANGUAGE, VISION))} for site in asked.sites}
    planted = stores.Planted(gate_sign=False, precision=asked.precision)
    plan = Plan(folder, name, plan_record)
    digest = _write_patches(folder, name, plan, plan_record, patches, asked.box)
    record = replace(stores.capture_record(name, plan_record, planted), sites=sites, patches_sha256=digest)
    record = create_capture(folder, record)
    values = _fill(folder, record, plan, asked)
    return Store(where).capture(name), weights | {"values": values}


def _plan(asked: PlantedCaptions) -> tuple[list[PlannedWindow], list[dict[str, Any]], list[list[int]]]:
    """Windows, document rows, and the positions of each window's patches."""
    windows, rows, patches = [], [], []
    for number, caption in enumerate(asked.captions):
        prompt = [IDS["<s>"], *[IDS["<image>"]] * SIDE**2, *ids_of(*PROMPT)]
        ids = np.array([*prompt, *caption], np.int32)
        modality = np.full(len(ids), layout.TEXT, np.uint8)
        modality[0] = layout.SPECIAL
        modality[1 : 1 + SIDE**2] = layout.IMAGE
        modality[len(prompt) :] = layout.GENERATED
        kept = asked.kept(len(ids), len(prompt))
        windows.append(PlannedWindow(number, ids, kept, modality[kept], ()))
        patches.append(list(range(1, 1 + SIDE**2)))
        row = {
            "source": f"images.jsonl:{number + 1}", "sha256": f"{number:064d}", "n_tokens": len(ids),
            "image": asked.images[number] if asked.images else f"pictures/{number:03d}.png", "width": asked.size[0],
            "height": asked.size[1], "prompt": "a photo:", "caption": "", "generated": True, "n_prompt": len(prompt),
        }  # fmt: skip
        rows.append(row if asked.n_prompt else {key: value for key, value in row.items() if key != "n_prompt"})
    return windows, rows, patches


def _write_root(folder: Folder, weights: dict[str, Any], asked: PlantedCaptions) -> None:
    contents = [piece if isinstance(piece, bytes) else piece.encode() for piece in PIECES]
    vocabulary = pa.table(
        {
            "token": pa.array(range(N_TOKENS), pa.int32()),
            "piece": [content.decode(errors="replace") for content in contents],
            "text": [content.decode(errors="replace") for content in contents],
            "bytes": pa.array(contents, pa.binary()),
            "special": [piece in ("<s>", "</s>", "<image>") for piece in PIECES],
        }
    )
    root.write_tokenizer(folder, None, vocabulary, "t" * 64)
    stacks = (*["decoder"] * len(LANGUAGE), "vision")
    layers = tuple(
        LayerRecord(i, n, f"layers.{i}.mlp.down_proj", True, i, stack, None)
        for i, (n, stack) in enumerate(zip((*LANGUAGE, VISION), stacks, strict=True))
    )
    model = replace(stores.model_record(), layers=layers, d_model=D, n_vocabulary=N_TOKENS)
    norm = {"weight": weights["gain"], "epsilon": torch.tensor(1e-6), "centres": torch.tensor(asked.centres)}
    write_weights(
        folder,
        [(i, {"write_vectors": vectors}) for i, vectors in weights["layers"].items()],
        {"unembedding": {"weight": weights["unembedding"]}, "final_norm": norm},
    )
    directions = WriteDirections.of_model(weights["layers"].__getitem__, weights["unembedding"], norm)
    found = {
        i: top_columns(
            find_top_tokens(directions.vectors(i), directions.unembedding(), directions.gain), token_names(folder)
        )
        for i in weights["layers"]
        if stacks[i] == "decoder" and asked.top_tokens
    }
    norms = {i: vectors.norm(dim=1).numpy() for i, vectors in weights["layers"].items()}
    root.write_neurons(folder, model, norms, found)
    root.write_root(folder, model)


def _fill(
    folder: Folder, record: Any, plan: Plan, asked: PlantedCaptions
) -> dict[tuple[str, int], NDArray[np.float32]]:
    rng = np.random.default_rng(asked.seed + 1)
    values = {
        (site, layer): asked.values(rng.standard_normal((width, plan.record.n_tokens), np.float32), site, layer)
        for site in asked.sites
        for layer, width in enumerate((*LANGUAGE, VISION))
    }
    end = 0
    with CaptureWriter(folder, record, n_threads=1, overlap=False) as writer:
        for block in range(plan.record.n_blocks):
            here = plan.block(block)
            begin, end = end, end + len(here.position)
            n = end - begin
            columns = Columns(
                np.arange(n), np.arange(n), np.cumsum([0, *here.windows["n_slots"]]),
                np.zeros((len(here.windows["window"]), 1), np.int32), np.ones(n, bool), block * asked.block_slots,
            )  # fmt: skip
            statistics, arrays = CaptureStatistics.empty(record), {}
            statistics.label_tokens[-1] = n
            for (site, layer), rows in values.items():
                staged = np.full((len(rows), asked.block_slots), np.nan, np.float32)
                naive.pack(rows[:, begin:end].T, columns, staged, statistics.sites[site, layer])
                key = layout.values_key(record.name, site, layer)
                if asked.precision == "int8":
                    arrays[key], scale = naive.quantise(staged)
                    arrays[key][np.isnan(staged)] = layout.NO_VALUE_INT8
                    arrays[layout.block_parameters_key(record.name, site, layer, "scale")] = scale[:, None]
                else:
                    arrays[key] = staged.astype(np.float16) if asked.precision == "half" else staged
            writer.submit(block, arrays, statistics, began=0.0)
    running = RunningStatistics(folder, record)
    running.advance()
    write_finished(folder, record, running.total)
    return values


def _write_patches(
    folder: Folder, name: str, plan: Plan, record: PlanRecord, patches: list[list[int]], box: Any
) -> str:
    """As the engine writes them: one row group per block."""
    writer = PatchesWriter(folder, name)
    for block in range(record.n_blocks):
        here, rows = plan.block(block), []
        starts = here.windows["slot_start"] - block * record.block_slots
        for window, start, n in zip(here.windows["window"], starts, here.windows["n_slots"], strict=True):
            kept = here.position[start : start + n].tolist()
            for i, position in enumerate(patches[window]):
                slot = block * record.block_slots + start + kept.index(position) if position in kept else -1
                row, column = divmod(i, SIDE)
                place = dict(zip(("left", "top", "right", "bottom"), box(row, column), strict=True))
                where = {"window": window, "position": position, "token": slot, "tile": 0, "row": row, "column": column}
                rows.append(where | place)
        columns = pa.Table.from_pylist(rows, schema=PATCHES)
        writer.add_block({name: columns[name] for name in PATCHES.names})
    return writer.close()
