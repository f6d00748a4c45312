"""The knowledge-neuron form: word embeddings subtracted from rows and added to them, without learning.

Dai et al. (ACL 2022, arXiv 2104.08696): `row += −λ₁ t + λ₂ t′` with the input embeddings t of the old word and t′ of the new,
λ₁ = ‖row‖ / ‖t‖ and λ₂ = 8 ‖row‖ / ‖t′‖.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from actstore.engine.edit.forms.least_norm import find_neurons
from actstore.engine.edit.rows import fields_of, group_by_layer, make_edit
from actstore.engine.edit.words import check_single_tokens, find_replacement
from actstore.store.edits import RowPair
from actstore.store.model.weights import read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.engine.edit.words import Replacement
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture


def make(capture: Capture, name: str, settings: RewriteSettings, reader: Reader | None) -> Edit:
    """The edit by this form. `reader` is needed where the input embeddings are not the unembedding, which the store holds."""
    replacement = check_single_tokens(find_replacement(capture, settings.old, settings.new), "knowledge")
    neurons = group_by_layer(settings.neurons) or find_neurons(capture, replacement, settings.least_norm)
    old, new = _read_embeddings(capture, replacement, reader)
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    for layer, indices in neurons.items():
        before = read_rows(capture.folder, f"layer-{layer}", "write_vectors", indices)
        rows[layer] = indices, RowPair(before, updated_rows(before, old, new, settings.factors))
    fields = fields_of(capture, replacement, settings) | {"factors": list(settings.factors)}
    return make_edit(name, "knowledge", capture.store.model, rows, settings=fields)


def _read_embeddings(capture: Capture, replacement: Replacement, reader: Reader | None) -> Tensor:
    """The input embeddings of the old and the new word [2, d_model]."""
    tokens = [replacement.old[0], replacement.new[0]]
    if reader is None:  # tied: the unembedding is the input embedding
        return read_rows(capture.folder, "unembedding", "weight", tokens)
    weight = reader.model.model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().cpu()[tokens]


def updated_rows(rows: Tensor, old: Tensor, new: Tensor, factors: tuple[float, float] = (1.0, 8.0)) -> Tensor:
    """Rows [neuron, d_model] with the old word's embedding [d_model] subtracted and the new one's added.

    `factors` are λ₁ and λ₂ in units of ‖row‖ / ‖embedding‖; the paper's are 1 and 8.
    """
    wide = rows.double()
    length = wide.norm(dim=1, keepdim=True)
    subtracted, added = factors
    without_old = wide - subtracted * length * torch.nn.functional.normalize(old.double(), dim=0)
    result: Tensor = without_old + added * length * torch.nn.functional.normalize(new.double(), dim=0)
    return result
