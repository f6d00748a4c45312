"""EARLY VERSION (Llama-like dense only); the structural version replaces it under the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from actstore.engine.sites import SITES, LastLayerReached, Tap, tapped
from actstore.store.errors import ModelError

Sink = Callable[[int, str, Tensor, "Tensor | None"], None]


@dataclass(frozen=True)
class LayerSpec:
    layer: int
    neurons: int
    module: str
    gated: bool
    block: int
    stack: str
    expert: int | None


@dataclass(frozen=True)
class ModelSpec:
    name: str
    model_type: str
    kind: str
    d_model: int
    n_vocabulary: int | None
    context: int | None
    layers: tuple[LayerSpec, ...]
    sites: tuple[str, ...]
    dtype: str
    causal: bool

    def width(self, layer: int, site: str) -> int:
        return self.layers[layer].neurons if site.startswith("mlp.") else self.d_model

    def layers_of(self, site: str) -> tuple[int, ...]:
        return tuple(range(len(self.layers)))


def _load_config(name: str, trust_remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"expected a model folder or a Hub id (organisation/name), found neither at {name!r}") from error


def inspect_model(name_or_path: str | Path, *, trust_remote_code: bool = False) -> ModelSpec:
    config = _load_config(str(name_or_path), trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return _describe(str(name_or_path), model)


def _describe(name: str, model: Any) -> ModelSpec:
    layers = []
    for path, module in model.named_modules():
        if path.endswith("mlp.down_proj"):
            layers.append(LayerSpec(len(layers), module.in_features, path, True, len(layers), "decoder", None))
    config = model.config
    return ModelSpec(name, config.model_type, "causal", config.hidden_size, config.vocab_size,
                     config.max_position_embeddings, tuple(layers), SITES, str(model.dtype).removeprefix("torch."), True)


def load_model(
    name_or_path: str | Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    _load_config(str(name_or_path), trust_remote_code)
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(str(name_or_path), dtype=kind)
    if dtype == "auto" and target == "cpu" and model.dtype == torch.float16:
        model = model.float()
    model.eval().to(target)
    return LoadedModel(model, _describe(str(name_or_path), model))


class LoadedModel:
    def __init__(self, model: Any, spec: ModelSpec) -> None:
        self.model, self.spec = model, spec
        self.device, self.dtype = model.device, model.dtype

    def _tap(self, layer: int, site: str) -> Tap:
        path = self.spec.layers[layer].module
        mlp, block = path.rpartition(".")[0], path.rpartition(".mlp.")[0]
        return {
            "mlp.post": Tap(path, "input"),
            "mlp.gate": Tap(mlp + ".act_fn", "output", None),
            "mlp.up": Tap(mlp + ".up_proj", "output", None),
            "resid.pre": Tap(block, "input"),
            "resid.mid": Tap(block + ".post_attention_layernorm", "input"),
            "resid.post": Tap(block, "output", None),
            "attn.out": Tap(block + ".self_attn", "output", 0),
        }[site]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        sites: Sequence[str] = ("mlp.post",),
        layers: Iterable[int] | None = None,
        sink: Sink,
    ) -> None:
        chosen = range(len(self.spec.layers)) if layers is None else layers
        taps: dict[Tap, list[tuple[int, str]]] = {}
        for layer in chosen:
            for site in sites:
                taps.setdefault(self._tap(layer, site), []).append((layer, site))
        with suppress(LastLayerReached), torch.inference_mode(), tapped(self.model, taps, sink):
            self.model.base_model(
                input_ids=input_ids.to(self.device),
                attention_mask=None if attention_mask is None else attention_mask.to(self.device),
                use_cache=False,
            )

    def write_vectors(self, layer: int) -> Tensor:
        return self.model.get_submodule(self.spec.layers[layer].module).weight.detach().T

    def output_bias(self, layer: int) -> Tensor | None:
        bias = self.model.get_submodule(self.spec.layers[layer].module).bias
        return None if bias is None else bias.detach()

    def unembedding(self) -> Tensor | None:
        return self.model.get_output_embeddings().weight.detach()

    def final_norm_gain(self) -> Tensor | None:
        return self.model.base_model.norm.weight.detach()

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
