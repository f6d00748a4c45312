"""Where patches lie through crops, padding, tiles and pooling; what is refused; which part of a model runs for which layers."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny_vision
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_vision import tiny_vision_model

from actstore.engine.models import load as models
from actstore.engine.models.load import LoadedModel, inspect_model, load_model
from actstore.engine.models.vision.inputs import VisionProcessor
from actstore.engine.models.vision.layouts import LAYOUTS
from actstore.engine.models.vision.patch_geometry import Patches, View
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Made = Callable[[str], Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Model folders by family."""
    folder = tmp_path_factory.mktemp("models")

    def make(family: str) -> Path:
        return folder / family if (folder / family).is_dir() else tiny_vision_model(family, folder / family)

    return make


class TestViews:
    def test_what_chains_of_resizing_and_cutting_show(self) -> None:
        image = View(40, 80)
        assert image.resized(20, 40).centred(20, 20) == View(20, 20, 0.25, 0.0, 0.75, 1.0)
        assert image.squared() == View(80, 80, 0.0, -0.5, 1.0, 1.5)
        assert image.tiles(1, 2)[1] == View(40, 40, 0.5, 0.0, 1.0, 1.0)
        assert View(3, 8).centred(6, 8).top == pytest.approx(-2 / 3)  # the half that is left over goes above

    @given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
    @settings(max_examples=30)
    def test_boxes_of_a_grid_tile_the_image(self, rows: int, columns: int, high: int, wide: int) -> None:
        patches = Patches.grid(View(high * rows, wide * columns), rows, columns, tile=3)
        area = (patches.box[:, 2] - patches.box[:, 0]) * (patches.box[:, 3] - patches.box[:, 1])
        assert area.sum() == pytest.approx(1, abs=1e-5)
        assert np.array_equal(patches.row * columns + patches.column, np.arange(rows * columns))
        assert set(patches.tile) == {3}

    def test_padding_has_no_place_and_what_is_cut_away_is_in_no_box(self) -> None:
        patches = Patches.grid(View(40, 80).squared(), 4, 4)
        assert (patches.tile.reshape(4, 4)[[0, 3]] == -1).all()
        assert np.isnan(patches.box.reshape(4, 4, 4)[[0, 3]]).all()
        assert (patches.row.reshape(4, 4)[1:3].T == [1, 2]).all()
        assert patches.box[4].tolist() == [0, 0, 0.25, 0.5]
        half = Patches.grid(View(10, 10, -0.1, 0.0, 1.0, 1.0), 1, 2)
        assert half.box[0].tolist() == pytest.approx([0.0, 0.0, 0.45, 1.0])


def probe(images: Any, config: Any, size: tuple[int, int], **options: Any) -> None:
    """Every patch's box is where a picture that shows its own coordinates says: red across, green down, blue anywhere."""
    width, height = size
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    pixels = np.stack([across, down, np.ones_like(across)], axis=2) * 250
    image = Image.fromarray(pixels.round().astype(np.uint8))
    found = images(images=image, return_tensors="pt", do_normalize=False, **options)
    patches = LAYOUTS[config.model_type](images, config, View(height, width), found).vision
    shown = found["pixel_values"].reshape(-1, 3, *found["pixel_values"].shape[-2:]) * 255 / 250
    side = config.vision_config.patch_size
    side = side if isinstance(side, int) else side[0]
    n_checked = 0
    for place in range(len(patches)):
        if patches.tile[place] < 0:
            continue
        row, column = int(patches.row[place]) * side, int(patches.column[place]) * side
        cut = shown[patches.tile[place], :, row : row + side, column : column + side]
        inside = cut[2] > 0.99  # not padding, nor blurred into it
        if not inside.any():
            continue
        left, top, right, bottom = patches.box[place]
        x, y = cut[0][inside], cut[1][inside]
        slack = 0.03
        assert left - slack < x.min() <= x.max() < right + slack, place
        assert top - slack < y.min() <= y.max() < bottom + slack, place
        n_checked += 1
        if inside.all():
            assert x.mean() == pytest.approx((left + right) / 2, abs=slack)
            assert y.mean() == pytest.approx((top + bottom) / 2, abs=slack)
    assert n_checked > len(patches) // 4


class TestProcessors:
    @pytest.mark.parametrize("size", [(300, 200), (90, 260)])
    def test_a_processor_that_pads_to_a_square(self, made: Made, size: tuple[int, int]) -> None:
        loaded = VisionProcessor.load(str(made("llava")))
        square = {"height": 32, "width": 32}
        images = transformers.LlavaImageProcessorPil(size=square, crop_size=square, do_pad=True)
        probe(images, loaded._config, size)

    @pytest.mark.parametrize("size", [(300, 100), (110, 420)])
    def test_pan_and_scan(self, made: Made, size: tuple[int, int]) -> None:
        loaded = VisionProcessor.load(str(made("gemma3")))
        options = loaded._processor.images_kwargs = {
            "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 40, "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        }  # fmt: skip
        encoded = loaded.encode(Image.new("RGB", size), "what?")
        crops = round(max(size) / min(size))
        assert len(encoded.extra["pixel_values"]) == 1 + crops
        assert sorted(set(encoded.patches.tile.tolist())) == list(range(1 + crops))
        probe(loaded._processor.image_processor, loaded._config, size, **options)

    @pytest.mark.parametrize("family", ["llava", "paligemma", "blip_2", "instructblip", "gemma3"])
    def test_one_picture(self, made: Made, family: str) -> None:
        loaded = VisionProcessor.load(str(made(family)))
        probe(loaded._processor.image_processor, loaded._config, (300, 210))

    @pytest.mark.parametrize("family", ["idefics3", "internvl", "llava_next", "llava_onevision", "mllama"])
    @pytest.mark.parametrize("size", [(300, 140), (130, 300), (250, 240)])
    def test_tiles(self, made: Made, family: str, size: tuple[int, int]) -> None:
        loaded = VisionProcessor.load(str(made(family)))
        probe(loaded._processor.image_processor, loaded._config, size)

    def test_one_tile_where_the_picture_is_small(self, made: Made) -> None:
        loaded = VisionProcessor.load(str(made("internvl")))
        patches = loaded.encode(Image.new("RGB", (33, 32)), "what?").patches
        assert set(patches.tile.tolist()) == {0}
        assert patches.box[0].tolist() == [0, 0, 0.5, 0.5]

    def test_rows_are_shrunk_where_there_are_too_many(self, tmp_path: Path) -> None:
        folder = tiny_vision_model("llava_onevision", tmp_path / "m", most=1)
        loaded = VisionProcessor.load(str(folder))
        encoded = loaded.encode(Image.new("RGB", (200, 140)), "what?")
        whole = encoded.patches.tile == 1
        rows, columns = encoded.patches.row[whole].max() + 1, encoded.patches.column[whole].max() + 1
        assert rows * columns == whole.sum() <= 16 * 1.21
        box = encoded.patches.box[whole].reshape(rows, columns, 4)
        assert box[0, 0, 0] == 0
        assert box[-1, -1, 2] == 1
        assert np.allclose(box[:, 1:, 0], box[:, :-1, 2])
        load_model(folder, device="cpu").forward(
            *loaded.collate([encoded])[:2], sink=lambda *_: None, extra=encoded.extra
        )  # as many positions as the model puts features in

    def test_windows_of_other_tiles_do_not_fit_together(self, made: Made) -> None:
        loaded = VisionProcessor.load(str(made("idefics3")))
        wide, high = (loaded.encode(Image.new("RGB", size), "what?") for size in ((200, 90), (200, 200)))
        assert not loaded.fits_together(wide, high)
        assert loaded.fits_together(wide, wide)
        assert not loaded.fits_together(wide, loaded.encode(None, "what?"))


class TestPrompts:
    def test_a_slot_says_where_the_image_goes(self, made: Made) -> None:
        loaded = VisionProcessor.load(str(made("llava_onevision")))
        image = Image.new("RGB", (64, 64))
        encoded = loaded.encode(image, "before <image> after")
        text = loaded.tokenizer._tokenizer.decode(encoded.ids)
        assert text.startswith("<s><|im_start|>user\nbefore <image>")
        assert text.endswith("<image> after<|im_end|>\n<|im_start|>assistant\n")
        first = loaded.encode(image, "before after")
        assert first.patches.position[0] < encoded.patches.position[0]

    def test_too_many_slots_or_none_to_fill_are_refused(self, made: Made) -> None:
        loaded = VisionProcessor.load(str(made("llava")))
        with pytest.raises(InvalidInputError, match=r"one image for each slot '<image>' .* one image: leave one slot"):
            loaded.encode(Image.new("RGB", (64, 64)), "<image> and <image>")
        with pytest.raises(InvalidInputError, match=r"and there is none"):
            loaded.encode(None, "<image> what?")

    def test_a_template_without_a_slot_is_refused(self, made: Made) -> None:
        loaded = VisionProcessor.load(str(made("llava_onevision")))
        loaded._processor.chat_template = (
            "{% for message in messages %}{{ message['content'][-1]['text'] }}{% endfor %}"
        )
        with pytest.raises(InvalidInputError, match=r"the prompt 'what\?' to have the image slot '<image>' once"):
            loaded.encode(Image.new("RGB", (64, 64)), "what?")

    def test_a_missing_processor_is_named(self, made: Made, tmp_path: Path) -> None:
        folder = shutil.copytree(made("llava"), tmp_path / "bare")
        for name in ("preprocessor_config.json", "processor_config.json"):
            (folder / name).unlink()
        with pytest.raises(
            InvalidInputError, match=r"bare' to hold a processor for images \(preprocessor_config\.json"
        ):
            VisionProcessor.load(str(folder))

    def test_a_model_that_reads_text_alone_is_refused(self, tiny_model: Path) -> None:
        with pytest.raises(InvalidInputError):
            VisionProcessor.load(str(tiny_model))


class TestParts:
    def test_inspecting_finds_what_loading_finds(self, made: Made) -> None:
        folder = made("llava")
        spec = inspect_model(folder)
        assert spec.layers == load_model(folder, device="cpu").spec.layers
        assert [layer.stack for layer in spec.layers] == ["decoder"] * 2 + ["vision"] * 3 + ["projector"]
        assert spec.parts == ("language", "vision", "projector")

    def test_rows_of_a_q_formers_own_prompt_are_no_parts(self, made: Made) -> None:
        spec = inspect_model(made("instructblip"))
        assert [layer.module.split(".")[-2] for layer in spec.layers if layer.part is None] == ["output", "output"]
        assert [layer.stack for layer in spec.layers][-4:] == ["projector", "projector", "apart", "apart"]

    def test_a_model_that_cannot_be_walked_with_an_image_is_walked_on_text(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(config: Any) -> None:
            example = whole(config)
            example.extra["pixel_values"] = torch.zeros(1)
            return example

        with_images, whole = inspect_model(made("llava")), models.example_image
        monkeypatch.setattr(models, "example_image", fail)
        assert inspect_model(made("llava")).layers == with_images.layers[:2]

    def test_what_nobody_wants_is_not_run(self, made: Made) -> None:
        loaded: LoadedModel = load_model(made("llava"), device="cpu")
        processor = VisionProcessor.load(str(made("llava")))
        ids, mask, extra = processor.collate([processor.encode(Image.new("RGB", (64, 64)), "what?")])
        ran: list[str] = []
        for path in ("vision_tower", "multi_modal_projector", "language_model"):
            loaded.model.get_submodule(f"model.{path}").register_forward_pre_hook(
                lambda *_, path=path: ran.append(path)
            )
        for part, expected in (
            ("vision", ["vision_tower"]),
            ("projector", ["vision_tower", "multi_modal_projector"]),
            ("language", ["vision_tower", "multi_modal_projector", "language_model"]),
        ):
            ran.clear()
            seen: dict[int, int] = {}
            wanted = loaded.spec.part_layers(part)
            loaded.forward(
                ids, mask, layers=wanted, sink=lambda n, _s, v, _r, seen=seen: seen.update({n: len(v)}), extra=extra
            )
            assert ran == expected
            assert tuple(seen) == wanted

    def test_text_alone_gives_the_language_models_layers(self, made: Made) -> None:
        loaded = load_model(made("llava"), device="cpu")
        seen: list[int] = []
        loaded.forward(torch.tensor([[0, 9, 10]]), sink=lambda layer, *_: seen.append(layer))
        assert tuple(seen) == loaded.spec.part_layers("language")


assert tiny_vision.FAMILIES.keys() == tiny_vision.PROCESSORS.keys()
