"""Changes to the metadata of a store that its checksums do not show: each follows from a seed and a number."""

from __future__ import annotations

import io
import json
import random
import re
from typing import Any, NamedTuple

import google_crc32c
import pyarrow.parquet as pq
from numcodecs import Zstd

from actstore.store.files.checksums import checksum_metadata
from actstore.store.files.records import with_checksum
from actstore.store.files.shards import checksum
from actstore.store.files.table_checksums import (
    checksums_of,
    chunk_places,
    footer_checksum,
    key_bytes,
    packed_chunks,
    read_trailer,
)
from actstore.store.storage.pieces import MemorySource

EXTREMES: list[Any] = [
    -1, 0, 1, 3, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 10**9, 10**30, -(2**63), 1e308, float("nan"), float("inf"), 0.5, None,
    True, "", "x", "../../etc/passwd", "/etc/passwd", "..", "a/b", "\x00", "\ud800", "1000000000", "٣", "-1", "01", [], {},
    [[]], [-1], {"": {}}, ["../x"], {"../../x": [1, "00000000"]}, [10**9] * 3, "float64", "int8", "object",
]  # fmt: skip


SIZES = {
    "n_documents", "n_windows", "n_tokens", "block_slots", "n_blocks", "n_exemplars", "neurons", "layer", "d_model",
    "n_neurons", "n_nodes", "sites", "mlp.post", "0", "1", "gate_sign", "labels", "label_columns", "statistics", "precision",
    "name", "shape", "chunk_shape", "data_type", "fill_value", "files", "shards", "block", "dtype", "data_offsets", "codecs",
}  # fmt: skip
"""Fields that are taken for sizes, names and layouts: four of ten mutations are of one of these."""


class Mutation(NamedTuple):
    """What happens to a file of the store."""

    key: str
    what: str
    field: str
    """Path of the JSON value that was changed, or what was changed of a binary file."""
    files: dict[str, bytes]
    """Every file that becomes another: those that hold its checksum too."""


# JSON


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def change_json(rng: random.Random, value: Any) -> tuple[str, str]:
    """Change one place of a JSON value; what was done, and where."""
    known = [place for place in places(value) if place and place[-1] != "checksum"]
    numbers = [place for place in known if place[-1] in SIZES] if rng.random() < 0.4 else []
    path = rng.choice(numbers or known)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    field, key = "/".join(map(str, path)), path[-1]
    old, kind = parent[key], rng.choice(["extreme"] * 5 + ["number", "gone", "added", "longer", "deep", "renamed"])
    if kind == "number" and isinstance(old, int):
        parent[key] = rng.choice([old + 1, old - 1, old * 2, -old, old * 10**6, old + 2**32])
    elif kind == "gone":
        del parent[key]
    elif kind == "renamed" and isinstance(parent, dict):
        parent[rng.choice(["../" + str(key), "999999999999", "", "1", "\ud800"])] = parent.pop(key)
    elif kind == "added" and isinstance(old, dict):
        old[rng.choice(["x", "../x", "999999", "-1", "01"])] = rng.choice([*EXTREMES, *list(old.values())[:1]])
    elif kind == "longer" and isinstance(old, list):
        old *= rng.choice([2, 1000])
    elif kind == "deep":
        deep: Any = old
        for _ in range(rng.choice([50, 150, 700])):
            deep = [deep]
        parent[key] = deep
    else:
        kind, parent[key] = "extreme", rng.choice(EXTREMES)
    return f"{kind} {repr(parent[key])[:60] if kind == 'extreme' else ''}", field


def with_its_checksum(key: str, value: dict[str, Any]) -> dict[str, Any]:
    """A record with the checksum that belongs to it."""
    attributes = value.get("attributes")
    for name in ("actstore", "actstore_capture"):
        if isinstance(attributes, dict) and isinstance(attributes.get(name), dict):
            attributes[name] = with_checksum(attributes[name])
            return value
    if re.search(r"blocks/\d+\.json$", key):
        return value | {"checksum": checksum(json.dumps(value | {"checksum": ""}, sort_keys=True).encode())}
    return with_checksum(value) if "checksum" in value else value


def mutate_json(rng: random.Random, key: str, files: dict[str, bytes]) -> Mutation:
    text = files[key].decode()
    if (crude := rng.random()) < 0.15:  # beyond what a JSON library writes
        kind, data = rng.choice(
            [
                ("100,000 deep", text.replace("{", '{"x": ' + "[" * 100_000 + "]" * 100_000 + ",", 1).encode()),
                ("not UTF-8", b"\xff\xfe" + files[key]),
                ("UTF-16", text.encode("utf-16")),
                ("a list", f"[{text}]".encode()),
                ("a key twice", re.sub(r'("\w+"): ([^,{}\[\]]+)', r"\1: \2, \1: 7", text, count=1).encode()),
                ("an endless number", re.sub(r": \d+", ": " + "9" * 5000, text, count=1).encode()),
                ("bytes inside", text[: int(len(text) * crude * 6)].encode() + bytes(range(256))),
            ]
        )
        return Mutation(key, kind, "", {key: data})
    value = json.loads(text)
    what, field = change_json(rng, value)
    has_checksum = rng.random() < 0.8
    if has_checksum:
        value = with_its_checksum(key, value)
    data = json.dumps(value).encode()
    changed = {key: data}
    if key == "tokenizer/tokenizer.json":
        return Mutation(key, what, field, changed)
    return Mutation(key, f"{what}{', with checksums' if has_checksum else ''}", field, changed)


# Binary files


def flipped(rng: random.Random, data: bytes, start: int, stop: int) -> bytes:
    """Some bytes in start…stop changed."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        changed[rng.randrange(start, stop)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(changed)


def mutate_parquet(rng: random.Random, key: str, data: bytes) -> tuple[str, bytes]:
    """The footer, or the headers of pages, with the table's own checksums made anew."""
    trailer = read_trailer(MemorySource(data))
    if trailer is None:  # a table that only its block's commit record has a checksum of
        return "bytes", flipped(rng, data, 4, len(data))
    footer, what = data[trailer.footer_at :], "footer"
    places = chunk_places(pq.read_metadata(io.BytesIO(data))).tolist()
    body = data[: places[-1][1]]
    if rng.random() < 0.7:
        footer = flipped(rng, footer, 0, len(footer) - (0 if rng.random() < 0.2 else 8))
    else:
        what, body = "pages", flipped(rng, body, 4, len(body))
    body += packed_chunks(
        [google_crc32c.value(body[start:stop]) for start, stop in places], footer_checksum(key, footer)
    )
    before = google_crc32c.value(key_bytes(key) + body)
    return what, body + checksums_of(key, before, footer) + footer


def mutate_safetensors(rng: random.Random, part: str | None, data: bytes) -> tuple[str, bytes]:
    """The header's length, or its fields, with the checksums in it made anew where `part` names the file."""
    n_header = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.25:
        return "length of header", rng.choice([0, 7, 2**31, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little") + data[8:]
    header = json.loads(data[8:n_header])
    header.pop("__metadata__", None)
    what, field = change_json(rng, header)
    body = json.dumps(header).encode()
    bare = len(body).to_bytes(8, "little") + body + data[n_header:]
    if part is None or not all(isinstance(name, str) for name in header):
        return f"{field}: {what}", bare
    body = json.dumps({"__metadata__": checksum_metadata(part, bare), **header}).encode()
    return f"{field}: {what}, with checksums", len(body).to_bytes(8, "little") + body + data[n_header:]


def mutate_statistics(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """The frame's header, or the arrays inside; or a frame that becomes, or says, a lot."""
    kind = rng.choice(["frame", "arrays", "arrays", "bomb", "size"])
    if kind == "frame":
        return kind, flipped(rng, data, 0, 14)
    if kind == "bomb":
        return kind, bytes(Zstd(level=1).encode(bytes(1 << 29)))
    if kind == "size":
        return kind, data[:4] + b"\xe4" + rng.choice([2**34, 2**40, 2**62]).to_bytes(8, "little") + data[5:]
    what, changed = mutate_safetensors(rng, None, bytes(Zstd().decode(data)))
    return f"arrays, {what}", bytes(Zstd(level=1, checksum=True).encode(changed))


def mutate_binary(rng: random.Random, key: str, files: dict[str, bytes]) -> Mutation:
    data = files[key]
    if key.endswith(".parquet"):
        what, changed = mutate_parquet(rng, key, data)
    elif key.endswith(".safetensors"):
        part = key.rpartition("/")[2].removesuffix(".safetensors") if key.startswith("weights/") else None
        what, changed = mutate_safetensors(rng, part, data)
    elif key.endswith(".zst"):
        what, changed = mutate_statistics(rng, data)
    elif key.endswith(".arrow"):
        n = min(len(data), 600)
        ends = [(0, n), (len(data) - n, len(data))]
        what, changed = "Arrow header", flipped(rng, data, *rng.choice(ends))
    else:
        what, changed = (
            "header of a chunk",
            flipped(rng, data, *rng.choice([(0, 16), (max(0, len(data) - 40), len(data))])),
        )
    return Mutation(key, what, what, {key: changed} | records_of(key, changed, files))


def records_of(key: str, data: bytes, files: dict[str, bytes]) -> dict[str, bytes]:
    """The records that hold a file's size and checksum, with those of `data`; none where none does."""
    for other, content in files.items():
        folder = re.match(r"(captures/[^/]+/)blocks/\d+\.json$|((?:graphs|edits)/[^/]+/)\w+\.json$", other)
        short = key.removeprefix((folder[1] or folder[2]) if folder else "\0")
        if short != key:
            record = json.loads(content)
            held = record.get("shards", record.get("files", {}))
            if short in held:
                held[short] = [len(data), checksum(data)]
                return {other: json.dumps(with_its_checksum(other, record)).encode()}
    return {}


def mutation(seed: int, number: int, files: dict[str, bytes]) -> Mutation:
    """A mutation by its number."""
    rng = random.Random(f"{seed}/{number}")
    records = [key for key in files if key.endswith(".json") and not key.endswith("/zarr.json")]
    records += [key for key in files if re.fullmatch(r"(captures/[^/]+/)?zarr\.json", key)] * 2
    arrays = [key for key in files if key.endswith("/zarr.json") and key.count("/") > 2]
    tables = [key for key in files if key.endswith((".parquet", ".arrow", ".safetensors", ".zst"))]
    chunks = [key for key in files if re.search(r"/c/[0-9/]+$", key)]
    key = rng.choice(rng.choice([records, records, records, arrays, tables, tables, chunks]))
    return (mutate_json if key.endswith(".json") else mutate_binary)(rng, key, files)
