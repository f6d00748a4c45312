"""Rewrites learned with the model: the FiNE form, and plain fine-tuning of the same rows beside it.

FiNE (Pan et al., ICLR 2025, arXiv 2503.01090): at each position that predicts a token of the target, the neurons that
contribute most to what the model said there before; for each a vector δ, learned by Adam, added to its row of the output
projection. The loss is over examples; with one example it is the paper's. Knows nothing about stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.func import functional_call
from torch.nn import functional

from actstore.engine.edit.settings import FineSettings
from actstore.engine.edit.weights import check_editable
from actstore.engine.models.intervene import intervened
from actstore.engine.models.patching import weights_without_gradients
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import final_norm_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader

Neurons = dict[int, list[int]]


@dataclass(frozen=True, eq=False)
class Learned:
    """What came of it."""

    deltas: Mapping[int, Tensor]
    """Layer → what is added to the neurons' rows; [neuron, d_model] float32."""
    steps: int
    probability: float
    """The smallest probability of a target's token, in the end."""
    reached: bool
    """Whether that is more than was asked for, where learning ends before the last step."""
    loss: float


def language_layers(reader: Reader) -> list[int]:
    """The dense layers that write to the stream the head reads, ascending."""
    model = reader.model
    return [
        spec.layer
        for spec in model.spec.layers
        if spec.stack not in ("vision", "projector", "encoder") and spec.expert is None
        if model._find(spec.layer).projection.hooked
    ]


def locate(reader: Reader, tasks: Sequence[Task], settings: FineSettings) -> Neurons:
    """The neurons that contribute most to what the model says now at the positions that predict each target's edited tokens.

    The contribution is the exact direct one, `a · w · (γ ⊙ u) / rms` without the last factor, which no ranking at one position
    sees. Raises `InvalidInputError` where no layer is left.
    """
    model = reader.model
    layers = language_layers(reader)
    layers = layers[: len(layers) - settings.leave_last]
    if not layers:
        raise InvalidInputError(
            f"{model.spec.name} has {len(language_layers(reader))} layers, and the last {settings.leave_last} are left alone: "
            "lower --leave-last."
        )
    unembedding, norm = model.unembedding(), final_norm_of(model.final_norm())
    if unembedding is None:
        raise InvalidInputError(f"{model.spec.name} has no unembedding to find contributions with.")
    gain = torch.ones(unembedding.shape[1]) if norm.gain is None else norm.gain.cpu()
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], Tensor]:
        def change(values: Tensor) -> Tensor:
            seen[layer] = values.detach()
            return values

        return change

    found: dict[int, set[int]] = {}
    scores: list[Tensor] = []
    vectors = {layer: norm.centred(model.write_vectors(layer)).float().cpu() for layer in layers}
    for task in tasks:
        at = torch.from_numpy(task.positions[task.edited])
        with torch.inference_mode(), intervened(model, {layer: keep(layer) for layer in layers}):
            logits = model.model(**reader.arguments([task.reading]), use_cache=False).logits[0].cpu()
        direction = gain * unembedding[logits[at].argmax(1).to(unembedding.device)].float().cpu()
        scores = [seen[layer][0].cpu()[at].float() * (direction @ vectors[layer].T) for layer in layers]
        flat = torch.cat(scores, dim=1)
        for row in flat.topk(min(settings.per_position, flat.shape[1]), dim=1).indices.tolist():
            for place in row:
                layer, neuron = _place(place, [score.shape[1] for score in scores], layers)
                found.setdefault(layer, set()).add(neuron)
    return {layer: sorted(neurons) for layer, neurons in sorted(found.items())}


def _place(flat: int, widths: Sequence[int], layers: Sequence[int]) -> tuple[int, int]:
    for layer, width in zip(layers, widths, strict=True):
        if flat < width:
            return layer, flat
        flat -= width
    raise IndexError(flat)


def learn(reader: Reader, tasks: Sequence[Task], neurons: Neurons, settings: FineSettings | None = None) -> Learned:
    """The δ of each neuron's row that make the model say the targets of `tasks`.

    Each step reads all tasks. Raises `InvalidInputError` for neurons whose rows cannot be edited, without tasks, and where the
    loss is not finite.
    """
    settings = settings or FineSettings()
    if not tasks:
        raise InvalidInputError("Expected at least one example to learn from, found none.")
    check_editable(reader.model, neurons)
    deltas = {
        layer: torch.zeros(len(chosen), reader.model.spec.layers[layer].d_model, device=reader.model.device, requires_grad=True)
        for layer, chosen in neurons.items()
    }  # fmt: skip
    optimiser = torch.optim.Adam(list(deltas.values()), lr=settings.rate)
    batches = [[tasks[i] for i in batch] for batch in reader.batches([task.reading for task in tasks])]
    before = None if settings.plain else [list(_before(reader, batch)) for batch in batches]
    steps, lowest, loss = 0, 0.0, float("nan")
    with weights_without_gradients(reader.model.model):
        for steps in range(settings.steps + 1):
            optimiser.zero_grad()
            lowest, loss = 1.0, 0.0
            for number, batch in enumerate(batches):
                known = None if before is None else before[number]
                part, probability = _loss(reader, batch, deltas, neurons, settings, known)
                (part / len(tasks)).backward()  # type: ignore[no-untyped-call]
                lowest, loss = min(lowest, probability), loss + float(part.detach()) / len(tasks)
            if not np.isfinite(loss):
                raise InvalidInputError(
                    f"Learning the edit went astray: the loss is {loss} at step {steps}. Lower --rate."
                )
            if lowest > settings.stop or steps == settings.steps:
                break
            if settings.norm and not settings.plain:
                length = torch.cat([delta.flatten() for delta in deltas.values()]).norm()
                if float(length.detach()) > 0:  # at 0 the norm has no gradient
                    (settings.norm * length).backward()
            optimiser.step()
    found = {layer: delta.detach().cpu() for layer, delta in deltas.items()}
    return Learned(found, steps, lowest, lowest > settings.stop, loss)


def _edited_parameters(reader: Reader, deltas: Mapping[int, Tensor], neurons: Neurons) -> dict[str, Tensor]:
    """The model's parameters with δ added to the rows, through which gradients flow to δ."""
    made: dict[str, Tensor] = {}
    for layer, delta in deltas.items():
        found = reader.model._find(layer)
        weight = reader.model.model.get_parameter(found.parameter).detach()
        chosen = torch.tensor(neurons[layer], device=weight.device)
        by_column = found.projection.transposed
        change = (delta.T if by_column else delta).to(weight.dtype)
        made[found.parameter] = weight.index_add(1 if by_column else 0, chosen, change)
    return made


def _before(reader: Reader, batch: Sequence[Task]) -> Iterator[Tensor]:
    """The log probabilities [position, vocabulary] at each prompt's positions but the last, as the model is."""
    with torch.inference_mode():
        logits = reader.model.model(**reader.arguments([task.reading for task in batch]), use_cache=False).logits
        for row, task in enumerate(batch):
            yield logits[row, : _prompt_end(task)].float().log_softmax(-1).clone()


def _prompt_end(task: Task) -> int:
    """The position that predicts the first edited token: those before it are the prompt's but the last."""
    return int(task.positions[task.edited][0])


def _loss(
    reader: Reader, batch: Sequence[Task], deltas: Mapping[int, Tensor], neurons: Neurons, settings: FineSettings,
    before: Sequence[Tensor] | None,
) -> tuple[Tensor, float]:  # fmt: skip
    """The sum of the tasks' losses, and the smallest probability of a target's token."""
    arguments = reader.arguments([task.reading for task in batch]) | {"use_cache": False}
    output: Any = functional_call(reader.model.model, _edited_parameters(reader, deltas, neurons), (), arguments)
    total = torch.zeros((), device=reader.model.device)
    lowest = 1.0
    for row, task in enumerate(batch):
        logits = output.logits[row]
        at = torch.from_numpy(task.positions[task.edited]).to(logits.device)
        wanted = torch.from_numpy(task.wanted[task.edited]).to(logits.device)
        log_p = logits[at].float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        total = total - log_p.min()
        lowest = min(lowest, float(log_p.detach().min().exp()))
        if before is None:
            continue
        end = _prompt_end(task)
        if end and settings.kl:
            after = logits[:end].float().log_softmax(-1)
            total = total + settings.kl * functional.kl_div(after, before[row], log_target=True, reduction="batchmean")
        if settings.repetition:
            last = logits[len(task.reading.ids) - 1].float().log_softmax(-1)[wanted]
            again = -torch.log1p(-last.exp().clamp(max=1 - 1e-6))
            total = total + settings.repetition * again.max()
    return total, lowest
