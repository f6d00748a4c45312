"""The knowledge-neuron forms: embeddings of tokens subtracted from rows and added to them, without learning.

Dai et al. (ACL 2022, arXiv 2104.08696): the rows of a fact's knowledge neurons become `row − λ₁ t + λ₂ t′` with the input
embeddings t of what the model says and t′ of what it should say, λ₁ = ‖row‖ / ‖t‖ and λ₂ = 8 ‖row‖ / ‖t′‖. That is the form
"knowledge", exactly.

It presumes that the head reads the input embeddings, and that neurons are active with a positive sign: a neuron whose
activation is negative writes the opposite. The form "knowledge-corrected" (ours) takes what the head reads, γ ⊙ u (without its
mean where the norm takes it away), in place of both embeddings, and the sign of the neuron's activation where the token is
predicted: `row + sign(a) · (−λ₁ v + λ₂ v′)`, with λ as before.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from actstore.engine.edit.forms.stored import Located, stored_knowledge
from actstore.engine.edit.rows import fields_of, group_by_layer, make_edit
from actstore.engine.edit.words import find_replacement
from actstore.store.edits import RowPair
from actstore.store.errors import InvalidInputError
from actstore.store.model.directions import WriteDirections
from actstore.store.model.weights import read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture

CORRECTED = "knowledge-corrected"


def needs_model(capture: Capture, settings: RewriteSettings) -> bool:
    """Whether neurons, what the model says, or embeddings have to be asked of the model."""
    if settings.requests or not (settings.knowledge.queries or settings.neurons):
        return True
    if settings.form == CORRECTED:
        return not settings.knowledge.queries  # the signs of activations
    return not capture.store.model.config.get("tie_word_embeddings")


def make(capture: Capture, name: str, settings: RewriteSettings, reader: Reader | None) -> Edit:
    """The edit by either form; `InvalidInputError` as `locate_knowledge` and `stored_knowledge` say."""
    located, fields = _locate(capture, settings, reader)
    changes: dict[int, dict[int, Tensor]] = {}
    for exchange in located:
        for layer, indices in exchange.neurons.items():
            before = read_rows(capture.folder, f"layer-{layer}", "write_vectors", indices)
            change = _change(capture, settings, reader, exchange, layer, before)
            of_layer = changes.setdefault(layer, {})
            for index, vector in zip(indices, change, strict=True):
                of_layer[index] = of_layer[index] + vector if index in of_layer else vector
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    for layer, of_layer in sorted(changes.items()):
        indices = sorted(of_layer)
        before = read_rows(capture.folder, f"layer-{layer}", "write_vectors", indices)
        rows[layer] = indices, RowPair(before, before.double() + torch.stack([of_layer[index] for index in indices]))
    said = {"exchanged": [[exchange.old, exchange.new] for exchange in located]}
    recorded = fields | asdict(settings.knowledge) | {"k": settings.least_norm.k} | said
    return make_edit(name, settings.form, capture.store.model, rows, settings=recorded)


def _locate(
    capture: Capture, settings: RewriteSettings, reader: Reader | None
) -> tuple[list[Located], dict[str, Any]]:  # fmt: skip
    """The neurons of every token that is exchanged, and what the record says of the examples."""
    if settings.neurons is not None and settings.knowledge.queries:
        raise InvalidInputError(
            "Name the neurons, or the queries that locate them: `neurons` or `queries`, one of the two."
        )
    if settings.requests or reader is not None:
        assert reader is not None
        from actstore.engine.edit.forms.located import locate_knowledge  # only here: these load transformers
        from actstore.engine.edit.requests.examples import find_examples

        examples = find_examples(capture, settings, reader)
        if not settings.knowledge.queries:
            return locate_knowledge(reader, examples, settings), examples.fields
        neurons, activations = stored_knowledge(capture.folder, settings)
        said = [_said(reader, examples.tasks, examples.fact, fact) for fact in dict.fromkeys(examples.fact)]
        return [Located(old, new, neurons, activations) for pairs in said for old, new in pairs], examples.fields
    replacement = find_replacement(capture, *settings.words)
    if not replacement.is_single:
        raise InvalidInputError(
            f"The {settings.form} form needs the model for a word of several tokens: it is asked what it says before each of "
            "them. Pass it as `model`."
        )
    if settings.knowledge.queries:
        neurons, activations = stored_knowledge(capture.folder, settings)
    else:
        neurons = group_by_layer(settings.neurons) or {}
        for layer, indices in neurons.items():
            for index in indices:
                capture.check_neuron(layer, index)
        activations = {layer: np.ones(len(indices)) for layer, indices in neurons.items()}
    old, new = replacement.old[0], replacement.new[0]
    return [Located(old, new, neurons, activations)], fields_of(capture, replacement, settings)


def _said(reader: Reader, tasks: Sequence[Any], facts: Sequence[int], fact: int) -> list[tuple[int, int]]:
    """(what the model says, what it should say) at every token of a fact's target, by its first prompt."""
    task = tasks[facts.index(fact)]
    positions = task.positions[task.edited]
    top = reader.logits([task.reading], [positions])[0].argmax(1).tolist()
    return list(zip(top, task.targets[task.edited].tolist(), strict=True))


def _change(
    capture: Capture, settings: RewriteSettings, reader: Reader | None, exchange: Located, layer: int, before: Tensor
) -> Tensor:
    """What is added to the rows [neuron, d_model] of one layer for one exchanged token."""
    factors = settings.knowledge.factors
    if settings.form != CORRECTED:
        old, new = _input_embeddings(capture, [exchange.old, exchange.new], reader, before.shape[1])
        return updated_rows(before, old, new, factors) - before.double()
    old, new = output_directions(capture, [exchange.old, exchange.new])
    return corrected_rows(before, old, new, exchange.activations[layer], factors) - before.double()


def _input_embeddings(capture: Capture, tokens: list[int], reader: Reader | None, d_model: int) -> Tensor:
    """The input embeddings of some tokens [token, d_model]; `InvalidInputError` where they have another width."""
    if reader is None:  # tied: the unembedding is the input embedding
        return read_rows(capture.folder, "unembedding", "weight", tokens)
    weight = reader.model.model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    if weight.shape[1] != d_model:
        raise InvalidInputError(
            f"The input embeddings of {capture.store.model.name} have {weight.shape[1]} dimensions and write vectors "
            f"{d_model}: the knowledge form cannot add one to the other. Use "
            '`method="knowledge-corrected"`.'
        )
    return weight.detach().cpu()[tokens]


def output_directions(capture: Capture, tokens: list[int]) -> Tensor:
    """What the head reads of the stream for some tokens: γ ⊙ u, without its mean where the norm centres [token, d_model]."""
    directions = WriteDirections.of_store(capture.folder)
    return directions.norm.centred(directions.targets(tokens))


def updated_rows(rows: Tensor, old: Tensor, new: Tensor, factors: tuple[float, float] = (1.0, 8.0)) -> Tensor:
    """Rows [neuron, d_model] with the old token's vector [d_model] subtracted and the new one's added, as published.

    `factors` are λ₁ and λ₂ in units of ‖row‖ / ‖vector‖; the paper's are 1 and 8.
    """
    wide = rows.double()
    length = wide.norm(dim=1, keepdim=True)
    subtracted, added = factors
    without_old = wide - subtracted * length * torch.nn.functional.normalize(old.double(), dim=0)
    result: Tensor = without_old + added * length * torch.nn.functional.normalize(new.double(), dim=0)
    return result


def corrected_rows(
    rows: Tensor, old: Tensor, new: Tensor, activations: NDArray[np.float64], factors: tuple[float, float] = (1.0, 8.0)
) -> Tensor:
    """The same with each row's change multiplied by the sign of its neuron's activation [neuron]; 0 counts as positive."""
    signs = torch.from_numpy(np.where(np.asarray(activations) < 0, -1.0, 1.0))
    return rows.double() + signs[:, None] * (updated_rows(rows, old, new, factors) - rows.double())
