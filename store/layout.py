"""Every decision about bytes on disk: format version, keys, array shapes, chunk sizes, codecs, fill values.

No other module spells a key.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.kernels.pack import steps

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_CAPTURE: Final = "corpus"
"""The capture that is used where none is named and there are several."""

FORMAT: Final = 1
"""Version of the layout below. A reader refuses a larger one; stores of every released version stay readable."""

NO_VALUE_INT8: Final = steps.NO_VALUE
"""Marks a slot without a value in int8 arrays (quantised values span -127…127); float arrays use NaN."""

BFLOAT16_NAN: Final = 0x7FC0
"""The bits that mark a slot without a value in bfloat16 arrays."""

MODALITIES: Final = ("padding", "text", "special", "image", "generated")
"""The kinds of token slots; `tokens/modality` stores the index. Only `padding` belongs to no window."""
PADDING, TEXT, SPECIAL, IMAGE, GENERATED = range(5)

GATE_SIGN: Final = "gate_sign"
"""Pseudo-site of the statistics that count positive gates."""
WRITE_SCALE: Final = "write_scale"
"""What stands in place of a site where the scales of what layers write are meant."""


@dataclass(frozen=True)
class Compression:
    """How Blosc compresses the chunks of an array; written into the array's metadata, so that readers need not know."""

    cname: str
    clevel: int
    shuffle: str
    is_huffman: bool = False
    """Whether chunks are encoded by `kernels.zstandard`: frames of the same form, several times as fast."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What Zarr's metadata say of it."""
        return {"cname": self.cname, "clevel": self.clevel, "shuffle": self.shuffle}

    @property
    def shuffle_code(self) -> int:
        """Blosc's number for `shuffle`."""
        return ("noshuffle", "shuffle", "bitshuffle").index(self.shuffle)


FAST: Final = Compression("lz4", 5, "bitshuffle")
"""Of everything but activations, and of captures of earlier versions."""
SMALL: Final = Compression("zstd", 1, "noshuffle")
"""Of int8 and sparse values in captures of earlier versions."""


# A neuron's row inside an inner chunk is contiguous, so with few neurons per chunk, reading one neuron stays cheap for
# readers that must decode whole chunks, and with many, scans of whole layers have few chunks: 32 rows of 16,384 bfloat16
# values are 1 MiB.
NEURONS_PER_CHUNK: Final = 32
MAX_TOKENS_PER_CHUNK: Final = 16_384
SLOT_MULTIPLE: Final = 64
"""The number of slots of a block is a multiple of this, so that sign bits fill whole bytes and chunks divide blocks."""
NARROW_ROW_NBYTES: Final = 256
"""Rows of an inner chunk that are narrower than this, as of scales and thresholds, share one checksum: 4 bytes per row would
be as many as the row has."""


@dataclass(frozen=True)
class ValueFormat:
    """The format of one captured value in memory and on disk."""

    name: str
    """`float32`, `float16`, `bfloat16` or `int8`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the array; bfloat16 is stored as its bits in uint16."""
        return np.dtype({"bfloat16": "uint16"}.get(self.name, self.name))

    @property
    def fill_value(self) -> float:
        """The value of a slot without a value."""
        return {"bfloat16": BFLOAT16_NAN, "int8": NO_VALUE_INT8}.get(self.name, math.nan)


def missing_value(dtype: np.dtype[Any]) -> float:
    """The fill value of plain arrays: a missing chunk must not be taken for tokens, counts or means."""
    return {"f": math.nan, "i": -1}.get(dtype.kind, PADDING)


@dataclass(frozen=True)
class ShardGrid:
    """The grid of a two-dimensional sharded array: one shard has all rows and `columns` columns, one block of one layer."""

    rows: int
    columns: int
    chunk_rows: int
    chunk_columns: int

    @property
    def padded_rows(self) -> int:
        """Rows rounded up to whole inner chunks."""
        return -(-self.rows // self.chunk_rows) * self.chunk_rows

    @property
    def grid(self) -> tuple[int, int]:
        """Inner chunks along rows and columns."""
        return self.padded_rows // self.chunk_rows, self.columns // self.chunk_columns

    def rows_per_checksum(self, itemsize: int) -> int:
        """Rows of an inner chunk of elements of `itemsize` bytes that one checksum covers: one, or all where they are narrow.

        A chunk's table has a checksum for every row, those included that only complete the chunk.
        """
        return self.chunk_rows if self.chunk_columns * itemsize < NARROW_ROW_NBYTES else 1


def shard_grid(rows: int, columns: int) -> ShardGrid:
    """The grid of a [rows, columns] shard; inner chunks divide the columns, and the rows too where there is a near divisor."""
    chunk_columns = next(
        columns // parts
        for parts in range(1, columns + 1)
        if columns % parts == 0 and columns // parts <= MAX_TOKENS_PER_CHUNK
    )
    divisors = [n for n in range(NEURONS_PER_CHUNK // 2, NEURONS_PER_CHUNK + 1) if rows % n == 0]
    chunk_rows = divisors[-1] if divisors else min(rows, NEURONS_PER_CHUNK)
    return ShardGrid(rows, columns, chunk_rows, chunk_columns)


ORDERS: Final = ("neuron", "token")
"""In which order the values of a block lie: neuron by neuron, unless a record says otherwise, or token by token."""
MOST_TOKENS: Final = 256
"""Of an inner chunk of a block that lies token by token. One token is read alone from a chunk of any size; when many are read,
what is done once per chunk takes as long as reading a hundred kilobytes."""
TOKEN_CHUNK_NBYTES: Final = 1 << 20
"""Such chunks are smaller before they are compressed, unless one token is larger: they then stay in a processor's cache."""


def token_grid(rows: int, columns: int, itemsize: int) -> ShardGrid:
    """The grid of a [rows, columns] shard that lies token by token: its rows are the tokens, whose neurons are not divided."""
    most = min(MOST_TOKENS, max(1, TOKEN_CHUNK_NBYTES // (rows * itemsize)))
    chunk_rows = next(n for n in range(most, 0, -1) if columns % n == 0)
    return ShardGrid(columns, rows, chunk_rows, rows)


# Keys. A capture's keys are relative to the store's root.


def capture_key(capture: str) -> str:
    """The group of one capture."""
    return f"captures/{capture}"


def record_key(capture: str) -> str:
    """The group's metadata, which hold the capture's record."""
    return f"captures/{capture}/zarr.json"


BLOCK_ARRAYS: Final = ("values", "gate_sign", "write_scale", "scale", "threshold", "dropped")
"""Folders of a capture's sharded arrays. Their metadata comes before the record, their shards after it."""


def values_key(capture: str, site: str, layer: int) -> str:
    """The [neuron, token] array of one site and layer."""
    return f"captures/{capture}/values/{site}/{layer}"


def gate_sign_key(capture: str, layer: int) -> str:
    """The [neuron, token / 8] array of gate-sign bits of one layer, least significant bit first."""
    return f"captures/{capture}/gate_sign/{layer}"


def write_scale_key(capture: str, layer: int) -> str:
    """The [1, token] array of what each position multiplies the write vectors of one layer with."""
    return f"captures/{capture}/{WRITE_SCALE}/{layer}"


def block_parameters_key(capture: str, site: str, layer: int, name: str) -> str:
    """The [neuron, block] array of a parameter of the encoding: `scale`, `threshold` or `dropped`."""
    return f"captures/{capture}/{name}/{site}/{layer}"


def shard_key(array_key: str, block: int) -> str:
    """The object that holds one block of a sharded [neuron, …] array."""
    return f"{array_key}/c/0/{block}"


def commit_key(capture: str, block: int) -> str:
    """The commit record of a block; the block exists for readers exactly when this does."""
    return f"captures/{capture}/blocks/{block}.json"


def bundles_prefix(capture: str) -> str:
    """The prefix of every `bundle_key`."""
    return f"captures/{capture}/bundles"


def bundle_key(capture: str, block: int) -> str:
    """The object in which a capture that is bundled has all files of a block but its commit record."""
    return f"{bundles_prefix(capture)}/{block}"


_OF_BLOCK: Final = re.compile(
    r"(?:values|gate_sign|write_scale|scale|threshold|dropped)/.+/c/0/(\d+)"
    r"|blocks/(\d+)\.(?:(?:statistics|contributions)\.safetensors\.zst|answers\.parquet)"
)


def block_of(key: str) -> int | None:
    """The block that a key below a capture is a file of, as its commit record lists them; None for every other key."""
    match = _OF_BLOCK.fullmatch(key)
    return int(match[1] or match[2]) if match else None


def claims_prefix(capture: str) -> str:
    """The prefix of every `claim_key`."""
    return f"captures/{capture}/claims"


def claim_key(capture: str, block: int) -> str:
    """Which worker is computing a block; there only until the block is committed."""
    return f"{claims_prefix(capture)}/{block}.json"


def numerics_key(capture: str) -> str:
    """What the bits of a capture's values depend on: device, versions and the like of those that computed them."""
    return f"captures/{capture}/numerics.json"


def committed_key(capture: str) -> str:
    """What a finished capture's commit records come down to, so that a reader need neither list nor read them."""
    return f"captures/{capture}/committed.json"


def verified_key(capture: str) -> str:
    """Which blocks of a capture without checksums of rows `verify` found right."""
    return f"captures/{capture}/verified.json"


def block_statistics_key(capture: str, block: int) -> str:
    """One block's own statistics, all layers and sites: safetensors, compressed with zstandard."""
    return f"captures/{capture}/blocks/{block}.statistics.safetensors.zst"


def block_contributions_key(capture: str, block: int) -> str:
    """Contributions to next tokens of one block, summed by label; only of captures that ask for them."""
    return f"captures/{capture}/blocks/{block}.contributions.safetensors.zst"


def block_answers_key(capture: str, block: int) -> str:
    """A Parquet table of the model's answers at the prompts of a block."""
    return f"captures/{capture}/blocks/{block}.answers.parquet"


def generated_key(capture: str, group: int) -> str:
    """The model's answers to a group of images, kept until the plan is complete."""
    return f"{generated_prefix(capture)}/{group}.json"


def generated_prefix(capture: str) -> str:
    """The prefix of every `generated_key`."""
    return f"captures/{capture}/generated"


def folded_statistics_key(capture: str) -> str:
    """A checkpoint of the merged statistics of blocks 0…n, so that a resumed run need not read every block's own."""
    return f"captures/{capture}/blocks/folded.statistics.safetensors.zst"


def statistics_key(capture: str, site: str, name: str) -> str:
    """The finished statistic `name` of one site over the neurons of all layers, in layer order."""
    return f"captures/{capture}/statistics/{site}/{name}"


def table_key(capture: str | None, table: str) -> str:
    """A Parquet table: `neurons` at the root; `windows`, `documents`, `neurons` in a capture.

    A capture of questions also has `prompts` and `queries`, one of images `patches`.
    """
    return f"{table}.parquet" if capture is None else f"captures/{capture}/{table}.parquet"


def plan_key(capture: str, name: str) -> str:
    """A plan array: `inputs/ids`, `tokens/ids`, `tokens/position`, `tokens/window`, `tokens/modality`."""
    return f"captures/{capture}/{name}"


def groups_above(keys: Iterable[str]) -> list[str]:
    """The Zarr groups around some arrays of a capture, between the capture and each of them; sorted."""
    return sorted({"/".join(parts[:n]) for parts in (key.split("/") for key in keys) for n in range(3, len(parts))})


def graphs_key(name: str, file: str) -> str:
    """A file of a set of neuron graphs: `graph.json`, `nodes.arrow`, `neurons.arrow`; `parts/…` while they are built."""
    return f"graphs/{name}/{file}"


def explanations_key(name: str, file: str) -> str:
    """A file of a set of explanations: `record.json`, `files.json`, `L3.N17.json`, `L3.N17.detection.json`."""
    return f"explanations/{name}/{file}"


def names_key(kind: str) -> str:
    """The names of a store's `captures`, `graphs`, `edits` or `explanations`, for readers that cannot list them."""
    return f"{kind}.json"


def edits_key(name: str, file: str) -> str:
    """A file of an edit: `edit.json`, `delta.safetensors`."""
    return f"edits/{name}/{file}"


TOKENIZER_KEY: Final = "tokenizer/tokenizer.json"
VOCABULARY_KEY: Final = "tokenizer/vocabulary.parquet"
LOCK_NAME: Final = "writer.lock"


def weights_key(part: str) -> str:
    """A safetensors file of weights: `layer-<n>`, `unembedding`, `final_norm`."""
    return f"weights/{part}.safetensors"
