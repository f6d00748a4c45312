"""Label-selective neurons as a JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.selectivity.selectivity import Selectivity
    from actstore.store.reader import Capture


def describe(capture: Capture, result: Selectivity) -> dict[str, Any]:
    """The document; probabilities are those of firing, whatever neurons were selected by."""
    firing, selection, settings = result.firing, result.selection, result.settings
    names = dict(zip(selection.neurons.tolist(), firing.names(selection.neurons), strict=True))
    every = firing.probabilities
    probabilities = every[selection.neurons]
    return {
        "capture": capture.record.name,
        "by": settings.by,
        "site": settings.site,
        "modality": settings.modality,
        "share": settings.share,
        "activation_quantile": settings.activation_quantile,
        "method": settings.method,
        "threshold": selection.threshold,
        "neurons": len(selection.entropies),
        "candidates": selection.n_candidates,
        "selected": len(selection.neurons),
        "labels": {label: [names[n] for n in flat.tolist()] for label, flat in result.neurons.items()},
        "counts": {label: len(flat) for label, flat in result.neurons.items()},
        "tokens": dict(zip(firing.labels, firing.n_tokens.tolist(), strict=True)),
        "by_layer": {label: layer_counts(result, flat) for label, flat in result.neurons.items()},
        "scores": [
            {
                "neuron": names[flat],
                "entropy": float(selection.entropies[flat]),
                "probabilities": dict(zip(firing.labels, row, strict=True)),
            }
            for flat, row in zip(selection.neurons.tolist(), probabilities.tolist(), strict=True)
        ],
        "neurons_by_label": {
            label: [
                {
                    "neuron": names[n],
                    "entropy": float(selection.entropies[n]),
                    "probability": float(every[n, i]),
                    "probabilities": dict(zip(firing.labels, every[n].tolist(), strict=True)),
                }
                for n in flat.tolist()
            ]
            for i, (label, flat) in enumerate(result.neurons.items())
        },
        "warnings": result.warnings,
    }


def layer_counts(result: Selectivity, flat: NDArray[Any]) -> dict[int, int]:
    """Layer → the number of some neurons in it."""
    counts = dict.fromkeys(result.firing.layers, 0)
    for layer, _ in result.firing.locate(flat):
        counts[layer] += 1
    return counts
