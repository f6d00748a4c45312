"""What explanations are on disk: the record of a set, and one JSON file per explanation and per score.

Every file names the set and the neuron that it is of, and has its own checksum, so that one which is damaged, or lies where it
does not belong, is found without another file. What follows from a file, such as an accuracy, is not in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from actstore.store.errors import FormatError, NotFoundError
from actstore.store.files import record_checks
from actstore.store.files.names import stored_names
from actstore.store.files.records import Record, verify_checksum, with_checksum
from actstore.store.layout import explanations_key
from actstore.store.neurons import neuron_name
from actstore.store.storage.listing import is_readable

if TYPE_CHECKING:
    from actstore.store.storage.folder import Folder

FORMAT: Final = 1
RECORD: Final = "record.json"
INDEX: Final = "files.json"
METHODS: Final = ("detection", "fuzzing", "graph-detection", "graph-fuzzing")
"""The scores that an explanation can have; of the last two the neuron's graph answers the questions."""
KINDS: Final = ("exemplar", "random", "nearest")
"""Where the excerpt of a question comes from: where the neuron fires, anywhere else, or where its nearest neurons fire."""

_FILE: Final = re.compile(r"(L\d+\.N\d+)(?:\.([a-z-]+))?\.json")

OfNeuron = TypeVar("OfNeuron", "Explanation", "Score")


@dataclass(frozen=True)
class ExplanationSet(Record):
    """What the explanations of one name have in common."""

    name: str
    capture: str
    plan_fingerprint: str
    capture_identity: str
    """Empty for a capture of an earlier version, which has none."""
    model_fingerprint: str
    site: str
    explainer_model: str
    """As the server is asked for it."""
    settings: dict[str, Any]
    """What decides prompts and questions: the fields of `ExplainSettings`, and the version of the prompts' wording."""
    written_by: str
    created: str
    format: int = FORMAT

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_name(where, "name", self.name)

    @property
    def identity(self) -> str:
        """What every file of the set names: SHA-256 of the record, 16 digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Exemplar(Record):
    """An excerpt of a window that the explainer was shown."""

    window: int
    first: int
    """Position of its first token in the window."""
    last: int
    """Position of its last."""
    position: int
    """Of the largest activation."""
    value: float
    """The activation there."""
    quantile: int
    """0 for the strongest exemplars."""


@dataclass(frozen=True)
class Explanation(Record):
    """One neuron in words, and where they come from."""

    of: str
    """The `identity` of the set."""
    layer: int
    neuron: int
    text: str
    model: str
    """Which model answered, as the server says."""
    server: str
    """Host and port of the server."""
    created: str
    prompt: tuple[dict[str, Any], ...]
    """The messages that were sent."""
    answer: str
    """All that came back."""
    exemplars: tuple[Exemplar, ...]
    usage: dict[str, int] = field(default_factory=dict)
    """Tokens of prompt and answer, as the server counts them."""
    format: int = FORMAT

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{neuron_name(self.layer, self.neuron)}.json"

    @property
    def digest(self) -> str:
        """What its scores name: SHA-256 of its text, 16 digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Question(Record):
    """One thing that a scorer was asked about an excerpt: whether the neuron fires in it, or whether the marked tokens do."""

    kind: str
    """One of `KINDS`."""
    window: int
    first: int
    last: int
    quantile: int
    """Of an exemplar; −1 for other excerpts."""
    truth: bool
    answer: bool | None
    """None where no answer could be read."""
    marked: tuple[int, ...] = ()
    """The positions that were marked."""

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_one_of(where, "kind", self.kind, KINDS)


@dataclass(frozen=True)
class Score(Record):
    """The answers of one scorer about one explanation."""

    of: str
    """The `identity` of the set."""
    layer: int
    neuron: int
    method: str
    """One of `METHODS`."""
    explanation: str
    """The `digest` of the explanation that was scored."""
    model: str
    """Which model answered; empty where the neuron's graph did."""
    server: str
    created: str
    questions: tuple[Question, ...]
    answers: tuple[str, ...] = ()
    """All that came back, one text per request."""
    usage: dict[str, int] = field(default_factory=dict)
    named: tuple[int, ...] = ()
    """Of graph-detection: firings that the graph knows on tokens that the explanation names, and all of them; else empty."""
    format: int = FORMAT

    def check(self, where: str) -> None:
        """As `Record.check`."""
        record_checks.check_one_of(where, "method", self.method, METHODS)
        record_checks.check_one_of(where, "the length of named", len(self.named), (0, 2))
        if self.named:
            record_checks.check_number(where, "named", self.named[0], 0, self.named[1])

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{neuron_name(self.layer, self.neuron)}.{self.method}.json"


def explanation_names(folder: Folder) -> tuple[str, ...]:
    """The names of a store's sets of explanations."""
    names = stored_names(folder, "explanations")
    return tuple(name for name in names if is_readable(folder, explanations_key(name, RECORD)))


def read_set(folder: Folder, name: str) -> ExplanationSet | None:
    """The record of a set; None where there is none of the name, `FormatError` where it is damaged or newer."""
    key = explanations_key(name, RECORD)
    try:
        value = folder.read_json(key)
    except NotFoundError:
        return None
    record = ExplanationSet.from_json(_checked(value, f"{folder}/{key}"), f"{folder}/{key}")
    if record.name != name:
        raise FormatError(
            f"{folder}/{key} is the record of other explanations, {record.name!r}.", "Restore it from a copy."
        )
    return record


def parse_file(file: str) -> tuple[str, str] | None:
    """The neuron and the method of a file's name, "" for an explanation; None for any other file."""
    match = _FILE.fullmatch(file)
    if match is None or (match[2] is not None and match[2] not in METHODS):
        return None
    return match[1], match[2] or ""


def read_file(folder: Folder, record: ExplanationSet, file: str, kind: type[OfNeuron]) -> OfNeuron:
    """An explanation or a score of a set by the name of its file; `FormatError` where it is damaged, or of another set."""
    where = f"{folder}/{explanations_key(record.name, file)}"
    read = kind.from_json(_checked(folder.read_json(explanations_key(record.name, file)), where), where)
    if (read.of, read.file) != (record.identity, file):
        raise FormatError(f"{where} is of other explanations, or of another neuron.", "Restore it from a copy.")
    return read


def encode(record: ExplanationSet | Explanation | Score) -> bytes:
    """The bytes of a file, its checksum among them."""
    value = with_checksum(json.loads(json.dumps(record.to_json())))
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _checked(value: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(value.get("format"), int) or value["format"] > FORMAT:
        raise FormatError(
            f"{where} has format {value.get('format')}; this actstore reads explanations up to {FORMAT}. Update actstore."
        )
    if "checksum" not in value:
        raise FormatError(f"{where} is damaged: it has no checksum.", "Restore it from a copy.")
    verify_checksum(value, where)
    return value
