"""A capture as an `xarray.Dataset`: values decoded as they are asked for, with what is known of each token beside them."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.token_tables import TokenTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray
    from numpy.typing import NDArray

    from actstore.store.reader import Capture

ROWS_READ_ALONE: Final = 8
"""Maximum number of neurons whose rows are decoded singly; beyond, the whole block is."""


def open_dataset(
    capture: Capture, site: str = "mlp.post", layers: Sequence[int] | None = None, *, chunked: bool | None = None
) -> xarray.Dataset:
    """A variable per layer (`L3`), float32 [token, neuron], over the committed tokens, in the order of `capture.tokens()`.

    No value is read before it is asked for, and then the blocks and neurons that it needs: int8 steps times their scale,
    bfloat16 as the numbers that they are, NaN where an expert was not routed to. Coordinates of `token` (the slot): id,
    position, window, document, modality, text, source and each label; `neuron` counts within the layer, and is `neuron_3`
    where layers have different widths. With `chunked`, variables are dask arrays of a chunk per block, coordinates are in
    memory; None: where dask is installed.

    `InvalidInputError` where xarray is not installed; `NotFoundError` for a site or a layer that the capture does not have.
    """
    if importlib.util.find_spec("xarray") is None:
        raise InvalidInputError("xarray is not installed. Install it: pip install xarray.")
    has_dask = importlib.util.find_spec("dask") is not None
    if chunked and not has_dask:
        raise InvalidInputError(
            "dask is not installed, of whose arrays `chunked` makes variables. Install it: pip install dask."
        )
    import xarray

    capture.check_neuron(layers[0] if layers else next(iter(_widths(capture, site))), 0, site)
    widths = _widths(capture, site)
    chosen = list(widths) if layers is None else list(layers)
    for layer in chosen:
        capture.check_neuron(layer, 0, site)
    is_uniform = len({widths[layer] for layer in chosen}) == 1
    variables, neurons = {}, {}
    for layer in chosen:
        dimension = "neuron" if is_uniform else f"neuron_{layer}"
        neurons[dimension] = np.arange(widths[layer])
        variables[f"L{layer}"] = (
            ("token", dimension),
            _lazy(_Values(capture, site, layer)),
            {"layer": layer, "site": site},
        )
    record = capture.record
    about = {
        "model": capture.store.model.name, "capture": record.name, "site": site, "precision": record.precision,
        "corpus": record.plan.corpus,
    }  # fmt: skip
    found = xarray.Dataset(variables, coords=_token_coordinates(capture) | neurons, attrs=about)
    if chunked or (chunked is None and has_dask):
        used = tuple(int(capture.used_slots[block]) for block in capture.blocks)
        # Of the variables alone: xarray groups by no coordinate that is a dask array.
        found = found.assign({n: found[n].variable.chunk({"token": used} if used else {}) for n in found.data_vars})
    return found


def _widths(capture: Capture, site: str) -> dict[int, int]:
    if site not in capture.record.sites:
        raise NotFoundError(
            f"Capture {capture.record.name!r} has no site {site!r}. Its sites are: {', '.join(capture.record.sites)}."
        )
    return capture.record.layers(site)


def _token_coordinates(capture: Capture) -> dict[str, Any]:
    table = TokenTable(capture)
    rows = table.rows(0, len(table))
    coordinates: dict[str, Any] = {}
    for name in rows.column_names:
        values = rows[name].to_numpy(zero_copy_only=False)
        coordinates["token" if name == "token" else name] = ("token", values)
    return coordinates


class _Values:
    """The values of one layer, [token, neuron], read where they are indexed."""

    def __init__(self, capture: Capture, site: str, layer: int) -> None:
        self._capture, self._site, self._layer = capture, site, layer
        self._ends = np.cumsum([0, *(int(capture.used_slots[block]) for block in capture.blocks)])
        self.shape = (int(self._ends[-1]), capture.record.layers(site)[layer])
        self.dtype = np.dtype(np.float32)

    def read(self, tokens: NDArray[np.int64], neurons: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some tokens of some neurons, both in the order given."""
        values = np.empty((len(tokens), len(neurons)), np.float32)
        blocks = np.searchsorted(self._ends, tokens, side="right") - 1
        for number in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == number)
            offsets, block = tokens[here] - self._ends[number], self._capture.blocks[number]
            if len(neurons) <= ROWS_READ_ALONE:
                for column, neuron in enumerate(neurons.tolist()):
                    values[here, column] = self._capture.block_row(self._layer, neuron, block, self._site)[offsets]
            else:
                of_block = self._capture.block_values(self._layer, block, self._site)
                values[here] = of_block[np.ix_(neurons, offsets)].T
        return values


def _lazy(values: _Values) -> Any:
    """The values as xarray indexes them without reading."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Lazy(BackendArray):
        shape, dtype = values.shape, values.dtype

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

        def _read(self, key: tuple[Any, ...]) -> Any:
            places = [np.atleast_1d(np.arange(n)[one]) for n, one in zip(self.shape, key, strict=True)]
            found = values.read(*places)
            return found[tuple(0 if isinstance(one, int | np.integer) else slice(None) for one in key)]

    return indexing.LazilyIndexedArray(Lazy())
