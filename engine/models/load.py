"""Models: opens any Hugging Face transformer, lists its MLP neurons, and runs it while handing over what its sites hold.

`inspect_model` needs a configuration only; `load_model` loads weights. Layers are numbered in order of execution: an encoder's
before its decoder's, a block's dense and shared feed-forwards before its experts, experts by index, every run of a shared
module for itself. In a model that reads images and writes text, the language model's layers come first, then the vision
tower's, then the projector's. Knows nothing about corpora, plans or stores.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from actstore.engine.models import checkpoints, families
from actstore.engine.models.architecture import Architecture, walk
from actstore.engine.models.in_memory import plain_model, unchanged
from actstore.engine.models.layers import Layer, LayerSpec, ModelSpec, check_structure, list_layers
from actstore.engine.models.names import BLOCK_SITES, DTYPES, MLP_SITES
from actstore.engine.models.products import Watch, Watched
from actstore.engine.models.sites import LastLayerReached, Sink, Tap, tapped, tokens_only
from actstore.engine.models.vision.example_images import ExampleImage, example_image
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

    from actstore.engine.models.in_memory import ModelInput

__all__ = ["LayerSpec", "LoadedModel", "ModelSpec", "inspect_model", "load_model"]

_EPSILONS = ("eps", "variance_epsilon", "epsilon", "norm_eps")  # as norms call what they add to the mean square


def inspect_model(model: ModelInput, *, trust_remote_code: bool = False) -> ModelSpec:
    """What would be captured from a model: its layers, sites and sizes. Reads its configuration; loads no weights.

    `model` is a Hub id, a folder, or a transformers model in memory, which is left as it is. Raises `ModelError` where there is
    no such model, or where it has no feed-forward neurons, and `InvalidInputError` for what is no model at all.
    """
    if not isinstance(model, str | os.PathLike):
        plain = plain_model(model)
        with unchanged(plain):
            return LoadedModel(plain).spec
    name = os.fspath(model)
    config = checkpoints.load_config(name, trust_remote_code=trust_remote_code)
    twin, found = _explore(families.model_class(config, trust_remote_code=trust_remote_code), config)
    return list_layers(twin, found, name=name, dtype=families.dtype_of(config))[0]


def load_model(
    name_or_path: str | Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """A model with its weights, ready to run.

    `dtype` "auto" is the checkpoint's own; on the CPU float32 instead of float16, which is slow and imprecise there. `device`
    "auto" is the GPU where there is one. Raises `ModelError` as `inspect_model` does, and where weights are missing.
    """
    name = str(name_or_path)
    if dtype not in DTYPES:
        raise InvalidInputError(f"expected dtype to be one of {', '.join(DTYPES)}, found {dtype!r}")
    config = checkpoints.load_config(name, trust_remote_code=trust_remote_code)
    target = _device(device)
    kind = families.model_class(config, trust_remote_code=trust_remote_code)
    model = checkpoints.load_weights(kind, name, dtype=dtype, device=target, trust_remote_code=trust_remote_code)
    return LoadedModel(model, name=name)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # A device is only known to be there once something is put on it.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(
            f"expected a device such as cpu, cuda or cuda:1, found {name!r}: {checkpoints.first_line(error)}"
        ) from error


def _explore(kind: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[PreTrainedModel, Architecture]:
    """A model without weights and its architecture, found with an image where it reads any and can be given one."""
    example = example_image(config)
    found = None if example is None else _explore_image(kind, example)
    if found is not None:
        return found
    twin = families.build_weightless(kind, config)
    return twin, _walk(twin)


def _explore_image(kind: type[PreTrainedModel], example: ExampleImage) -> tuple[PreTrainedModel, Architecture] | None:
    """The same with an image; None where the model does not take it, whatever it raises: its text alone is left."""
    try:
        twin = families.build_weightless(kind, example.config)
        base = families.headless(twin)
        arguments = families.arguments_for(base, example.ids, None, example.extra)
        found = walk(twin, lambda: base(**arguments), between=True)
    except Warning:  # an error only where the user asked for that, and no reason to leave the image out
        raise
    except Exception:
        return None
    return (twin, found) if found.blocks else None


def _walk(twin: PreTrainedModel) -> Architecture:
    """The architecture of a weightless model, or `ModelError` where it has no neurons."""
    base = families.headless(twin)
    ids, extra = families.example_inputs(base, families.example_ids(base))
    try:
        found = walk(twin, lambda: base(**families.arguments_for(base, ids, None, extra)))
    except Warning:
        raise
    except Exception as error:
        raise ModelError(
            f"expected {twin.config.model_type!r} ({type(twin).__name__}) to run on token ids or images alone, and it does not:"
            f" {checkpoints.first_line(error)}; choose another model, or the part of it that reads text"
        ) from error
    if not found.blocks:
        reason = (
            "no block of it holds a feed-forward" if found.has_attention else "it is a state-space or recurrent model"
        )
        raise ModelError(
            f"expected a transformer with feed-forward neurons, and {twin.config.model_type!r} ({type(twin).__name__})"
            f" has none: {reason}; choose another model"
        )
    rows = {entry.n_rows for block in found.blocks for entry in block.projections if not entry.routed}
    tied = twin.config.model_type in families.TOKEN_POSITIONS or extra
    if ids is not None and not tied and rows - {ids.numel()}:
        raise ModelError(
            f"expected every layer of {twin.config.model_type!r} ({type(twin).__name__}) to hold one row for each token it"
            f" reads, and for {ids.numel()} tokens found {sorted(rows)} rows (prompts, patches or streams of its own)"
        )
    return found


class LoadedModel:
    """A model, its specification, and the means to run it, read its weights and tell it from others.

    Takes any transformers model in memory; `load_model` makes one from a name.
    """

    def __init__(self, model: PreTrainedModel, *, name: str | None = None) -> None:
        families.run_experts_eagerly(model)
        model.eval()  # type: ignore[no-untyped-call]
        self.model = model
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        twin, self._architecture = _explore(type(model), model.config)
        check_structure(model, twin)
        self.spec, self._layers = list_layers(
            model, self._architecture, name=name or model.name_or_path or type(model).__name__, dtype=model.dtype
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
    ) -> None:
        """Run `input_ids` [window, position] once and hand every wanted site to `sink(layer, site, values, rows)`.

        `values` is [row, neuron] or [row, d_model], in the model's dtype and on its device, valid during the call only. `rows`
        is None where all window·position rows are there, in row-major order; for a routed expert it holds the flat indices
        window·n_positions + position of the tokens that were routed to it (int64, each once, in no particular order).
        Residual sites are handed over under the first layer of their block. An encoder-decoder reads the window in both stacks,
        so that row t is the token read at position t in each. `extra` holds further inputs (pixel_values, input_features); rows
        then count the positions of the stack at hand. The head is not run, and nothing after the last block that is wanted.

        Raises `InvalidInputError` for a site or layer that the model does not have.
        """
        wanted = self._wanted(sites, layers)
        base = families.headless(self.model)
        move = {key: value.to(self.device) for key, value in (extra or {}).items()}
        arguments = families.arguments_for(
            base,
            None if input_ids is None else input_ids.to(self.device),
            None if attention_mask is None else attention_mask.to(self.device),
            {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in move.items()},
        )
        where = families.TOKEN_POSITIONS.get(self.spec.model_type)
        if where is not None and input_ids is not None:
            sink = tokens_only(sink, len(input_ids), input_ids.shape[1], where)
        taps, watched = self._taps(wanted), self._watched(wanted)
        last = max((self._layers[layer].position for layer in wanted), default=0)
        block = self._architecture.blocks[last]
        with suppress(LastLayerReached), torch.inference_mode(), ExitStack() as open_:
            watch = Watch(watched, sink)
            hooked = watch.deafen(sink) if watched else sink
            open_.enter_context(tapped(self.model, taps, hooked, stop=(block.module, block.run)))
            if watched:
                open_.enter_context(watch)
            families.part_for(base, arguments)(**arguments)

    def _wanted(self, sites: Sequence[str], layers: Iterable[int] | None) -> dict[int, list[str]]:
        """The sites wanted of every layer, where it has them."""
        if unknown := [site for site in sites if site not in self.spec.sites]:
            raise InvalidInputError(
                f"expected sites among {', '.join(self.spec.sites)} for {self.spec.name}, found {', '.join(unknown)}"
            )
        count = len(self.spec.layers)
        chosen = range(count) if layers is None else sorted(set(layers))
        return {layer: [site for site in sites if site in self._find(layer).sites] for layer in chosen}

    def _taps(self, wanted: Mapping[int, Collection[str]]) -> dict[Tap, list[tuple[int, str]]]:
        taps: dict[Tap, list[tuple[int, str]]] = {}
        for index, sites in wanted.items():
            layer = self._layers[index]
            for site in sites:
                if site in BLOCK_SITES:
                    taps.setdefault(layer.taps[site], []).append((index, site))
                elif site == "mlp.post" and layer.projection.hooked:
                    tap = Tap(layer.projection.owner, "input", 0, layer.projection.run)
                    taps.setdefault(tap, []).append((index, site))
        return taps

    def _watched(self, wanted: Mapping[int, Collection[str]]) -> list[Watched]:
        """The projections whose use must be watched: routed ones, and those of which a factor is wanted."""
        by_parameter: dict[str, list[int]] = {}
        for index, layer in enumerate(self._layers):
            by_parameter.setdefault(layer.parameter, []).append(index)
        watched = []
        for parameter, indices in by_parameter.items():
            projection = self._layers[indices[0]].projection
            sites = {i: [site for site in wanted.get(i, ()) if self._is_watched(i, site)] for i in indices}
            if any(sites.values()):
                weight = self.model.get_parameter(parameter)
                watched.append(
                    Watched(weight, projection.n_matrices, projection.routed, projection.gate, tuple(indices), sites)
                )
        return watched

    def _is_watched(self, layer: int, site: str) -> bool:
        return site in MLP_SITES and not (site == "mlp.post" and self._layers[layer].projection.hooked)

    def write_vectors(self, layer: int) -> Tensor:
        """The write vectors of a layer [neuron, d_model]: what each neuron adds to its MLP's output per unit of activation.

        A view of the model's weights, in their dtype and on their device.
        """
        found = self._find(layer)
        projection = found.projection
        shape = (projection.neurons, projection.width)
        weight = self.model.get_parameter(found.parameter).detach()
        matrices = weight.reshape(projection.n_matrices, *(reversed(shape) if projection.transposed else shape))
        return matrices[found.matrix].T if projection.transposed else matrices[found.matrix]

    def _find(self, layer: int) -> Layer:
        if not 0 <= layer < len(self._layers):
            raise InvalidInputError(
                f"expected a layer from 0 to {len(self._layers) - 1} for {self.spec.name}, found {layer}"
            )
        return self._layers[layer]

    def output_bias(self, layer: int) -> Tensor | None:
        """The bias of a layer's output projection [d_model], or None."""
        found = self._find(layer)
        owner, _, name = found.parameter.rpartition(".")
        module = self.model.get_submodule(owner)
        bias = getattr(module, "bias" if name == "weight" else f"{name}_bias", None)
        if not isinstance(bias, nn.Parameter):
            return None
        if found.projection.n_matrices > 1:
            return bias.detach()[found.matrix] if bias.dim() == 2 else None
        return bias.detach()

    def unembedding(self) -> Tensor | None:
        """The unembedding matrix [vocabulary, d_model], or None where the model has no such head."""
        head = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        weight = getattr(head, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] != self.spec.d_model:
            return None
        return weight.detach()

    def final_norm_gain(self) -> Tensor | None:
        """The gain γ of the norm before the unembedding [d_model], 1 + w where the model keeps w (Gemma); None without one."""
        norm = self._final_norm()
        weight = getattr(norm, "weight", None)
        if norm is None or not isinstance(weight, Tensor):
            return None
        weight = weight.detach()
        probe = torch.ones_like(
            weight
        )  # ±1 has mean 0 and root mean square 1: a norm returns its gain, up to its epsilon
        probe[1::2] = -1
        bias = self.final_norm_bias()
        with torch.inference_mode():
            gain = (norm(probe) - (0 if bias is None else bias)) * probe
        is_offset = (gain - (1 + weight)).abs().sum() < (gain - weight).abs().sum()
        return 1 + weight if bool(is_offset) else weight

    def final_norm_bias(self) -> Tensor | None:
        """The bias of the norm before the unembedding [d_model]; None where there is no norm, or it has no bias."""
        bias = getattr(self._final_norm(), "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def final_norm(self) -> dict[str, Tensor]:
        """What the norm before the unembedding does: `weight` (its gain) and `bias` [d_model] where it has them, and scalars.

        `epsilon`, what it adds to the mean square, and `centres`, whether it takes the mean away first, as LayerNorm does.
        Empty where there is no norm.
        """
        norm = self._final_norm()
        if norm is None:
            return {}
        parts = {"weight": self.final_norm_gain(), "bias": self.final_norm_bias()}
        epsilon = next((getattr(norm, name) for name in _EPSILONS if isinstance(getattr(norm, name, None), float)), 0.0)
        parts |= {"epsilon": torch.tensor(epsilon, dtype=torch.float64), "centres": torch.tensor(self._centres(norm))}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def _centres(self, norm: nn.Module) -> bool:
        gain, bias = self.final_norm_gain(), self.final_norm_bias()
        scale = torch.ones(self.spec.d_model, dtype=self.dtype, device=self.device) if gain is None else gain
        with torch.inference_mode():  # of a constant, a LayerNorm leaves its bias alone; an RMSNorm, its gain
            left = norm(torch.ones_like(scale)) - (0 if bias is None else bias)
        return float(left.abs().max()) < 0.1 * float(scale.abs().max())

    def _final_norm(self) -> nn.Module | None:
        path = self._architecture.final_norm
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
