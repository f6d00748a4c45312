"""Opening, running and reading models: what a user of `actstore.engine.models.load` would miss."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from actstore.engine.models.load import LoadedModel, inspect_model, load_model
from actstore.engine.models.names import SITES
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

# transformers warns of its own deprecations on building some of these
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [4, 4, 8, 1, 0, 6]])


def make_llama(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **settings})).eval()


def make_mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return MixtralForCausalLM(config).eval()


def read(
    loaded: LoadedModel, *, sites: tuple[str, ...] = ("mlp.post",), layers: list[int] | None = None, **further: Any
) -> dict[tuple[int, str], tuple[Tensor, Tensor | None]]:
    found = {}

    def sink(layer: int, site: str, values: Tensor, rows: Tensor | None) -> None:
        found[layer, site] = values.clone(), rows

    loaded.forward(IDS, sites=sites, layers=layers, sink=sink, **further)
    return found


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


class TestInspect:
    def test_reads_a_configuration_without_weights(self, tmp_path: Path) -> None:
        make_llama().config.save_pretrained(tmp_path)
        spec = inspect_model(tmp_path)
        assert (spec.model_type, spec.kind, spec.causal) == ("llama", "causal", True)
        assert (spec.d_model, spec.n_vocabulary, spec.context) == (16, 40, 64)
        assert [layer.neurons for layer in spec.layers] == [24, 24, 24]
        assert spec.layers[1].module == "model.layers.1.mlp.down_proj"
        assert spec.layers[1].gated
        assert (spec.layers[2].block, spec.layers[2].stack, spec.layers[2].expert) == (2, "decoder", None)
        assert spec.sites == tuple(SITES)
        assert (spec.width(0, "mlp.up"), spec.width(0, "resid.mid")) == (24, 16)

    def test_agrees_with_the_loaded_model(self, tmp_path: Path) -> None:
        save(make_mixtral(), tmp_path)
        assert inspect_model(tmp_path) == load_model(tmp_path, device="cpu").spec

    def test_states_the_dtype_of_the_checkpoint(self, tmp_path: Path) -> None:
        save(make_llama().bfloat16(), tmp_path)
        assert inspect_model(tmp_path).dtype == "bfloat16"

    def test_prints_as_a_line(self, tmp_path: Path) -> None:
        save(make_llama(), tmp_path)
        shown = repr(inspect_model(tmp_path))
        pattern = (
            r"ModelSpec\('.*': llama, causal, \d+ layers, [\d,]+ neurons, width \d+, float32; sites mlp\.post, .*\)"
        )
        assert re.fullmatch(pattern, shown), shown

    def test_a_large_model_is_inspected_without_its_memory(self, tmp_path: Path) -> None:
        config = LlamaConfig(
            vocab_size=128_256, hidden_size=8_192, intermediate_size=28_672, num_hidden_layers=4, num_attention_heads=64
        )
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(tmp_path)  # 5 billion weights: 20 GB, were they made
        assert [layer.neurons for layer in inspect_model(tmp_path).layers] == [28_672] * 4

    def test_experts_are_layers_after_each_other(self) -> None:
        spec = LoadedModel(make_mixtral()).spec
        assert [layer.expert for layer in spec.layers] == [0, 1, 2, 3, 0, 1, 2, 3]
        assert [layer.block for layer in spec.layers] == [0, 0, 0, 0, 1, 1, 1, 1]
        assert spec.layers[6].module == "model.layers.1.mlp.experts.down_proj[2]"
        assert spec.layers_of("resid.pre") == (0, 4)
        assert spec.layers_of("mlp.post") == tuple(range(8))


class TestErrors:
    def test_a_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(
            ModelError, match=r"expected a model folder or a Hub id, and there is no folder '.*nowhere'"
        ):
            inspect_model(tmp_path / "nowhere")

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"holds no config\.json"):
            load_model(tmp_path)

    def test_a_type_unknown_to_transformers(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "of-the-future"}))
        with pytest.raises(ModelError, match=r"cannot be read by transformers"):
            inspect_model(tmp_path)

    def test_code_in_the_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
        (tmp_path / "own.py").write_text("raise SystemExit('ran')")
        with pytest.raises(ModelError, match="brings its own code: read that code, then pass `trust_remote_code=True`"):
            inspect_model(tmp_path)

    def test_the_hub_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")

        monkeypatch.setattr("actstore.engine.models.checkpoints.AutoConfig.from_pretrained", fail)
        with pytest.raises(
            ModelError, match="no folder 'someone/something', and the Hugging Face Hub cannot be reached"
        ):
            inspect_model("someone/something")

    def test_a_model_without_neurons(self, tmp_path: Path) -> None:
        MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2)).config.save_pretrained(
            tmp_path
        )
        with pytest.raises(ModelError, match=r"'mamba' \(.*\) has none: it is a state-space or recurrent model"):
            inspect_model(tmp_path)

    def test_missing_weights_are_not_made_up(self, tmp_path: Path) -> None:
        file = save(make_llama(), tmp_path) / "model.safetensors"
        weights = load_file(file)
        del weights["model.layers.1.mlp.down_proj.weight"]
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"1 are missing, model\.layers\.1\.mlp\.down_proj\.weight first"):
            load_model(tmp_path, device="cpu")

    def test_a_dtype_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="auto, float32, float16, bfloat16, found 'int3'"):
            load_model(tmp_path, dtype="int3")

    def test_sites_and_layers_that_the_model_has_not(self) -> None:
        loaded = LoadedModel(make_llama(), name="tiny")
        with pytest.raises(InvalidInputError, match=r"for tiny, found mlp\.pre"):
            read(loaded, sites=("mlp.pre",))
        with pytest.raises(InvalidInputError, match="a layer from 0 to 2 for tiny, found 3"):
            read(loaded, layers=[3])
        with pytest.raises(InvalidInputError, match="a layer from 0 to 2 for tiny, found -1"):
            loaded.write_vectors(-1)


class TestForward:
    def test_values_are_what_a_plain_hook_sees(self) -> None:
        model = make_llama()
        plain = {}
        for i, block in enumerate(model.model.layers):
            block.mlp.down_proj.register_forward_pre_hook(lambda _, args, i=i: plain.__setitem__(i, args[0].clone()))
        with torch.inference_mode():
            model(input_ids=IDS)
        found = read(LoadedModel(model))
        for i in range(3):
            assert torch.equal(found[i, "mlp.post"][0], plain[i].reshape(12, 24))
            assert found[i, "mlp.post"][1] is None

    def test_sites_read_together_equal_sites_read_alone(self) -> None:
        loaded = LoadedModel(make_llama())
        together = read(loaded, sites=tuple(SITES))
        for site in SITES:
            alone = read(loaded, sites=(site,))
            assert alone.keys() == {(layer, site) for layer in range(3)}
            assert all(torch.equal(alone[key][0], together[key][0]) for key in alone)

    def test_nothing_after_the_last_wanted_layer_is_run(self) -> None:
        model = make_llama()
        loaded = LoadedModel(model)
        ran = []
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
        assert read(loaded, layers=[1]).keys() == {(1, "mlp.post")}
        assert "model.layers.1.mlp.down_proj" in ran
        assert not {"model.layers.2", "model.norm", "lm_head"} & set(ran)

    def test_a_mask_keeps_padding_from_what_follows_it(self) -> None:
        loaded = LoadedModel(make_llama())
        mask = torch.ones_like(IDS)
        mask[1, 4:] = 0
        masked, whole = read(loaded, attention_mask=mask), read(loaded)
        assert torch.allclose(masked[2, "mlp.post"][0][:10], whole[2, "mlp.post"][0][:10], atol=1e-6)
        assert len(masked[2, "mlp.post"][0]) == 12

    @pytest.mark.parametrize("sites", [("mlp.post",), tuple(SITES)])
    def test_hooks_are_gone_after_a_sink_fails(self, sites: tuple[str, ...]) -> None:
        model = make_llama()
        loaded = LoadedModel(model)

        def sink(*_: object) -> None:
            raise ZeroDivisionError

        before = model(input_ids=IDS).logits
        with pytest.raises(ZeroDivisionError):
            loaded.forward(IDS, sites=sites, sink=sink)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert torch.equal(model(input_ids=IDS).logits, before)

    def test_a_sink_may_compute_without_disturbing_what_is_read(self) -> None:
        loaded = LoadedModel(make_llama())
        expected = read(loaded, sites=tuple(SITES))
        found = {}

        def sink(layer: int, site: str, values: Tensor, _: Tensor | None) -> None:
            found[layer, site] = values.clone()
            (values * values).reshape(-1)[torch.tensor([0])] * 2  # products and selections of its own

        loaded.forward(IDS, sites=tuple(SITES), sink=sink)
        assert all(torch.equal(found[key], expected[key][0]) for key in expected)

    def test_an_expert_sees_each_routed_token_once(self) -> None:
        model = make_mixtral()
        found = read(LoadedModel(model), sites=("mlp.post", "mlp.gate", "mlp.up"))
        for block in (0, 4):
            rows = [found[layer, "mlp.post"][1] for layer in range(block, block + 4) if (layer, "mlp.post") in found]
            assert all(part is not None and len(part.unique()) == len(part) for part in rows)
            assert torch.equal(torch.cat(rows).bincount(), torch.full((12,), 2))  # two experts a token

    def test_experts_compute_what_the_default_implementation_does(self) -> None:
        model = make_mixtral()
        default = model(input_ids=IDS).logits
        LoadedModel(model)
        assert torch.allclose(model(input_ids=IDS).logits, default, atol=1e-6)

    def test_an_encoder_decoder_reads_the_window_in_both_stacks(self) -> None:
        torch.manual_seed(0)
        config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        loaded = LoadedModel(T5ForConditionalGeneration(config))
        assert [layer.stack for layer in loaded.spec.layers] == ["encoder", "encoder", "decoder", "decoder"]
        assert [layer.block for layer in loaded.spec.layers] == [0, 1, 0, 1]
        found = read(loaded)
        assert [len(found[layer, "mlp.post"][0]) for layer in range(4)] == [12] * 4
        embedded = loaded.model.shared(IDS).reshape(12, 16)
        stream = read(loaded, sites=("resid.pre",))
        assert torch.equal(stream[0, "resid.pre"][0], embedded)
        assert torch.equal(stream[2, "resid.pre"][0], embedded)

    def test_each_run_of_a_shared_layer_is_a_layer(self) -> None:
        torch.manual_seed(0)
        config = AlbertConfig(
            vocab_size=40,
            embedding_size=16,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
        )
        loaded = LoadedModel(AlbertForMaskedLM(config))
        assert len({layer.module for layer in loaded.spec.layers}) == 1
        assert [layer.block for layer in loaded.spec.layers] == [0, 1, 2]
        found = read(loaded, sites=("mlp.post", "resid.pre", "resid.post"))
        assert not torch.equal(found[0, "mlp.post"][0], found[1, "mlp.post"][0])
        assert torch.equal(found[1, "resid.pre"][0], found[0, "resid.post"][0])


class TestWeights:
    def test_write_vectors_of_every_layout(self) -> None:
        llama = make_llama()
        assert torch.equal(LoadedModel(llama).write_vectors(1), llama.model.layers[1].mlp.down_proj.weight.T)
        gpt2 = GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_inner=16)
        )  # square: no shape to go by
        projection = gpt2.transformer.h[1].mlp.c_proj
        loaded = LoadedModel(gpt2)
        assert torch.equal(loaded.write_vectors(1), projection.weight)
        assert torch.equal(loaded.output_bias(1), projection.bias)
        mixtral = make_mixtral()
        assert torch.equal(LoadedModel(mixtral).write_vectors(6), mixtral.model.layers[1].mlp.experts.down_proj[2].T)
        assert LoadedModel(mixtral).output_bias(6) is None

    def test_the_gain_of_the_final_norm(self) -> None:
        llama = make_llama()
        torch.nn.init.normal_(llama.model.norm.weight)
        assert torch.equal(LoadedModel(llama).final_norm_gain(), llama.model.norm.weight)
        config = GemmaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
        config.head_dim, config.num_key_value_heads = 8, 1
        gemma = GemmaForCausalLM(config)
        torch.nn.init.normal_(gemma.model.norm.weight)
        assert torch.equal(LoadedModel(gemma).final_norm_gain(), 1 + gemma.model.norm.weight)
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2))
        torch.nn.init.normal_(gpt2.transformer.ln_f.bias)
        loaded = LoadedModel(gpt2)
        assert torch.equal(loaded.final_norm_gain(), gpt2.transformer.ln_f.weight)
        assert torch.equal(loaded.final_norm_bias(), gpt2.transformer.ln_f.bias)

    def test_contributions_add_up_to_the_logits(self) -> None:
        model = make_llama()
        torch.nn.init.normal_(model.model.norm.weight)
        loaded = LoadedModel(model)
        stream = read(loaded, sites=("resid.post",))[2, "resid.post"][0]
        rms = stream.pow(2).mean(-1, keepdim=True).add(model.config.rms_norm_eps).sqrt()
        logits = stream / rms * loaded.final_norm_gain() @ loaded.unembedding().T
        assert torch.allclose(logits, model(input_ids=IDS).logits.reshape(12, 40), atol=1e-5)


class TestFingerprint:
    def test_survives_saving_and_tells_one_bit(self, tmp_path: Path) -> None:
        model = make_llama().bfloat16()
        before = LoadedModel(model).fingerprint()
        again = load_model(save(model, tmp_path), device="cpu")
        assert again.fingerprint() == before
        weight = again.model.model.layers[2].mlp.up_proj.weight
        with torch.no_grad():
            weight.view(torch.int16)[3, 5] ^= 1
        assert again.fingerprint() != before

    def test_tells_dtypes_apart(self) -> None:
        assert (
            LoadedModel(make_llama().bfloat16()).fingerprint()
            != LoadedModel(make_llama().bfloat16().float()).fingerprint()
        )


class TestDtype:
    @pytest.mark.parametrize(
        ("stored", "asked", "expected"),
        [
            ("float32", "auto", "float32"),
            ("bfloat16", "auto", "bfloat16"),
            ("float16", "auto", "float32"),  # half precision is slow and imprecise on a CPU
            ("float16", "float16", "float16"),
            ("float32", "bfloat16", "bfloat16"),
        ],
    )
    def test_auto_and_given(self, tmp_path: Path, stored: str, asked: str, expected: str) -> None:
        save(make_llama().to(getattr(torch, stored)), tmp_path)
        loaded = load_model(tmp_path, dtype=asked, device="cpu")
        assert loaded.dtype == getattr(torch, expected)
        assert loaded.spec.dtype == expected
        assert read(loaded)[0, "mlp.post"][0].dtype == loaded.dtype
