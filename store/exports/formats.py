"""The formats of an export, as a table that loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Format:
    """One layout."""

    suffix: str
    """Of the file; empty where a folder is written."""
    help: str

    @property
    def is_folder(self) -> bool:
        """Whether a folder is written."""
        return not self.suffix


FORMATS: Final[Mapping[str, Format]] = {
    "parquet": Format(".parquet", "a row per token: text, document, labels, and a column per neuron"),
    "csv": Format(".csv", "the same as text"),
    "npy": Format(".npy", "float32 [token, neuron], and a table of the tokens beside it"),
    "safetensors": Format(".safetensors", "float32 [neuron, token], and a table of the tokens beside it"),
    "datasets": Format("", "a data set that the library datasets loads from disk, with the columns of parquet"),
    "delphi": Format("", "activations above zero and tokens, as delphi's LatentDataset reads them"),
    "neuronpedia": Format("", "JSON of each neuron's exemplars, tokens and correlated neurons, in batches"),
    "dashboard": Format(".jsonl", "the same, one neuron per line"),
}
"""Name → layout, in the order in which help lists them."""

WITH_TOKENS_BESIDE: Final = ("npy", "safetensors")
"""Formats that hold numbers only: a table of the tokens lies beside the file."""


def suffixes() -> tuple[str, ...]:
    """Of the formats that are files."""
    return tuple(one.suffix for one in FORMATS.values() if one.suffix)
