"""Every vision-language family: activations with an image are the plain model's own, and patches lie where they are said to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_vision import FAMILIES, tiny_vision_model

from actstore.engine.models.load import LoadedModel, load_model
from actstore.engine.models.vision.inputs import EncodedPrompt, Patches, VisionProcessor
from actstore.store import layout as stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor, nn

LANGUAGE = re.compile(r".*(?:language|text)_model.*layers\.(\d+)\.(mlp\.down_proj|fc2)")
VISION = re.compile(r".*(vision_tower|vision_model|visual)\.(.*)(layers?|blocks)\.(\d+)\.mlp\.(fc2|down_proj)")
PROMPT, ANSWER = "what is in it?", " a red circle"
IMAGE_OPTIONS: dict[str, dict[str, Any]] = {"internvl": {"crop_to_patches": True}}
"""What a processor asks of its image processor beyond that one's own settings."""
QUERIES = {"instructblip", "blip_2", "mllama"}
"""Families whose language model has no positions with a place."""


@dataclass
class Tiny:
    """A tiny model of a family and its processor."""

    family: str
    folder: Path
    model: LoadedModel
    processor: VisionProcessor

    def run(self, encoded: EncodedPrompt, part: str = "language") -> dict[int, Tensor]:
        """Layer → activations [row, neuron] of a part."""
        return read(self.model, self.processor.collate([encoded]), part)


def read(model: LoadedModel, batch: Any, part: str) -> dict[int, Tensor]:
    ids, mask, extra = batch
    found: dict[int, Tensor] = {}

    def sink(layer: int, _site: str, values: Tensor, rows: Tensor | None) -> None:
        assert rows is None
        assert layer not in found
        found[layer] = values.clone()

    model.forward(ids, mask, layers=model.spec.part_layers(part), sink=sink, extra=extra)
    return found


@pytest.fixture(scope="module", params=list(FAMILIES))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tiny_vision_model(request.param, tmp_path_factory.mktemp("model") / request.param)
    return Tiny(request.param, folder, load_model(folder, device="cpu"), VisionProcessor.load(str(folder)))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of which every pixel matters."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def plain_calls(model: nn.Module, pattern: re.Pattern[str], call: Callable[[], object]) -> dict[str, list[Any]]:
    """What the modules matching a pattern are given and return: path → [(input, output)], in order of execution."""
    seen: dict[str, list[Any]] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, args, output, path=path: seen.setdefault(path, []).append((args[0].clone(), output.clone()))
        )
        for path, module in model.named_modules()
        if pattern.fullmatch(path)
    ]
    try:
        with torch.inference_mode():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return seen


class TestCaptureIdentity:
    def test_activations_are_those_of_the_plain_model(self, tiny: Tiny) -> None:
        image = noise(80, 50)
        encoded = tiny.processor.encode(image, PROMPT, ANSWER)
        plain = getattr(transformers, type(tiny.model.model).__name__).from_pretrained(tiny.folder)
        inputs = {"input_ids": torch.from_numpy(encoded.ids.astype(np.int64))[None]} | encoded.extra
        own = tiny.processor._processor.image_processor(
            images=image, return_tensors="pt", **IMAGE_OPTIONS.get(tiny.family, {})
        )
        for key in own.keys() & encoded.extra.keys():
            assert torch.equal(own[key], encoded.extra[key]), key
            assert own[key].dtype == encoded.extra[key].dtype, key
        for part, pattern in (("language", LANGUAGE), ("vision", VISION)):
            seen = plain_calls(plain, pattern, lambda: plain(**inputs))
            found = tiny.run(encoded, part)
            assert len(found) == len(seen) >= 2
            assert [tiny.model.spec.layers[layer].module for layer in found] == list(seen)
            for (layer, values), calls in zip(found.items(), seen.values(), strict=True):
                ((given, output),) = calls
                assert torch.equal(values, given.reshape(values.shape))
                written, bias = values @ tiny.model.write_vectors(layer), tiny.model.output_bias(layer)
                written = written if bias is None else written + bias
                assert torch.allclose(written, output.reshape(written.shape), atol=1e-5)
        n_rows = {len(values) for values in tiny.run(encoded, "vision").values()}
        assert n_rows == {len(tiny.processor.tower_patches(encoded))}

    def test_language_layers_come_first_and_are_those_of_text_alone(self, tiny: Tiny) -> None:
        spec = tiny.model.spec
        parts = [layer.part for layer in spec.layers]
        assert parts[: len(spec.part_layers())] == ["language"] * len(spec.part_layers())
        assert [layer.block for layer in spec.layers if layer.part == "language"] == list(
            range(len(spec.part_layers()))
        )
        assert spec.d_model == tiny.model.unembedding().shape[1]

    def test_projector_rows_are_those_of_its_patches(self, tiny: Tiny) -> None:
        encoded = tiny.processor.encode(noise(80, 50), PROMPT, ANSWER)
        found = tiny.run(encoded, "projector")
        assert len(found) == {"instructblip": 2, "blip_2": 2}.get(
            tiny.family, tiny.family.startswith(("llava", "qwen", "internvl"))
        )
        for values in found.values():
            assert len(values) == len(tiny.processor.part_patches(encoded, "projector"))


class TestEncode:
    def test_the_prompt_is_the_processors_and_the_answer_follows(self, tiny: Tiny) -> None:
        image = noise(80, 50)
        encoded = tiny.processor.encode(image, PROMPT, ANSWER, prefix=" It is")
        bare = tiny.processor.encode(image, PROMPT)
        assert bare.n_prompt == len(bare.ids)
        tokenizer = tiny.processor.tokenizer
        prefix, answer = tokenizer.encode([" It is", ANSWER])
        assert np.array_equal(encoded.ids, np.concatenate([bare.ids, prefix, answer]))
        assert encoded.n_prompt == len(bare.ids) + len(prefix)
        assert np.array_equal(tiny.processor.encode(image, PROMPT, list(answer), prefix=" It is").ids, encoded.ids)
        assert (encoded.modality[encoded.n_prompt :] == stored.GENERATED).all()
        assert not (encoded.modality[: encoded.n_prompt] == stored.GENERATED).any()
        assert np.array_equal(np.flatnonzero(encoded.modality == stored.IMAGE), encoded.patches.position)
        text = encoded.ids[encoded.modality == stored.TEXT]
        assert PROMPT in tokenizer._tokenizer.decode(text)

    def test_windows_run_together_as_they_run_alone(self, tiny: Tiny) -> None:
        windows = [
            tiny.processor.encode(noise(80, 50, seed), PROMPT + " where?" * seed, ANSWER * (1 + seed))
            for seed in range(2)
        ]
        assert tiny.processor.fits_together(*windows)
        ids, mask, extra = tiny.processor.collate(windows)
        assert mask is not None
        together = read(tiny.model, (ids, mask, extra), "language")
        for row, window in enumerate(windows):
            for layer, values in tiny.run(window).items():
                found = together[layer].reshape(*ids.shape, -1)[row, : len(window.ids)]
                assert torch.allclose(found, values, atol=1e-5 * float(values.abs().max())), layer
        alone = [tiny.run(window, "vision") for window in windows]
        for layer, values in read(tiny.model, (ids, mask, extra), "vision").items():
            stacked = torch.cat([found[layer] for found in alone])
            assert torch.allclose(values, stacked, atol=1e-5 * float(values.abs().max()))

    def test_text_alone(self, tiny: Tiny) -> None:
        encoded = tiny.processor.encode(None, PROMPT, ANSWER)
        assert not encoded.extra.keys() - {"token_type_ids"}
        assert len(encoded.patches) == 0
        assert stored.IMAGE not in encoded.modality


class TestGenerated:
    def test_steps_hold_what_one_pass_over_the_answer_holds(self, tiny: Tiny) -> None:
        model, image = tiny.model.model, noise(80, 50)
        encoded = tiny.processor.encode(image, PROMPT)
        ids, mask, extra = tiny.processor.collate([encoded])
        mask = torch.ones_like(ids) if mask is None else mask
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        grown: list[Tensor] = []
        steps = plain_calls(
            model,
            LANGUAGE,
            lambda: grown.append(model.generate(input_ids=ids, attention_mask=mask, **extra, **settings)),
        )
        answer = grown[0][0, -4:].tolist()
        whole = tiny.processor.encode(image, PROMPT, answer)
        for (_, values), calls in zip(tiny.run(whole).items(), steps.values(), strict=True):
            stepwise = torch.cat([given.reshape(-1, given.shape[-1]) for given, _ in calls])
            assert len(stepwise) == len(whole.ids) - 1
            assert torch.allclose(values[:-1], stepwise, atol=1e-5 * float(values.abs().max()))


@pytest.fixture
def unmixed(tiny: Tiny) -> Iterator[Tiny]:
    """The model with attention in its vision tower silenced, so that patches do not see each other."""
    silenced = {}
    for path, module in tiny.model.model.named_modules():
        if VISION.pattern and re.fullmatch(
            r".*(vision_tower|vision_model|visual)\..*(out_proj|o_proj|attn\.proj|projection_layer|self_attn\.projection)",
            path,
        ):
            silenced[path] = module.weight.detach().clone()
            with torch.no_grad():
                module.weight.zero_()
    assert len(silenced) >= 3
    yield tiny
    for path, weight in silenced.items():
        with torch.no_grad():
            tiny.model.model.get_submodule(path).weight.copy_(weight)


REACH = {"idefics3": 7.0, "smolvlm": 7.0, "mllama": 1.1, "gemma3": 1.1}
"""How far resampling reaches, in pixels of the picture the tower is given; bicubic 2, Lanczos 3 (and is used twice)."""


def check_places(before: Tensor, after: Tensor, patches: Patches, region: tuple[float, ...], reach: float) -> int:
    """Rows change where their box overlaps the region, and nowhere else; `reach` in box sides; how many change."""
    changed = (before - after).abs().amax(-1) > 1e-4 * before.abs().amax()
    same = (before - after).abs().amax(-1) <= 1e-6 * before.abs().amax()
    assert len(changed) == len(patches)
    n_sure = 0
    for place in range(len(patches)):
        left, top, right, bottom = patches.box[place]
        if np.isnan(left):
            assert same[place]
            continue
        across, down = reach * (right - left), reach * (bottom - top)
        begin, above, end, below = region
        if begin > right + across or end < left - across or above > bottom + down or below < top - down:
            assert same[place], (place, patches.box[place], region)
        inner = 0.5 * min(1.0, reach)
        wide = min(end, right - inner * (right - left)) - max(begin, left + inner * (right - left))
        high = min(below, bottom - inner * (bottom - top)) - max(above, top + inner * (bottom - top))
        if min(wide, high) > 1e-3:
            assert changed[place], (place, patches.box[place], region)
            n_sure += 1
    return n_sure


class TestPatchPositions:
    @pytest.mark.parametrize("size", [(96, 64), (60, 140)])
    def test_pixels_change_the_positions_whose_box_they_are_in(self, unmixed: Tiny, size: tuple[int, int]) -> None:
        width, height = size
        image = noise(width, height)
        first = unmixed.processor.encode(image, PROMPT)
        parts = ["vision"] if unmixed.family in QUERIES else ["language", "vision"]
        hits = dict.fromkeys(parts, 0)
        for region in ((0.3, 0.4, 0.45, 0.55), (0.55, 0.05, 0.7, 0.2), (0.8, 0.75, 0.95, 0.95)):
            pixels = np.asarray(image).copy()
            left, top, right, bottom = (int(share * side) for share, side in zip(region, size * 2, strict=True))
            pixels[top:bottom, left:right] = 255 - pixels[top:bottom, left:right]
            second = unmixed.processor.encode(Image.fromarray(pixels), PROMPT)
            shares = (left / width, top / height, right / width, bottom / height)
            for part in parts:
                before, after = (self.seen(unmixed, encoded, part) for encoded in (first, second))
                patches = unmixed.processor.part_patches(first, part, len(before))
                side = 4 if unmixed.family.startswith("qwen") else 8
                merged = part == "language" and unmixed.family.startswith(
                    ("qwen", "idefics", "smol", "gemma", "internvl")
                )
                reach = REACH.get(unmixed.family, 2.1) / (side * (2 if merged else 1))
                hits[part] += check_places(before, after, patches, shares, reach)
        assert all(hits.values()), hits

    @staticmethod
    def seen(tiny: Tiny, encoded: EncodedPrompt, part: str) -> Tensor:
        """What the language model's first layer is given at image positions, or the tower's last layer holds."""
        if part == "vision":
            return tiny.run(encoded, "vision")[tiny.model.spec.part_layers("vision")[2]]
        ids, mask, extra = tiny.processor.collate([encoded])
        given: list[Tensor] = []
        tiny.model.forward(
            ids,
            mask,
            sites=("resid.pre",),
            layers=(0,),
            sink=lambda _layer, _site, values, _rows: given.append(values.clone()),
            extra=extra,
        )
        return given[0][encoded.patches.position]
