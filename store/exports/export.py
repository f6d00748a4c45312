"""Activations out of a store into one ordinary file, or a folder of another tool's layout.

Block by block, so that memory stays bounded, and visible under the target's name only once complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actstore.store.errors import InvalidInputError
from actstore.store.exports import delphi, features, files
from actstore.store.exports.formats import FORMATS, WITH_TOKENS_BESIDE, suffixes
from actstore.store.exports.outputs import output_path
from actstore.store.exports.selection import Correlated, Selection
from actstore.store.storage.atomic import check_room, making_folder, replacing
from actstore.store.token_tables import TokenTable, companion_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from actstore.store.reader import Capture

MAX_COLUMNS: Final = 10_000
IN_COLUMNS: Final = ("parquet", "csv", "datasets")
"""Formats with one column per neuron."""

WRITERS: Final[Mapping[str, Callable[[Selection, Path], int]]] = {
    "parquet": files.write_parquet,
    "csv": files.write_csv,
    "npy": files.write_npy,
    "safetensors": files.write_safetensors,
    "datasets": files.write_dataset,
    "delphi": delphi.write,
    "neuronpedia": features.write_batches,
    "dashboard": features.write_lines,
}
"""Format → what writes a selection to a path, and gives the number of tokens."""


def export_activations(
    capture: Capture,
    target: str | Path,
    *,
    neurons: list[tuple[int, int]],
    site: str = "mlp.post",
    format: str | None = None,
    correlated: Correlated | None = None,
    on_block: Callable[[int], None] = lambda block: None,
) -> int:
    """Write the activations of `neurons` [(layer, index)] over all committed tokens; the number of tokens written.

    `format` is a key of `FORMATS`, or else told by the suffix; a folder must not be there yet. `correlated` has for each neuron
    those that fire with it, where the format lists some.

    Parquet, CSV and datasets have the columns of `TokenTable` (each token's text, document, position, labels …), then one
    float32 column per neuron (`L3.N17`), once. `.npy`, float32 [token, neuron], and `.safetensors` hold numbers only, and get
    that table beside them: `layer.tokens.parquet` with `layer.npy`, one row per token in the same order. `.safetensors` has
    float32 `activations` [neuron, token], int32 `layer` and `neuron` [neuron], int64 `token` and int32 `id`, `document` and
    `position` [token]. The others are those of `delphi` and `features`.
    """
    path = output_path(target)
    name = format_of(path, format)
    if not neurons:
        raise InvalidInputError("Nothing to export: pass `neurons`, such as L3.N17,L4.N2, or `layers`.")
    for layer, index in neurons:
        capture.check_neuron(layer, index, site)
    if name in IN_COLUMNS and len(neurons) > MAX_COLUMNS:
        raise InvalidInputError(
            f"An export to {name} has one column per neuron, at most {MAX_COLUMNS}; found {len(neurons)} neurons. "
            "Export to .npy or .safetensors."
        )
    if not capture.blocks:
        raise InvalidInputError(f"Capture {capture.record.name!r} has no committed block to export. Resume it first.")
    selection = Selection(capture, neurons, site, on_block, correlated)
    if FORMATS[name].is_folder:
        with making_folder(path) as partial:
            return WRITERS[name](selection, partial)
    if name not in WITH_TOKENS_BESIDE:  # whose size depends on how well the values compress
        with replacing(path) as partial:
            return WRITERS[name](selection, partial)
    check_room(path, 4 * len(neurons) * selection.n_tokens, "export fewer neurons")
    with replacing(path) as partial, replacing(companion_of(path)) as beside:
        TokenTable(capture).write(beside)
        return WRITERS[name](selection, partial)


def format_of(path: Path, given: str | None) -> str:
    """The format that is meant: the one `given`, or that of the path's suffix; `InvalidInputError` where it is none."""
    if given is not None:
        if given not in FORMATS:
            raise InvalidInputError(f"`format` is one of {', '.join(FORMATS)}: found {given!r}.")
        return given
    for name, one in FORMATS.items():
        if one.suffix and path.suffix == one.suffix:
            return name
    raise InvalidInputError(
        f"The export's format is told by its suffix, one of {', '.join(suffixes())}, or by `format`: found {path.name!r}."
    )
