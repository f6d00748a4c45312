"""The JSON records of a store: its model, its captures, its commits, each read strictly.

A field that is missing or of another type is a `FormatError` that names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, get_args, get_origin, get_type_hints

from actstore.store.errors import FormatError
from actstore.store.files import record_checks
from actstore.store.files.precision import PRECISIONS, Precision
from actstore.store.files.shards import checksum

if TYPE_CHECKING:
    from collections.abc import Mapping


_LARGEST: Final = 1 << 63


class Record:
    """Base of the frozen dataclasses below: to JSON and, strictly, back."""

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """The record in `value`; `FormatError` naming `where` and the field that is missing or wrong."""
        if not isinstance(value, dict):
            raise FormatError(f"{where} should be a JSON object, found {type(value).__name__}.")
        hints = get_type_hints(cls)
        arguments = {}
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            if item.name in value:
                arguments[item.name] = _parse(hints[item.name], value[item.name], f"{where}: {item.name}")
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise FormatError(f"{where} lacks the field {item.name!r}.")
        record = cls(**arguments)
        record.check(where)
        return record

    def check(self, where: str) -> None:
        """Raise `FormatError` naming `where` and a field that cannot be so, whatever its checksum says."""


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The JSON object `value` with the checksum of everything else in it."""
    return value | {"checksum": _checksum(value)}


def verify_checksum(value: dict[str, Any], where: str) -> None:
    """Raise `FormatError` where a JSON object does not match its checksum; one of an earlier version has none."""
    if "checksum" in value and value["checksum"] != _checksum(value):
        raise FormatError(f"{where} is damaged: checksum mismatch.", "Restore it from a copy, or make it again.")


def _checksum(value: Mapping[str, object]) -> str:
    body = {name: item for name, item in value.items() if name != "checksum"}
    return checksum(json.dumps(body, sort_keys=True).encode())


def _parse(hint: Any, value: Any, where: str) -> Any:  # a type annotation, and JSON of any kind
    """`value` as the annotation `hint` has it; `FormatError` that begins with `where` otherwise."""
    origin, parameters = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise FormatError(f"{where} should be a list, found {type(value).__name__}.")
        if parameters[-1] is ...:
            return tuple(_parse(parameters[0], item, where) for item in value)
        if len(value) != len(parameters):
            raise FormatError(f"{where} should hold {len(parameters)} items, found {len(value)}.")
        return tuple(_parse(p, item, where) for p, item in zip(parameters, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise FormatError(f"{where} should be an object, found {type(value).__name__}.")
        return {_parse(parameters[0], k, where): _parse(parameters[1], v, where) for k, v in value.items()}
    if hint is Any:
        return value
    allowed = parameters or (hint,)
    # JSON writes 1.0 and 1 alike, and Python calls True an integer.
    if isinstance(value, bool) and bool not in allowed:
        raise FormatError(f"{where} should be {getattr(hint, '__name__', hint)}, found {value!r}.")
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        raise FormatError(f"{where} should be a number below 2^63, found {value!r:.40}.")
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, tuple(t for t in allowed if isinstance(t, type))):
        raise FormatError(f"{where} should be {getattr(hint, '__name__', hint)}, found {value!r:.80}.")
    return value


PARTS = ("language", "vision", "projector")
"""The parts of a model that can be captured; all layers of a part have rows for the same positions."""

APART = "apart"
"""The stack of layers whose rows belong to no part's positions: a Q-Former's own reading of the prompt, a pooled image."""


def part_of(stack: str) -> str | None:
    """The part, of `PARTS`, that a stack of layers belongs to; None for `APART`."""
    if stack == APART:
        return None
    return stack if stack in PARTS else PARTS[0]


@dataclass(frozen=True)
class LayerRecord(Record):
    """One feed-forward layer (or one expert) as the store numbers it."""

    layer: int
    neurons: int
    module: str
    """Path, in the Hugging Face model, of the output projection whose input is captured."""
    gated: bool
    block: int
    stack: str
    expert: int | None
    scaled_by: str | None = None
    """Factors that differ by position between its write vectors and the stream, such as `weight,norm`; None in older stores."""

    @property
    def part(self) -> str | None:
        """The part, of `PARTS`, whose positions its rows have."""
        return part_of(self.stack)


@dataclass(frozen=True)
class ModelRecord(Record):
    """The model whose activations a store holds. One store has one model."""

    name: str
    model_type: str
    kind: str
    d_model: int
    n_vocabulary: int | None
    dtype: str
    fingerprint: str
    sites: tuple[str, ...]
    layers: tuple[LayerRecord, ...]
    config: dict[str, Any]
    weights: tuple[str, ...] = ()
    """The parts of the weights that were written to the store; empty in older stores, which do not record them."""
    folder: str | None = None
    """The absolute path of the model's folder; None for a model of the Hub, and in older stores."""

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_model(self, where)

    @property
    def head_layers(self) -> tuple[LayerRecord, ...]:
        """The layers of the last stack, whose residual stream the unembedding reads: the language model's."""
        language = [layer for layer in self.layers if layer.part == "language"] or self.layers
        return tuple(layer for layer in language if layer.stack == language[-1].stack)


@dataclass(frozen=True)
class PlanRecord(Record):
    """A finished plan: what was tokenised, how, and the number of slots."""

    fingerprint: str
    """SHA-256 over the settings and every planned token, window, document and label."""
    corpus: str
    """The source of the documents, as it was given."""
    corpus_fingerprint: str
    tokenizer_fingerprint: str
    settings: dict[str, Any]
    label_columns: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    """Every (column, value) pair that occurs; the index is the label's id."""
    n_documents: int
    n_windows: int
    n_tokens: int
    """Stored slots that hold a token, special tokens included."""
    block_slots: int
    n_blocks: int

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_plan(self, where)


@dataclass(frozen=True)
class CaptureRecord(Record):
    """What one capture stores of each token."""

    name: str
    created: str
    written_by: str
    model_fingerprint: str
    dtype: str
    """What the model computed in: `float32`, `float16` or `bfloat16`."""
    precision: str
    sites: dict[str, dict[str, int]]
    """Site → layer (as a string: these are JSON keys) → width."""
    gate_sign: tuple[int, ...]
    """Layers whose gate signs are kept."""
    keep: float | None
    """Share of values kept per block and neuron at precision `sparse`."""
    n_exemplars: int
    settings: dict[str, Any]
    """All settings of the capture, under the names that its command has for them."""
    plan: PlanRecord
    float_dtype: str | None = None
    """The format of values before they are encoded, where it is not `dtype`: attributions are float32."""
    patches_sha256: str | None = None
    """SHA-256 of the table of patches, in a capture of images."""
    statistics: tuple[str, ...] = ()
    """The statistics of each neuron that its blocks are gathered with; records of earlier versions list none."""
    root: str = ""
    """The id of the store's root, whose model it ran; empty in records of earlier versions."""
    identity: str = ""
    """`identity_of` this record, to which the checksums of rows, plan arrays and statistics are bound.

    Empty in a capture of an earlier version, which has no such checksums.
    """
    plan_files: dict[str, str] = field(default_factory=dict)
    """File of the plan, as `tokens/ids` or `windows.parquet` → what it must be; see `store.capture.plan_files`. Or empty."""
    bundled: bool = False
    """Whether all files of a block lie in one object; see `store.files.bundles`."""
    compression: str = ""
    """See `store.files.compression`; empty in records of earlier versions."""
    order: dict[str, str] = field(default_factory=dict)
    """Site → one of `layout.ORDERS`, in which its values lie: neuron by neuron where none is named."""
    write_scale: tuple[int, ...] = ()
    """Layers of which it holds the product of the factors `scaled_by`, one number per position."""

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_capture(self, where)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-ready values; the last ten fields are left out where they say nothing.

        `FormatError` for a record that `from_json` would refuse: it would make the whole store unreadable.
        """
        value = super().to_json()
        self.from_json(value, "The CaptureRecord to be written")
        for name in list(value)[list(value).index("float_dtype") :]:
            if not value[name]:
                del value[name]
        return value

    def identity_of(self) -> str:
        """What tells this capture from every other: SHA-256, 32 digits, of all that decides its values, and of its name.

        Two runs of the same capture have the same one, wherever, whenever, however bundled, compressed and ordered.
        `plan_files` do not count: the plan's fingerprint covers them, and another pyarrow writes other bytes for a table.
        """
        decisive = super().to_json()
        for name in ("created", "written_by", "root", "identity", "plan_files", "bundled", "compression", "order"):
            del decisive[name]
        if not self.write_scale:
            del decisive["write_scale"]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def is_checked(self) -> bool:
        """Whether whoever reads its values holds them against checksums; captures of earlier versions have none."""
        return bool(self.identity)

    @property
    def of_images(self) -> bool:
        """Whether its documents are images."""
        return self.patches_sha256 is not None

    @property
    def part(self) -> str:
        """The part of the model it covers: `language`, `vision` or `projector`."""
        return str(self.settings.get("part", "language"))

    @property
    def of_tower(self) -> bool:
        """Whether its positions are those of a part before the language model, which reads images instead of tokens."""
        return self.part != "language"

    @property
    def held_dtype(self) -> str:
        """`float32`, `float16` or `bfloat16`: the format of values before they are encoded."""
        return self.float_dtype or self.dtype

    @property
    def encoding(self) -> Precision:
        """How `precision` stores the values; `FormatError` where it is not a known one."""
        precision = PRECISIONS.get(self.precision)
        if precision is None:
            raise FormatError(
                f"Capture {self.name!r} has precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}. Update "
                "actstore, or restore the record from a copy."
            )
        return precision(self.held_dtype, self.keep, self.compression)

    def layers(self, site: str) -> dict[int, int]:
        """Layer → width of the layers captured at `site`."""
        return {int(layer): width for layer, width in self.sites[site].items()}

    @property
    def value_dtype(self) -> str | None:
        """`float32`, `float16`, `bfloat16`, `int8`, or None where no values are stored."""
        form = self.encoding.stored_format
        return form.name if form else None


@dataclass(frozen=True)
class CommitRecord(Record):
    """The shards of a block that is completely written, with their sizes and checksums."""

    block: int
    shards: dict[str, tuple[int, str]]
    """Key below the capture → (size in bytes, CRC-32C)."""
    seconds: float = 0.0
    """Wall time from the block's first forward pass to its commit."""
    checksum: str = field(default="")
    capture: str = ""
    """The capture's name; this and the next three are empty in records of earlier versions."""
    plan: str = ""
    """The plan's fingerprint."""
    model: str = ""
    """The model's fingerprint."""
    identity: str = ""
    """The capture's identity."""

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_number(where, "block", self.block, 0, record_checks.MAX_COUNT)
        record_checks.check_number(where, "seconds", self.seconds, -record_checks.MAX_COUNT, record_checks.MAX_COUNT)
        record_checks.check_files(where, "shards", self.shards)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-ready values, without what it does not say."""
        value = super().to_json()
        for name in ("capture", "plan", "model", "identity"):
            if not value[name]:
                del value[name]
        return value

    def with_checksum(self) -> CommitRecord:
        """The same record with its own checksum set."""
        body = dataclasses.replace(self, checksum="").to_json()
        return dataclasses.replace(self, checksum=checksum(json.dumps(body, sort_keys=True).encode()))
