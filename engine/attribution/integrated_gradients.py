"""Integrated gradients: how much of a prediction's probability every MLP neuron at the predicting position accounts for.

    na(n) = (ā_n / m) · Σ_{k=1..m} ∂P((k/m)·ā) / ∂a_n

P is the softmax probability of the target token at a position, ā the layer's activations A_post there (the input of its MLP's
output projection; or what a projection of its attention gives or reads), and one layer's whole vector is scaled at a time:
Sundararajan et al. (2017, arXiv 1703.01365, eq. 3) as used by Dai et al. (2022, arXiv 2104.08696, eq. 2, m = 20) and Chen et
al. (2025, arXiv 2406.10868, m = 16). Taken over the gate or over the up projection of a gated MLP the attribution is the same:
each path makes A_post(α) = α·A_post.

With scope "sequence" ā are a layer's activations at all positions [position, neuron], scaled together, as for a model of
proteins (Nori, Singireddy and Have 2023, arXiv 2312.10770), whose keys and values matter where others attend to them.

Two paths compute it, with the same result: `cached_path` for causal models, `full_path` for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import torch

from actstore.engine.attribution.cached_path import CannotCacheError, cached_sums
from actstore.engine.attribution.full_path import PATHS, FullPath, Path
from actstore.engine.models.patching import patch_points, weights_without_gradients
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.patching import PatchPoint, Sums

Scope = Literal["position", "sequence"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
"""Which activations are scaled: those where the token is predicted, or those of the whole sequence."""


@dataclass(frozen=True)
class PathSettings(Typed):
    """How the integral along the path from 0 to ā is computed."""

    steps: int = 16
    """m: 16 as Chen et al. do, 20 as Dai et al. do."""
    layers: tuple[int, ...] | None = None
    """The layers to attribute to; None is all of the text stack."""
    max_rows: int = 256
    """The memory bound: the number of token rows that run, and are kept for the gradient, at once. Changes rounding only."""
    path: Path = "auto"
    """"auto" takes the cached path where it holds; "cached" raises where it does not."""
    site: str = "mlp.post"
    """Whose activations: `mlp.post`, or attention's `attn.q`, `attn.k`, `attn.v` or `attn.z`."""
    scope: Scope = "position"
    """Whether they are scaled at the position alone, or at all positions together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("steps", self.steps), ("max_rows", self.max_rows)):
            if value < 1:
                raise InvalidInputError(f"Expected `{name}` to be at least 1, found {value}.")
        if self.path not in PATHS:
            raise InvalidInputError(f"Expected `path` to be one of {', '.join(PATHS)}, found {self.path!r}.")
        if self.scope not in SCOPES:
            raise InvalidInputError(f"Expected `scope` to be one of {', '.join(SCOPES)}, found {self.scope!r}.")


@dataclass(frozen=True)
class Attribution:
    """The attribution of one prompt: layer → array [neuron] in float32; with scope "sequence", [position, neuron]."""

    attributions: dict[int, NDArray[np.float32]]
    """Integrated gradients."""
    activations: dict[int, NDArray[np.float32]]
    """ā, the activations at the position."""
    gradients: dict[int, NDArray[np.float32]]
    """∂P/∂a at ā."""
    probability: float
    """P of the target, without any patch."""
    path: Literal["cached", "full"]
    """The path that was taken."""
    fallback: str | None = None
    """Why not the cached path, where it was tried."""

    def gradient_times_activation(self) -> dict[int, NDArray[np.float32]]:
        """Gradient × activation: the attribution with one step, at ā."""
        return {layer: self.gradients[layer] * values for layer, values in self.activations.items()}

    def flat(self) -> NDArray[np.float32]:
        """The attributions of all layers, concatenated in ascending order; shape [neuron], or [position, neuron]."""
        return np.concatenate([self.attributions[layer] for layer in sorted(self.attributions)], axis=-1)


def integrated_gradients(
    model: LoadedModel,
    input_ids: Sequence[int] | Tensor,
    target: int,
    *,
    position: int | None = None,
    settings: PathSettings | None = None,
) -> Attribution:
    """The attribution of a token's probability at one position of a prompt to every neuron of the layers.

    input_ids: [position], with the special tokens that the model expects. target: the token id whose probability is attributed.
    position: the last by default; for a masked model, that of its mask. Passes run in the model's dtype on its
    device; probabilities and sums over steps are in float32.

    Raises `InvalidInputError` for ids, positions or layers that the model does not have, for routed experts, and for models
    that do not read text in one stack; `ModelError` for one without logits.

    >>> integrated_gradients(model, tokenizer("Paris is in")["input_ids"], target=4881).attributions[3]
    """
    settings = settings or PathSettings()
    ids, at = _check(model, input_ids, target, position)
    places = patch_points(model, settings.layers, settings.site)
    sequence = settings.scope == "sequence"
    reason = None if settings.path == "full" else _why_not_cached(model, ids, at, places, sequence)
    with weights_without_gradients(model.model), torch.enable_grad():
        if settings.path != "full" and reason is None:
            try:
                return _result(_cached(model, ids, target, places, settings), places, settings, "cached", None)
            except CannotCacheError as error:
                reason = str(error)
        if settings.path == "cached":
            raise InvalidInputError(
                f'The cached path does not hold for {model.spec.name} and this prompt: {reason}. Set `path="auto"` or '
                '`path="full"`.'
            )
        path = FullPath(model, ids, at, target, whole_sequence=sequence)
        sums = path.sums(places, settings.steps, settings.max_rows)
        return _result(sums, places, settings, "full", reason)


def _cached(model: LoadedModel, ids: Tensor, target: int, places: list[PatchPoint], settings: PathSettings) -> Sums:
    try:
        return cached_sums(model, ids, target, places, settings.steps, settings.max_rows)
    # A warning that was turned into an error is the caller's wish, and no sign of the cached path.
    except (CannotCacheError, torch.OutOfMemoryError, MemoryError, Warning):
        raise
    except Exception as error:
        # Any error of a model in which a cache and a mask are used in a way it was not written for: the full path uses neither.
        raise CannotCacheError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _why_not_cached(
    model: LoadedModel, ids: Tensor, position: int, places: list[PatchPoint], sequence: bool
) -> str | None:
    if sequence:
        return "all positions are patched, and earlier ones are what is cached"
    if model.spec.kind != "causal":
        return f"a model of kind {model.spec.kind!r} has no cache of keys and values"
    if position != ids.shape[1] - 1:
        return "the position is not the last"
    if any(place.side == "output" for place in places):
        return "what a projection returns to attention is patched, and keys are among what is cached"
    return None


def _check(
    model: LoadedModel, input_ids: Sequence[int] | Tensor, target: int, position: int | None
) -> tuple[Tensor, int]:
    """The ids [1, position] on the model's device, and the position counted from the start."""
    spec = model.spec
    if spec.kind not in {"causal", "encoder"} or spec.n_vocabulary is None:
        raise InvalidInputError(
            f"{spec.name} is of kind {spec.kind!r}: expected a model that reads and predicts text in one stack. Name a decoder "
            "or a masked encoder."
        )
    ids = torch.as_tensor(input_ids, dtype=torch.int64)
    if ids.dim() != 1 or not len(ids):
        raise InvalidInputError(
            f"Expected `input_ids` [position] of at least one token, found shape {list(ids.shape)}."
        )
    for name, low, high in (("input_ids", int(ids.min()), int(ids.max())), ("target", target, target)):
        if low < 0 or high >= spec.n_vocabulary:
            raise InvalidInputError(
                f"Expected `{name}` from 0 to {spec.n_vocabulary - 1} for {spec.name}, found {low if low < 0 else high}."
            )
    at = len(ids) - 1 if position is None else position
    if not 0 <= at < len(ids):
        raise InvalidInputError(f"Expected `position` from 0 to {len(ids) - 1} of the prompt, found {position}.")
    return ids[None].to(model.device), at


def _result(
    sums: Sums, places: list[PatchPoint], settings: PathSettings, path: Literal["cached", "full"], fallback: str | None
) -> Attribution:
    attributions, activations, gradients = {}, {}, {}
    for place in places:
        layer = place.layer
        activations[layer] = _to_host(sums.activations[layer])
        gradients[layer] = _to_host(sums.last_gradients[layer])
        attributions[layer] = activations[layer] * (_to_host(sums.gradients[layer]) / np.float32(settings.steps))
    return Attribution(attributions, activations, gradients, sums.probability, path, fallback)


def _to_host(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.detach().float().cpu().numpy()
    return array
