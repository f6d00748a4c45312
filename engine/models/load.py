"""Opening models: any Hugging Face transformer by name, folder or from memory; lists its MLP neurons and reads its weights.

`inspect_model` needs a configuration only; `load_model` loads weights. Layers are numbered in order of execution: an encoder's
before its decoder's, a block's dense and shared feed-forwards before its experts, experts by index, every run of a shared
module on its own. In a model that reads images and writes text, the language model's layers come first, then the vision
tower's, then the projector's.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from actstore.engine.devices.device import model_device
from actstore.engine.models import checkpoints, families
from actstore.engine.models.architecture import Architecture, walk
from actstore.engine.models.in_memory import in_evaluation, plain_model
from actstore.engine.models.layers import Layer, LayerSpec, ModelSpec, check_structure, list_layers
from actstore.engine.models.names import DTYPES
from actstore.engine.models.vision.example_images import ExampleImage, example_image
from actstore.engine.models.watch import PassInputs, SiteReader
from actstore.engine.models.writing.norms import Norm
from actstore.engine.models.writing.path import NORM, UNKNOWN, WRITE_SCALE, is_scaled
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.sites import Sink

__all__ = ["LayerSpec", "LoadedModel", "ModelSpec", "inspect_model", "load_model"]


def inspect_model(model: ModelInput, *, trust_remote_code: bool = False) -> ModelSpec:
    """What can be captured from a model: its layers, sites and sizes. Reads its configuration; loads no weights.

    `model` is a Hub id, a folder, or a transformers model in memory, which is left as it is. Raises `ModelError` where there is
    no such model, or where it has no feed-forward neurons, and `InvalidInputError` for any other object.
    """
    if not isinstance(model, str | os.PathLike):
        plain = plain_model(model)
        with in_evaluation(plain):
            return LoadedModel(plain).spec
    name = os.fspath(model)
    config = checkpoints.load_config(name, trust_remote_code=trust_remote_code)
    twin, architecture = _explore(families.model_class(config, trust_remote_code=trust_remote_code), config)
    return list_layers(twin, architecture, name=name, dtype=families.dtype_of(config))[0]


_LOADING: Final = Lock()
"""While it loads a model, transformers replaces functions of torch: of two at once, one would leave them replaced for good."""


def load_model(
    name_or_path: str | Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """A model with its weights, ready to run.

    `dtype` "auto" is the checkpoint's own; on the CPU float32 instead of float16, which is slow and imprecise there. `device`
    "auto" is the GPU where there is one. Raises `ModelError` as `inspect_model` does, and where weights are missing.
    """
    name = str(name_or_path)
    if dtype not in DTYPES:
        raise InvalidInputError(f"expected `dtype` to be one of {', '.join(DTYPES)}, found {dtype!r}")
    config = checkpoints.load_config(name, trust_remote_code=trust_remote_code)
    target = model_device(device)
    kind = families.model_class(config, trust_remote_code=trust_remote_code)
    with _LOADING:
        model = checkpoints.load_weights(kind, name, dtype=dtype, device=target, trust_remote_code=trust_remote_code)
    return LoadedModel(model, name=name)


def _explore(kind: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[PreTrainedModel, Architecture]:
    """A model without weights and its architecture, found with an image where it reads images and an example is known."""
    example = example_image(config)
    explored = None if example is None else _explore_image(kind, example)
    if explored is not None:
        return explored
    twin = families.build_weightless(kind, config)
    return twin, _walk(twin)


def _explore_image(kind: type[PreTrainedModel], example: ExampleImage) -> tuple[PreTrainedModel, Architecture] | None:
    """The same with an image; None where the model raises anything at it: it is then explored on text alone."""
    try:
        twin = families.build_weightless(kind, example.config)
        base = families.headless(twin)
        arguments = families.arguments_for(base, example.ids, None, example.extra)
        architecture = walk(twin, lambda: base(**arguments), between=True)
    except Warning:  # raised only where the user turned warnings into errors, and no reason to leave the image out
        raise
    except Exception:
        return None
    return (twin, architecture) if architecture.blocks else None


def _walk(twin: PreTrainedModel) -> Architecture:
    """The architecture of a weightless model, or `ModelError` where it has no neurons."""
    base = families.headless(twin)
    ids, extra = families.example_inputs(base, families.example_ids(base))
    try:
        architecture = walk(twin, lambda: base(**families.arguments_for(base, ids, None, extra)))
    except Warning:
        raise
    except Exception as error:
        raise ModelError(
            f"expected {twin.config.model_type!r} ({type(twin).__name__}) to run on token ids or images alone, and it does not:"
            f" {checkpoints.first_line(error)}; choose another model, or the part of it that reads text"
        ) from error
    if not architecture.blocks:
        reason = (
            "no block of it holds a feed-forward"
            if architecture.has_attention
            else "it is a state-space or recurrent model"
        )
        raise ModelError(
            f"expected a transformer with feed-forward neurons, and {twin.config.model_type!r} ({type(twin).__name__})"
            f" has none: {reason}; choose another model"
        )
    rows = {entry.n_rows for block in architecture.blocks for entry in block.projections if not entry.routed}
    has_other_rows = twin.config.model_type in families.TOKEN_POSITIONS or extra
    if ids is not None and not has_other_rows and rows - {ids.numel()}:
        raise ModelError(
            f"expected every layer of {twin.config.model_type!r} ({type(twin).__name__}) to hold one row for each token it"
            f" reads, and for {ids.numel()} tokens found {sorted(rows)} rows (prompts, patches or streams of its own)"
        )
    return architecture


class LoadedModel:
    """A model and its specification: run it and read its sites, its weights and its fingerprint.

    Made of any transformers model in memory; `load_model` makes one from a name.
    """

    def __init__(self, model: PreTrainedModel, *, name: str | None = None) -> None:
        families.run_experts_eagerly(model)
        model.eval()  # type: ignore[no-untyped-call]
        self.model = model
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        twin, self.architecture = _explore(type(model), model.config)
        check_structure(model, twin)
        self.spec, self.layers = list_layers(
            model, self.architecture, name=name or model.name_or_path or type(model).__name__, dtype=model.dtype
        )

    def forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        *,
        sites: Sequence[str] = ("mlp.post",),
        layers: Iterable[int] | None = None,
        sink: Sink,
        extra: Mapping[str, Tensor] | None = None,
        scales: bool = False,
    ) -> None:
        """Run `input_ids` [window, position] once and hand each of `sites` to `sink(layer, site, values, rows)`.

        `values` is [row, neuron] or [row, d_model], in the model's dtype and on its device, valid during the call only. `rows`
        is None where there is a row for every window·position, in row-major order; for a routed expert it holds the indices
        window·n_positions + position of the tokens that were routed to it (int64, each once, in no particular order).
        Residual sites are handed over under the first layer of their block. An encoder-decoder reads the window in both stacks,
        so that row t is the token read at position t in each. `extra` holds further inputs (pixel_values, input_features); rows
        then count the positions of the stack that is read. The head is not run, nor anything after the last block to be read.
        With `scales`, each layer's factors of `scaled_by` come under the name `WRITE_SCALE`, [row, 1], a call for each factor.

        Raises `InvalidInputError` for a site or layer that the model does not have.
        """
        reader = SiteReader(self.model, self.architecture, self.layers, self._write_norms if scales else {})
        names: dict[int, list[str]] = self._sites_by_layer(sites, layers)
        for layer in names if scales else ():
            if is_scaled(self._scaled_by[layer]):
                names[layer].append(WRITE_SCALE)
        reader.read(names, PassInputs(input_ids, attention_mask, extra or {}), sink)

    @cached_property
    def _write_norms(self) -> dict[str, Norm]:
        """Module → the norm, of all that follow a feed-forward."""
        norms = {}
        for layer in self.spec.layers:
            module, point = self._write_norm(layer.layer), self.layer(layer.layer).projection.write_path.norm
            if module is not None and point is not None and point.module not in norms:
                norms[point.module] = self._norm(module, layer.d_model)
        return norms

    @cached_property
    def _scaled_by(self) -> list[tuple[str, ...]]:
        return [self.scaled_by(spec.layer) for spec in self.spec.layers]

    def _sites_by_layer(self, sites: Sequence[str], layers: Iterable[int] | None) -> dict[int, list[str]]:
        """Layer → those of `sites` that it has, for each of `layers`; all layers where None."""
        if unknown := [site for site in sites if site not in self.spec.sites]:
            raise InvalidInputError(
                f"expected sites among {', '.join(self.spec.sites)} for {self.spec.name}, found {', '.join(unknown)}"
            )
        numbers = range(len(self.layers)) if layers is None else sorted(set(layers))
        return {number: [site for site in sites if site in self.layer(number).sites] for number in numbers}

    def layer(self, number: int) -> Layer:
        """A layer by its number; `InvalidInputError` where the model has no such layer."""
        if not 0 <= number < len(self.layers):
            raise InvalidInputError(
                f"expected a layer from 0 to {len(self.layers) - 1} for {self.spec.name}, found {number}"
            )
        return self.layers[number]

    def write_vectors(self, layer: int) -> Tensor:
        """The write vectors of a layer [neuron, d_model]: what each neuron adds to its MLP's output per unit of activation.

        A view of the model's weights, in their dtype and on their device.
        """
        source = self.layer(layer)
        projection = source.projection
        shape = (projection.neurons, projection.width)
        weight = self.model.get_parameter(source.parameter).detach()
        matrices = weight.reshape(projection.n_matrices, *(reversed(shape) if projection.transposed else shape))
        return matrices[source.matrix].T if projection.transposed else matrices[source.matrix]

    def output_bias(self, layer: int) -> Tensor | None:
        """The bias of a layer's output projection [d_model], or None."""
        source = self.layer(layer)
        owner, _, name = source.parameter.rpartition(".")
        module = self.model.get_submodule(owner)
        bias = getattr(module, "bias" if name == "weight" else f"{name}_bias", None)
        if not isinstance(bias, nn.Parameter):
            return None
        if source.projection.n_matrices > 1:
            return bias.detach()[source.matrix] if bias.dim() == 2 else None
        return bias.detach()

    def unembedding(self) -> Tensor | None:
        """The unembedding matrix [vocabulary, d_model], or None where the model has no such head."""
        return families.unembedding_of(self.model, self.spec.d_model)

    def final_norm_gain(self) -> Tensor | None:
        """The gain γ of the norm before the unembedding [d_model], 1 + w where the model keeps w (Gemma); None without one."""
        return self.final_norm().get("weight")

    def final_norm_bias(self) -> Tensor | None:
        """The bias of the norm before the unembedding [d_model]; None where there is no norm, or it has no bias."""
        return self.final_norm().get("bias")

    def final_norm(self) -> dict[str, Tensor]:
        """What the norm before the unembedding does: `weight` (its gain) and `bias` [d_model] where it has them, and scalars.

        `epsilon` is what it adds to the mean square; `centres`, whether it subtracts the mean first, as LayerNorm does.
        Empty where there is no norm.
        """
        module = self._final_norm()
        if module is None:
            return {}
        norm = self._norm(module, self.spec.d_model)
        parts = {"weight": norm.gain, "bias": norm.bias, "epsilon": torch.tensor(norm.epsilon, dtype=torch.float64)}
        return _present(parts | {"centres": torch.tensor(norm.centres)})

    def scaled_by(self, layer: int) -> tuple[str, ...]:
        """As in the layer's specification; unknown as well where a norm does something else than norms do."""
        module = self._write_norm(layer)
        if module is not None and not self._norm(module, width := self.spec.layers[layer].d_model).describes(
            module, width, self._example(width)
        ):
            return (UNKNOWN,)
        return self.spec.layers[layer].scaled_by

    def post_norm(self, layer: int) -> dict[str, Tensor]:
        """What a layer's write vectors are multiplied with at every position on their way to the residual stream.

        `post_gain` [d_model], the gain of the norm after the feed-forward times the factor of the block; `post_centres`,
        whether the mean is subtracted before. Empty where there is neither.
        """
        path, width = self.layer(layer).projection.write_path, self.spec.layers[layer].d_model
        module = self._write_norm(layer)
        if UNKNOWN in self.scaled_by(layer) or (module is None and path.factor == 1):
            return {}
        norm = None if module is None else self._norm(module, width)
        gain = torch.ones(width, device=self.device) if norm is None or norm.gain is None else norm.gain.float()
        return {"post_gain": gain * path.factor, "post_centres": torch.tensor(norm is not None and norm.centres)}

    def _write_norm(self, layer: int) -> nn.Module | None:
        """The norm after a layer's feed-forward."""
        norm = self.layer(layer).projection.write_path.norm if NORM in self.spec.layers[layer].scaled_by else None
        return None if norm is None else self.model.get_submodule(norm.module)

    def _norm(self, module: nn.Module, width: int) -> Norm:
        return Norm.of(module, width, self._example(width))

    def _example(self, width: int) -> Tensor:
        return torch.empty(width, dtype=self.dtype, device=self.device)

    def _final_norm(self) -> nn.Module | None:
        path = self.architecture.final_norm
        return None if path is None else self.model.get_submodule(path)

    def fingerprint(self) -> str:
        """The sha256 of all weights: name, dtype, shape and bytes of every entry of the state dict, by name.

        Two models agree exactly where every weight does, bit for bit. Weights pass through the CPU one at a time.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _present(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
