"""Rows learned with the model: the FiNE form, and plain fine-tuning of the same rows as its baseline.

FiNE (Pan et al., ICLR 2025, arXiv 2503.01090): at each position that predicts a token of the target, the neurons are located
that contribute most to the token that the model predicts there now; for each of them a vector δ, learned by Adam, is added to
its row of the output projection. The loss is a mean over examples; with one example it is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.func import functional_call
from torch.nn import functional

from actstore.engine.edit.settings import FineSettings
from actstore.engine.edit.weights import check_editable
from actstore.engine.models.intervene import intervened
from actstore.engine.models.patching import weights_without_gradients
from actstore.engine.models.writing.scales import read_scales
from actstore.store.errors import InvalidInputError
from actstore.store.model.directions import WriteDirections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader

Neurons = dict[int, list[int]]


@dataclass(frozen=True, eq=False)
class Learned:
    """The result of learning."""

    deltas: Mapping[int, Tensor]
    """Layer → what is added to the neurons' rows; [neuron, d_model] float32."""
    steps: int
    probability: float
    """The smallest probability of any token of any target after the last step."""
    reached: bool
    """Whether that is more than `FineSettings.stop`."""
    loss: float


def language_layers(reader: Reader) -> list[int]:
    """The dense layers that write to the stream the head reads, ascending."""
    model = reader.model
    return [
        spec.layer
        for spec in model.spec.layers
        if spec.stack not in ("vision", "projector", "encoder") and spec.expert is None
        if model.layer(spec.layer).projection.hooked
    ]


def locate(reader: Reader, tasks: Sequence[Task], settings: FineSettings) -> Neurons:
    """The neurons that contribute most to the model's present prediction at the positions that predict the edited tokens.

    The contribution is the direct one, `a · s · w · (γ ⊙ u)`, s what the position multiplies the layer's output with: 1/rms is
    left out because it is the same for all neurons at a position and cannot change their order. Raises `InvalidInputError`
    where no layer is left.
    """
    model = reader.model
    every_layer = language_layers(reader)
    layers = every_layer[: len(every_layer) - settings.leave_last]
    if not layers:
        raise InvalidInputError(
            f"{model.spec.name} has {len(every_layer)} layers, and the last {settings.leave_last} are not edited. Lower "
            "`leave_last`."
        )
    unembedding = model.unembedding()
    if unembedding is None:
        raise InvalidInputError(f"{model.spec.name} has no unembedding to compute contributions with.")
    directions = WriteDirections.of_model(model.write_vectors, unembedding, model.final_norm(), model.post_norm)
    activations: dict[int, Tensor] = {}

    def record(layer: int) -> Callable[[Tensor], Tensor]:
        def change(values: Tensor) -> Tensor:
            activations[layer] = values.detach()
            return values

        return change

    located: dict[int, set[int]] = {}
    vectors = {layer: directions.vectors(layer).float().cpu() for layer in layers}
    for task in tasks:
        positions = torch.from_numpy(task.positions[task.edited])
        with torch.inference_mode(), intervened(model, {layer: record(layer) for layer in layers}):
            arguments = reader.arguments([task.reading])
            logits = model.model(**arguments, use_cache=False).logits[0].cpu()
        scales = read_scales(model, arguments, layers)
        direction = directions.targets(logits[positions].argmax(1).tolist()).cpu()
        scores = []  # each [position, neuron]
        for layer in layers:
            score = activations[layer][0].cpu()[positions].float() * (direction @ vectors[layer].T)
            scores.append(score * scales[layer][0, positions, None] if layer in scales else score)
        flat = torch.cat(scores, dim=1)
        for row in flat.topk(min(settings.per_position, flat.shape[1]), dim=1).indices.tolist():
            for number in row:
                layer, neuron = _layer_and_index(number, [score.shape[1] for score in scores], layers)
                located.setdefault(layer, set()).add(neuron)
    return {layer: sorted(neurons) for layer, neurons in sorted(located.items())}


def _layer_and_index(number: int, widths: Sequence[int], layers: Sequence[int]) -> tuple[int, int]:
    """The layer and index of a neuron that is counted through all layers."""
    for layer, width in zip(layers, widths, strict=True):
        if number < width:
            return layer, number
        number -= width
    raise IndexError(number)


def learn(reader: Reader, tasks: Sequence[Task], neurons: Neurons, settings: FineSettings | None = None) -> Learned:
    """The δ of each neuron's row that make the model say the targets of `tasks`.

    Each step reads all tasks. Raises `InvalidInputError` for neurons whose rows cannot be edited, without tasks, and where the
    loss is not finite.
    """
    settings = settings or FineSettings()
    if not tasks:
        raise InvalidInputError("Expected at least one example to learn from, found none.")
    check_editable(reader.model, neurons)
    specs, device = reader.model.spec.layers, reader.model.device
    deltas = {
        layer: torch.zeros(len(indices), specs[layer].d_model, device=device, requires_grad=True)
        for layer, indices in neurons.items()
    }
    optimiser = torch.optim.Adam(list(deltas.values()), lr=settings.rate)
    batches = [[tasks[i] for i in batch] for batch in reader.batches([task.reading for task in tasks])]
    before = None if settings.plain else [list(_before(reader, batch)) for batch in batches]
    n_steps, lowest, loss = 0, 0.0, float("nan")
    with weights_without_gradients(reader.model.model):
        # One pass more than there are steps: the last only measures what the last step achieved.
        for n_steps in range(settings.steps + 1):
            optimiser.zero_grad()
            lowest, loss = 1.0, 0.0
            for number, batch in enumerate(batches):
                unedited = None if before is None else before[number]
                batch_loss, probability = _loss(reader, batch, deltas, neurons, settings, unedited)
                # Back after each batch, so that no more than one batch's graph is in memory.
                (batch_loss / len(tasks)).backward()  # type: ignore[no-untyped-call]
                lowest, loss = min(lowest, probability), loss + float(batch_loss.detach()) / len(tasks)
            if not np.isfinite(loss):
                raise InvalidInputError(
                    f"The edit cannot be learned: the loss is {loss} at step {n_steps}. Lower `rate`."
                )
            if lowest > settings.stop or n_steps == settings.steps:
                break
            if settings.norm and not settings.plain:
                length = torch.cat([delta.flatten() for delta in deltas.values()]).norm()
                if float(length.detach()) > 0:  # at 0, before the first step, the norm has no gradient
                    (settings.norm * length).backward()
            optimiser.step()
    learned = {layer: delta.detach().cpu() for layer, delta in deltas.items()}
    return Learned(learned, n_steps, lowest, lowest > settings.stop, loss)


def _edited_parameters(reader: Reader, deltas: Mapping[int, Tensor], neurons: Neurons) -> dict[str, Tensor]:
    """The model's parameters with δ added to the rows, through which gradients flow to δ.

    Only the edited parameters are listed; `functional_call` takes the others as they are, so that the model never changes.
    """
    parameters: dict[str, Tensor] = {}
    for layer, delta in deltas.items():
        source = reader.model.layer(layer)
        weight = reader.model.model.get_parameter(source.parameter).detach()
        indices = torch.tensor(neurons[layer], device=weight.device)
        by_column = source.projection.transposed
        change = (delta.T if by_column else delta).to(weight.dtype)
        parameters[source.parameter] = weight.index_add(1 if by_column else 0, indices, change)
    return parameters


def _before(reader: Reader, batch: Sequence[Task]) -> Iterator[Tensor]:
    """The log probabilities [position, vocabulary] of the unedited model at each prompt's positions but the last."""
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
    """The sum of the tasks' losses, and the smallest probability of a target's token; `before` as `_before` gives it."""
    arguments = reader.arguments([task.reading for task in batch]) | {"use_cache": False}
    output = functional_call(reader.model.model, _edited_parameters(reader, deltas, neurons), (), arguments)
    total = torch.zeros((), device=reader.model.device)
    lowest = 1.0
    for row, task in enumerate(batch):
        logits = output.logits[row]
        positions = torch.from_numpy(task.positions[task.edited]).to(logits.device)
        targets = torch.from_numpy(task.targets[task.edited]).to(logits.device)
        log_p = logits[positions].float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        # The least probable token alone: the target counts as learned once all its tokens are above `stop`.
        total = total - log_p.min()
        lowest = min(lowest, float(log_p.detach().min().exp()))
        if before is None:
            continue
        end = _prompt_end(task)
        if end and settings.kl:  # what is predicted inside the prompt should stay
            after = logits[:end].float().log_softmax(-1)
            total = total + settings.kl * functional.kl_div(after, before[row], log_target=True, reduction="batchmean")
        if settings.repetition:  # after the text, the target should not be predicted once more
            last = logits[len(task.reading.ids) - 1].float().log_softmax(-1)[targets]
            # Clamped so that a probability of 1 gives a large loss and no infinite gradient.
            repetition = -torch.log1p(-last.exp().clamp(max=1 - 1e-6))
            total = total + settings.repetition * repetition.max()
    return total, lowest
