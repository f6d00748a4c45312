"""Saliency by the gradient against finite differences, deletion and insertion against plain passes, on a tiny captioner."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_vision import tiny_vision_model

import actstore
from actstore.engine.capture.run import RunOptions
from actstore.engine.models.load import load_model
from actstore.engine.models.vision.inputs import VisionProcessor
from actstore.engine.multimodal.faithfulness import KINDS, RANDOM, STEPS, every_map, measure_faithfulness
from actstore.engine.multimodal.find import find_multimodal
from actstore.engine.multimodal.replay import Replay
from actstore.engine.multimodal.result import FindSettings, Multimodal
from actstore.engine.multimodal.saliency import map_gradients, positions_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CAPTIONS = ["a red circle", "the blue square"]


class Captioner(NamedTuple):
    """A tiny captioner with a capture of captions that were given."""

    replay: Replay
    result: Multimodal


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return made_captioner("llava", tmp_path_factory.mktemp("captioner"))


def made_captioner(family: str, folder: Path) -> Captioner:
    name = tiny_vision_model(family, folder / family)
    rng, pictures = np.random.default_rng(0), folder / "pictures"
    pictures.mkdir()
    rows = []
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(pictures / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": "describe it", "caption": caption})
    (pictures / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = actstore.capture(str(name), pictures, folder / "store", options=RunOptions(dtype="float32"))
    model = load_model(name, dtype=held.record.dtype)
    result = find_multimodal(held, FindSettings(k=5, nouns="content"))
    return Captioner(Replay(model, VisionProcessor.load(str(name)), held), result)


def plain(captioner: Captioner, number: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits of a noun's prediction, in float64, where what enters the language model is changed: plain hooks."""
    model = copy.deepcopy(captioner.replay.model.model).double()
    caption = captioner.result.captions[captioner.result.nouns[number].caption]
    arguments = captioner.replay.arguments([captioner.replay.encode(caption)])
    arguments["pixel_values"] = arguments["pixel_values"].double()
    layers = next(module for name, module in model.named_modules() if name.endswith("language_model.layers"))

    def hook(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    layers[0].register_forward_pre_hook(hook, with_kwargs=True)
    with torch.inference_mode():
        return model(**arguments, use_cache=False).logits[0, captioner.result.nouns[number].position]


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl"])
def test_the_gradient_is_what_finite_differences_give(family: str, tmp_path: Path) -> None:
    """Untied and tied embeddings, without and with biases in attention and norms after the feed-forward."""
    captioner = made_captioner(family, tmp_path)
    result = captioner.result
    maps = dict(map_gradients(result, captioner.replay, [1]))
    assert list(maps) == [1]
    noun = result.nouns[1]
    caption = result.captions[noun.caption]
    positions = positions_of(caption, maps[1].grid).tolist()
    assert len(positions) == len(maps[1].values) > 3
    step, expected = 0.02, []  # norms compute in float32, whatever the model does
    for position in positions:
        ends = []
        for factor in (1 + step, 1 - step):

            def scaled(values: Tensor, position: int = position, factor: float = factor) -> Tensor:
                values = values.clone()
                values[:, position] *= factor
                return values

            ends.append(float(plain(captioner, 1, scaled)[noun.token]))
        expected.append((ends[0] - ends[1]) / (2 * step))
    np.testing.assert_allclose(maps[1].values, expected, rtol=1e-2, atol=5e-3 * np.abs(expected).max())


def test_deletion_and_insertion_are_those_of_plain_passes(captioner: Captioner) -> None:
    result = captioner.result
    maps = every_map(result, captioner.replay, [0])
    assert tuple(maps) == KINDS
    measured = measure_faithfulness(result, captioner.replay, {"gradient": maps["gradient"]})["gradient"]
    noun = result.nouns[0]
    positions = positions_of(result.captions[noun.caption], maps["gradient"][0].grid)
    ordered = positions[np.argsort(-maps["gradient"][0].values, kind="stable")]
    n_taken = np.rint(np.linspace(0, len(ordered), STEPS + 1)).astype(int)

    def probability(taken: Any) -> float:
        def take(values: Tensor) -> Tensor:
            changed = values.clone()
            changed[:, taken] = values[:, positions].mean(1, keepdim=True)
            return changed

        return float(plain(captioner, 0, take).softmax(-1)[noun.token])

    for found, curve in (
        (measured.deletion, [probability(ordered[:n]) for n in n_taken]),
        (measured.insertion, [probability(ordered[n:]) for n in n_taken]),
    ):
        area = sum(
            (share - before) * (p + q) / 2
            for before, share, p, q in zip(n_taken[:-1], n_taken[1:], curve[:-1], curve[1:], strict=True)
        )
        whole = probability(ordered[:0])
        assert found.tolist() == [pytest.approx(area / len(ordered) / whole, rel=1e-4)]


def test_the_command_and_the_method_say_the_same(captioner: Captioner, cli: Callable[..., Any], tmp_path: Path) -> None:
    store = captioner.result.capture.store
    chosen = {"k": 5, "nouns": "content", "document": 0}
    rows = (
        actstore.open(store.folder.location).multimodal.saliency(**chosen, output=tmp_path / "maps").table.to_pylist()
    )
    asked = ("--k", 5, "--nouns", "content", "--document", 0, "--json")
    found = cli("multimodal", "saliency", store.folder.location, *asked).json
    assert [row["map"] for row in rows] == [*found["maps"]] == [*KINDS]
    for row in rows:
        assert found["maps"][row["map"]] == {
            name: pytest.approx(row[name], rel=1e-6) for name in ("deletion", "insertion")
        }
        assert row["n"] == found["nouns"] == len(list((tmp_path / "maps").glob("0000-*.png")))


def test_random_maps_are_drawn_by_the_seed(captioner: Captioner) -> None:
    first, again, other = (every_map(captioner.result, captioner.replay, [0], seed)[RANDOM][0] for seed in (0, 0, 1))
    assert first.values.tolist() == again.values.tolist() != other.values.tolist()


def test_a_capture_without_patches_is_refused(captioner: Captioner) -> None:
    with pytest.raises(InvalidInputError, match="holds no patch of the images of these nouns"):
        every_map(captioner.result, captioner.replay, [])
