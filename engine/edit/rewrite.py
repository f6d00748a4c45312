"""Rewrites: one word for another, by any form, with the neurons given or found; and the same with other neurons, to compare.

Knows which form needs what; nothing about how a form computes, or how an edit is judged.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.edit.forms.knowledge import updated_rows
from actstore.engine.edit.forms.least_norm import find_neurons, least_norm
from actstore.engine.edit.rows import fields_of, grouped, make_edit
from actstore.engine.edit.settings import FORMS, FineSettings, LeastNormSettings, RewriteSettings
from actstore.engine.edit.words import find_exchange, single
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.store.edits import RowPair
from actstore.store.errors import InvalidInputError
from actstore.store.model.weights import read_rows
from actstore.store.neurons import random_neurons

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.words import Exchange
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture


def needs_model(settings: RewriteSettings, capture: Capture) -> bool:
    """Whether a form runs the model, or needs weights that the store does not keep."""
    if settings.form == "knowledge":
        return not capture.store.model.config.get("tie_word_embeddings")
    return settings.form in ("fine", "fine-tune")


def rewrite(capture: Capture, name: str, settings: RewriteSettings, reader: Reader | None = None) -> Edit:
    """The edit that exchanges two words. `reader`: the capture's model, for the forms that need one.

    Raises `InvalidInputError` as the forms do; for words that the capture's texts do not hold, or that no tokens spell; and for
    a model that is not the capture's.
    """
    if reader is not None:
        known = capture.record.model_fingerprint
        check_model(capture.folder, known, fingerprint_of(reader.model), reader.model.spec.name)
    elif needs_model(settings, capture):
        raise InvalidInputError(
            f"The {settings.form} form needs the model {capture.store.model.name}, which was not given. Name it with --model."
        )
    if settings.form == "least-norm":
        chosen = dataclasses.replace(settings.least_norm, neurons=settings.neurons or settings.least_norm.neurons)
        return least_norm(capture, settings.old, settings.new, name, chosen)
    exchange = find_exchange(capture, settings.old, settings.new)
    if settings.form == "knowledge":
        return _knowledge(capture, exchange, name, settings, reader)
    from actstore.engine.edit.forms.learned import learned  # only here: it loads transformers

    assert reader is not None
    return learned(capture, exchange, name, settings, reader)


def _knowledge(
    capture: Capture, exchange: Exchange, name: str, settings: RewriteSettings, reader: Reader | None
) -> Edit:
    single(exchange, "knowledge")
    neurons = grouped(settings.neurons) or find_neurons(capture, exchange, settings.least_norm)
    folder = capture.folder
    words = [exchange.old[0], exchange.new[0]]
    if reader is None:
        old, new = read_rows(folder, "unembedding", "weight", words)  # tied
    else:
        embedding: Any = reader.model.model.get_input_embeddings()
        table = embedding.weight.detach().cpu()
        old, new = table[words]
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    for layer, chosen in neurons.items():
        before = read_rows(folder, f"layer-{layer}", "write_vectors", chosen)
        rows[layer] = chosen, RowPair(before, updated_rows(before, old, new, settings.factors))
    fields = fields_of(capture, exchange, settings) | {"factors": list(settings.factors)}
    return make_edit(name, "knowledge", capture.store.model, rows, settings=fields)


def neurons_of(edit: Edit) -> dict[int, list[int]]:
    """Layer → the neurons that an edit rewrites."""
    return {rows.layer: list(rows.neurons) for rows in edit.record.rows}


def with_random_neurons(settings: RewriteSettings, edit: Edit, widths: Mapping[int, int], seed: int) -> RewriteSettings:
    """The settings of an edit with as many random neurons in the same layers, none of them the edit's."""
    chosen = {layer: np.array(neurons) for layer, neurons in neurons_of(edit).items()}
    drawn = random_neurons(chosen, {layer: widths[layer] for layer in chosen}, np.random.default_rng([seed, 7]))
    flat = tuple((layer, int(n)) for layer, indices in drawn.items() for n in indices)
    return dataclasses.replace(settings, neurons=flat)


def settings_of(edit: Edit) -> RewriteSettings:
    """The settings that a rewrite was made with; `InvalidInputError` for an edit that is no rewrite."""
    known = edit.record.settings
    if edit.record.form not in FORMS:
        raise InvalidInputError(
            f"Edit {edit.name!r} exchanges no words: its form is {edit.record.form}. Give --cases that say what is wanted."
        )

    def held(kind: type[Any]) -> Any:
        names = {field.name for field in dataclasses.fields(kind)} & known.keys() - {"neurons", "layers"}
        return kind(**{name: known[name] for name in names})

    made = RewriteSettings(
        known["from"], known["to"], edit.record.form, None, held(LeastNormSettings), held(FineSettings)
    )
    return dataclasses.replace(made, examples=known.get("examples", 32), seed=known.get("seed", 0))


def used_documents(edit: Edit) -> set[int] | None:
    """The documents of its capture that a rewrite was made from; None for all."""
    known = edit.record.settings
    if known.get("documents") is not None:
        return set(known["documents"])
    return None if known.get("max_documents") is None else set(range(known["max_documents"]))
