"""What is read of a checkpoint, and what is refused: adapters, quantised weights, pickles that would run code."""

from __future__ import annotations

import json
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaForCausalLM

from actstore.engine.attribution.attribute import attribute
from actstore.engine.capture import api as capture_run
from actstore.engine.graphs.probes.substitutes import MaskedModel
from actstore.engine.models.load import inspect_model, load_model
from actstore.store.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "someone/base", "target_modules": ["down_proj"]}
MERGE = (
    r"merge it into its base model with peft, PeftModel\.from_pretrained\(AutoModelForCausalLM\.from_pretrained\("
    r"'someone/base'\), '.*'\)\.merge_and_unload\(\)\.save_pretrained\(folder\), and name that folder"
)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be changed."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class TestAdapters:
    def test_one_beside_the_weights_is_refused_wherever_a_model_is_named(
        self, folder: Path, corpus: Path, tmp_path: Path
    ) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
        beside = (
            r"holds an adapter next to the weights \(adapter_config\.json\), which is not merged into them: "
            + MERGE
            + r", or remove adapter_config\.json to run the weights next to it alone$"
        )
        store = tmp_path / "store"
        questions = tmp_path / "questions.json"
        questions.write_text("[]")
        calls: list[Callable[[], object]] = [
            lambda: inspect_model(folder),
            lambda: load_model(folder),
            lambda: capture_run.capture(str(folder), corpus, store),
            lambda: attribute(str(folder), questions, store),
            lambda: MaskedModel.load(str(folder)),
        ]
        for call in calls:
            with pytest.raises(ModelError, match=beside):
                call()
        assert not store.exists()

    def test_one_without_a_model_says_how_to_make_a_model_of_it(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
        save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=rf"an adapter and no model \(adapter_config\.json\): {MERGE}$"):
            inspect_model(tmp_path)

    @pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.safetensors", "pytorch_adapter.bin"])
    def test_weights_without_their_configuration_are_one_too(self, folder: Path, file: str) -> None:
        (folder / file).write_bytes(b"")
        with pytest.raises(ModelError, match=rf"an adapter next to the weights \({file}\).*from_pretrained\(base\)"):
            inspect_model(folder)

    @pytest.mark.parametrize("has_model", [True, False])
    def test_one_of_the_hub_is_found_before_any_weight_is_read(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_model: bool
    ) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
        config = AutoConfig.from_pretrained(folder)
        asked = []

        def read_config(*_: object, **__: object) -> Any:
            if not has_model:
                raise OSError("someone/tuned does not appear to have a file named config.json")
            config._commit_hash = "abc"
            return config

        def find(name: str, revision: str | None = None) -> str:
            asked.append((name, revision))
            return str(tmp_path / "adapter_config.json")

        monkeypatch.setattr("actstore.engine.models.checkpoints.AutoConfig.from_pretrained", read_config)
        monkeypatch.setattr("transformers.utils.peft_utils.find_adapter_config_file", find)
        with pytest.raises(ModelError, match="next to the weights" if has_model else "an adapter and no model"):
            inspect_model("someone/tuned")
        assert asked == [("someone/tuned", "abc" if has_model else None)]

    def test_what_the_adapters_library_saves_in_a_models_configuration(self, folder: Path) -> None:
        change_config(folder, adapters={"adapters": {"sst": "abc"}, "config_map": {}})
        with pytest.raises(ModelError, match=r"config\.json lists adapters \(sst\) that would be left out"):
            inspect_model(folder)
        change_config(folder, adapters={"adapters": {}, "config_map": {}})
        assert len(inspect_model(folder).layers) == 2

    @pytest.mark.parametrize("key", ["mlp.down_proj.lora_A.default.weight", "output_adapters.x.adapter_down.0.weight"])
    def test_weights_of_one_among_the_models_own(self, folder: Path, key: str) -> None:
        change_weights(folder, lambda w: w.update({f"model.layers.0.{key}": torch.ones(4, 24)}))
        with pytest.raises(ModelError, match=r"1 of them are an adapter's, model\.layers\.0"):
            load_model(folder, device="cpu")

    def test_other_weights_that_a_model_does_not_use_are_none(self, folder: Path) -> None:
        change_weights(folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
        assert load_model(folder, device="cpu").spec.d_model == 16


class TestQuantised:
    @pytest.mark.parametrize(
        "settings",
        [
            {"quant_method": "gptq", "bits": 4},
            {"quant_method": "awq", "bits": 4},
            {"quant_method": "fp8"},
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"quant_method": "mxfp4"},
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        ],
        ids=lambda settings: str(settings["quant_method"]),
    )
    def test_refused_from_the_configuration_alone(self, folder: Path, settings: dict[str, Any]) -> None:
        change_config(folder, quantization_config=settings)
        method = settings["quant_method"]
        for call in (inspect_model, load_model):
            with pytest.raises(ModelError, match=rf"they are quantised \({method}\), which is not supported: name the"):
                call(folder)

    def test_in_a_part_of_the_configuration(self, tmp_path: Path) -> None:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        text = LlamaConfig(quantization_config={"quant_method": "awq"})
        LlavaConfig(text_config=text, vision_config=CLIPVisionConfig()).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"they are quantised \(awq\)"):
            inspect_model(tmp_path)

    def test_by_a_file_of_older_tools(self, folder: Path) -> None:
        (folder / "quantize_config.json").write_text('{"bits": 4}')
        with pytest.raises(ModelError, match=r"they are quantised \(quantize_config\.json\)"):
            inspect_model(folder)


def to_pickles(folder: Path, n_shards: int = 1) -> None:
    """Replace a folder's safetensors by pytorch_model.bin, or by several and their index."""
    weights = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    if n_shards == 1:
        torch.save(weights, folder / "pytorch_model.bin")
        return
    files = [f"pytorch_model-{i + 1:05}-of-{n_shards:05}.bin" for i in range(n_shards)]
    places = {key: files[i % n_shards] for i, key in enumerate(sorted(weights))}
    for file in files:
        torch.save({key: weights[key] for key, own in places.items() if own == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


class RunsCode:
    """Unpickled without restriction, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class TestPickledWeights:
    @pytest.mark.parametrize("n_shards", [1, 3])
    def test_are_the_same_model_and_it_is_said_how_they_were_read(
        self, folder: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture, n_shards: int
    ) -> None:
        to_pickles(folder, n_shards)
        with caplog.at_level(logging.WARNING, "actstore"):
            loaded = load_model(folder, device="cpu")
        assert loaded.fingerprint() == load_model(tiny_model, device="cpu").fingerprint()
        (said,) = [record.getMessage() for record in caplog.records]
        file = "pytorch_model.bin" if n_shards == 1 else "pytorch_model.bin.index.json"
        assert f"were read from {file} by torch's restricted unpickler, which runs no code" in said

    def test_safetensors_beside_them_are_read_instead(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        torch.save({"model.norm.weight": RunsCode(str(folder / "ran"))}, folder / "pytorch_model.bin")
        assert load_model(folder, device="cpu").spec.d_model == 16
        assert not caplog.records
        assert not (folder / "ran").exists()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_among_them_is_not_run(self, folder: Path, zipped: bool) -> None:
        to_pickles(folder)
        path = folder / "pytorch_model.bin"
        weights = torch.load(path, weights_only=True) | {"extra": RunsCode(str(folder / "ran"))}
        torch.save(weights, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            ModelError,
            match=r"expected tensors alone in pytorch_model\.bin .*, and it holds objects that would run code",
        ):
            load_model(folder, device="cpu")
        assert not (folder / "ran").exists()
        torch.load(path, weights_only=False)  # what was refused does run
        assert (folder / "ran").exists()

    @pytest.mark.parametrize("n_bytes", [0, 10, 3000])
    def test_a_damaged_one_is_refused(self, folder: Path, n_bytes: int) -> None:
        to_pickles(folder)
        os.truncate(folder / "pytorch_model.bin", n_bytes)
        with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
            load_model(folder, device="cpu")

    def test_missing_weights_are_not_made_up(self, folder: Path) -> None:
        change_weights(folder, lambda w: w.pop("model.layers.1.mlp.down_proj.weight"))
        to_pickles(folder)
        with pytest.raises(ModelError, match=r"1 are missing, model\.layers\.1\.mlp\.down_proj\.weight first"):
            load_model(folder, device="cpu")

    def test_a_folder_without_any(self, folder: Path) -> None:
        os.remove(folder / "model.safetensors")
        with pytest.raises(ModelError, match="cannot be loaded as LlamaForCausalLM from safetensors"):
            load_model(folder, device="cpu")

    def test_the_hub_is_not_asked_for_a_converted_copy(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """transformers would take one from a pull request: other weights than the model's, for all that is known."""
        seen = []
        original = LlamaForCausalLM.from_pretrained.__func__  # type: ignore[attr-defined]

        def from_pretrained(kind: Any, *arguments: Any, **settings: Any) -> Any:
            seen.append(os.environ.get("DISABLE_SAFETENSORS_CONVERSION"))
            return original(kind, *arguments, **settings)

        monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
        monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(from_pretrained))
        load_model(folder, device="cpu")
        assert seen == ["1"]
        assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ


class TestOwnCode:
    def test_what_goes_wrong_in_it_is_one_sentence(self, tmp_path: Path) -> None:
        auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
        (tmp_path / "own.py").write_text("raise ZeroDivisionError('of its own')")
        with pytest.raises(ModelError, match="of its own"):
            inspect_model(tmp_path, trust_remote_code=True)

    def test_a_model_class_that_is_not_there(self, folder: Path) -> None:
        change_config(folder, auto_map={"AutoModelForCausalLM": "own.OwnModel"})
        with pytest.raises(ModelError, match=r"own\.OwnModel, cannot be run"):
            inspect_model(folder, trust_remote_code=True)
