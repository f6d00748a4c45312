"""The baselines of LAPE: language activation probability, value entropy, parameter variation, random neurons.

Tang et al. (ACL 2024, arXiv 2402.16438), section 3.1, where they are described in a sentence each; no code of them is public.
What the sentences leave open is said here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.selectivity.entropy import Selection, label_entropies, select_neurons
from actstore.engine.selectivity.firing import GATE, POST
from actstore.engine.workers.scan import HERE, Scan
from actstore.store import layout
from actstore.store.capture.positions import check_values
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from actstore.engine.workers.executor import Executor
    from actstore.store.model.root import Root
    from actstore.store.reader import Capture

HIGH_PROBABILITY: Final = 0.95
"""LAP: a neuron belongs to the labels on whose tokens it fires more often than this."""


def select_by_probability(probabilities: NDArray[np.float64], share: float) -> Selection:
    """LAP: neurons with p[neuron, label] above `HIGH_PROBABILITY` for a label, most often firing first, up to `share` of all.

    Ties go to the lower entropy over the labels, then to the earlier neuron. The paper takes all of them; `share` makes methods
    comparable. Neurons that fire nearly always belong to every label.
    """
    entropies = label_entropies(probabilities)
    above = probabilities > HIGH_PROBABILITY
    candidates = np.flatnonzero(above.any(axis=1))
    order = np.lexsort((candidates, entropies[candidates], -probabilities[candidates].max(axis=1, initial=0)))
    n_requested = round(len(probabilities) * share)
    neurons = candidates[order[:n_requested]]
    return Selection(entropies, HIGH_PROBABILITY, n_requested, len(candidates), neurons, above[neurons])


def select_at_random(selection: Selection, seed: int) -> Selection:
    """Random neurons, as many of each label as `selection` has: a draw for each label, from all neurons."""
    n_neurons, n_labels = len(selection.entropies), selection.members.shape[1]
    belongs = np.zeros((n_neurons, n_labels), bool)
    for label, n in enumerate(selection.members.sum(axis=0).tolist()):
        belongs[np.random.default_rng([seed, label]).choice(n_neurons, n, replace=False), label] = True
    neurons = np.flatnonzero(belongs.any(axis=1))
    return Selection(
        selection.entropies, selection.threshold, selection.n_requested, n_neurons, neurons, belongs[neurons]
    )


def select_by_value(
    capture: Capture,
    by: str,
    labels: Sequence[str],
    site: str | None,
    share: float,
    quantile: float,
    executor: Executor = HERE,
) -> Selection:
    """LAVE: LAPE's selection from the mean activation of every neuron on the tokens of each label.

    The activation is A_gate in gated layers and A_post in plain ones, or what `site` names. A mean below zero counts as 0, as
    an entropy takes no share below zero.
    """
    return select_neurons(np.maximum(mean_values(capture, by, labels, site, executor), 0), share, quantile)


def mean_values(
    capture: Capture, by: str, labels: Sequence[str], site: str | None = None, executor: Executor = HERE
) -> NDArray[np.float64]:
    """The mean of each neuron's finite values on the counted tokens of each label [neuron, label], layers in order."""
    sites = _value_sites(capture, site)
    index = {value: i for i, (column, value) in enumerate(capture.record.plan.labels) if column == by}
    ids = [index[label] for label in labels]
    widths = {layer: capture.record.layers(source)[layer] for layer, source in sites.items()}
    sums = {layer: np.zeros((width, len(ids))) for layer, width in widths.items()}
    counts = {layer: np.zeros((width, len(ids)), np.int64) for layer, width in widths.items()}
    for of_block in Scan(executor, "block")(partial(_sum_block, capture, sites, ids), capture.blocks):
        for layer, (total, n) in of_block.items():
            sums[layer] += total
            counts[layer] += n
    return np.concatenate([sums[layer] / np.maximum(counts[layer], 1) for layer in sites])


def _value_sites(capture: Capture, site: str | None) -> dict[int, str]:
    """Layer → the site of its values."""
    record = capture.record
    gates, posts = (record.layers(name) if name in record.sites else {} for name in (GATE, POST))
    sites = {}
    for layer in sorted({*gates, *posts}):
        gated = capture.store.model.layers[layer].gated
        wanted = site or (GATE if gated else POST)
        if layer not in (gates if wanted == GATE else posts):
            raise InvalidInputError(
                f"The mean activations of layer {layer} are those of {wanted}, which capture {record.name!r} does not hold. "
                f'Capture with `sites=("{wanted}",)`, or take those of `site="{POST if wanted == GATE else GATE}"`.'
            )
        sites[layer] = wanted
    for name in set(sites.values()):
        check_values(capture, name)
    return sites


def _sum_block(
    capture: Capture, sites: dict[int, str], ids: list[int], block: int
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Layer → sums and numbers of finite values [neuron, label] of a block."""
    plan = capture.block_plan(block)
    is_counted = ~np.isin(plan.modality, (layout.PADDING, layout.SPECIAL))
    has_label = np.repeat((plan.labels[:, :, None] == np.array(ids)).any(axis=1), plan.windows["n_slots"], axis=0)
    of_label = (has_label[: len(is_counted)] & is_counted[:, None]).astype(np.float64)  # [token, label]
    found = {}
    for layer, site in sites.items():
        values = capture.block_values(layer, block, site, saturated=True)[:, : len(of_label)]
        finite = np.isfinite(values)
        found[layer] = (
            np.where(finite, values, 0).astype(np.float64) @ of_label,
            (finite.astype(np.float64) @ of_label).round().astype(np.int64),
        )
    return found


def select_by_variation(
    base: Root, tuned: Mapping[str, Root], labels: Sequence[str], layers: Sequence[int], share: float, quantile: float
) -> Selection:
    """PV: LAPE's selection from the rate at which each neuron's parameters change in a model that was tuned on one label.

    rate[n, k] = |w_n(tuned on k) - w_n| / |w_n|, w_n the neuron's write vector, which stores keep of all its parameters.
    `tuned`: label → a store of the model tuned on it; `InvalidInputError` where one is missing, or is of another shape.
    """
    if missing := [label for label in labels if label not in tuned]:
        raise InvalidInputError(
            f"The method 'pv' compares the model with one that was tuned on each label alone, and there is none of "
            f"{', '.join(map(repr, missing))}. Name a store of each in `tuned`."
        )
    rates = np.concatenate([_rates(base, [tuned[label] for label in labels], layer) for layer in layers])
    return select_neurons(rates, share, quantile)


def _rates(base: Root, tuned: Sequence[Root], layer: int) -> NDArray[np.float64]:
    """The rates of change [neuron, label] of a layer."""
    own = _write_vectors(base, layer)
    norms = np.maximum(np.linalg.norm(own, axis=1), np.finfo(np.float64).tiny)
    columns = []
    for store in tuned:
        other = _write_vectors(store, layer)
        if other.shape != own.shape:
            raise InvalidInputError(
                f"Layer {layer} has write vectors of shape {list(own.shape)} in {base.folder} and {list(other.shape)} in "
                f"{store.folder}: expected a tuned copy of the same model."
            )
        columns.append(np.linalg.norm(other - own, axis=1) / norms)
    return np.stack(columns, axis=1)


def _write_vectors(store: Root, layer: int) -> NDArray[np.float64]:
    from actstore.store.model.weights import read_weights  # only here: it needs torch

    try:
        vectors: NDArray[np.float64] = read_weights(store.folder, f"layer-{layer}")["write_vectors"].double().numpy()
    except KeyError:
        raise NotFoundError(f"{store.folder} keeps no write vectors of layer {layer}. Capture with weights.") from None
    return vectors
