"""New text: one forward pass of the model, and what neurons do at each of its tokens."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.explorer.pages.documents import NEURONS
from actstore.explorer.pages.numbers import short
from actstore.explorer.pages.overview import column_values
from actstore.store.errors import InvalidInputError
from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.models.load import LoadedModel
    from actstore.store.capture.reader import Capture
    from actstore.store.reader import Store

TOKENS: Final = 1024
"""Tokens of a new text at most, or the model's context."""
PEAKS: Final = 20


class LiveModel:
    """A store's model in memory; one text is read at a time."""

    def __init__(self, model: LoadedModel, store: Store) -> None:
        """`FormatError` or `ModelError` where it is not the model that was captured."""
        from actstore.engine.models.fingerprint import check_model, fingerprint_of

        check_model(store.folder, store.model.fingerprint, fingerprint_of(model), model.spec.name)
        self.model = model
        self._running = Lock()

    @classmethod
    def load(
        cls, store: Store, name: str | None, *, device: str = "auto", trust_remote_code: bool = False
    ) -> LiveModel:
        """The model of a name or a path; the store's own for None."""
        from actstore.engine.models.fingerprint import location_of
        from actstore.engine.models.load import load_model

        where = name or location_of(store.model)
        return cls(load_model(where, device=device, trust_remote_code=trust_remote_code), store)

    def document(self, store: Store, capture: str, site: str, text: str, neurons: str = "") -> dict[str, Any]:
        """As the page of a stored text; `peaks` are the neurons that stand out most, by their statistics in the capture."""
        from actstore.engine.graphs.predict import encode_as

        opened = store.peek(capture)
        if opened.record.of_images:
            raise InvalidInputError(f"Capture {capture!r} is one of images, and a text alone is none.")
        selected = [store.neuron(name.strip()) for name in neurons.split(",") if name.strip()]
        if len(selected) > NEURONS:
            raise InvalidInputError(f"At most {NEURONS} neurons are shown at once, found {len(selected)}.")
        for neuron in selected:
            opened.check_neuron(neuron.layer, neuron.index, site)
        ids = encode_as(opened, text)
        limit = min(TOKENS, self.model.spec.context or TOKENS)
        cut, ids = max(0, len(ids) - limit), ids[:limit]
        if not len(ids):
            raise InvalidInputError("There is no text to read. Write some.")
        values = self._activations(opened, site, ids)
        return short(
            {
                "capture": capture,
                "site": site,
                "n_tokens": len(ids),
                "n_cut": cut,
                "first": 0,
                "tokens": [{"token": int(token), "text": store.token_text(int(token))} for token in ids],
                "neurons": [
                    {
                        "neuron": neuron.name,
                        "max": neuron.statistics(capture, site).get("max"),
                        "values": values[neuron.layer][:, neuron.index].astype(float).tolist(),
                    }
                    for neuron in selected
                ],
                "peaks": _peaks(opened, site, values),
            }
        )

    def _activations(self, capture: Capture, site: str, ids: NDArray[np.int32]) -> dict[int, NDArray[np.float32]]:
        """Layer → activations [position, neuron]; NaN where an expert was not routed to."""
        import torch

        widths = capture.record.layers(site)
        found = {layer: np.full((len(ids), width), np.nan, np.float32) for layer, width in widths.items()}

        def keep(layer: int, _: str, values: torch.Tensor, rows: torch.Tensor | None) -> None:
            plain = values.float().cpu().numpy()
            if rows is None:
                found[layer][:] = plain
            else:
                found[layer][rows.cpu().numpy()] = plain

        with self._running:
            self.model.forward(
                torch.from_numpy(ids.astype(np.int64))[None], sites=[site], layers=list(widths), sink=keep
            )
        return found


def _peaks(capture: Capture, site: str, values: dict[int, NDArray[np.float32]]) -> list[dict[str, Any]]:
    """The neurons whose largest activation on the text is farthest above their mean in the capture, in its deviations."""
    mean, std = (column_values(capture, site, name) for name in ("mean", "std"))
    maxima = np.concatenate([np.where(np.isnan(one), -np.inf, one).max(axis=0) for one in values.values()])
    scores = np.divide(maxima - mean, std, out=np.full_like(std, -np.inf), where=std > 0)
    names = [neuron_name(layer, index) for layer, one in values.items() for index in range(one.shape[1])]
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf, neginf=-1e300), kind="stable")[:PEAKS]
    return [{"neuron": names[i], "stands_out": float(scores[i]), "max": float(maxima[i])} for i in order.tolist()]
