"""Mutations of metadata: JSON of every record, headers of Parquet, Arrow and safetensors files, and of arrays.

Half of the mutated records get a new checksum, as a writer with a bug or a hostile one would give them: of those, the values
that the record itself holds may be read, but nothing may hang, take all memory or end in a traceback.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.campaigns import Result, Say, numbered
from faults.oracle import describe
from faults.scenarios import files_of
from faults.tampering import Expected

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from faults.oracle import Oracle

STATE = "rich"
HEADERS = (".parquet", ".arrow", ".safetensors", ".zst")
BOMB = "<deeply nested>"
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**9, 10**20, 1e308, "", "x", "NaN", "../../etc/passwd", "a" * 5000, [], {}, [[]],
    [1, 2, 3], {"a": 1}, "float64", "uint3", BOMB,
)  # fmt: skip


def mutations(
    oracle: Oracle, n: int, seed: int, *, only: int | None = None, say: Say = print, state: str = STATE
) -> Result:
    """One mutation per case, of all files with metadata in turn; the readers that open the file are asked, and `verify`."""
    result = Result("mutations of metadata", n, seed)
    workshop = oracle.workshop
    store = workshop.fresh(state) / "store"
    expected = Expected(oracle, workshop.state(state) / "store", state)
    readers = readers_of_files(oracle, store, expected)
    keys = [key for key, _ in files_of(store) if key.endswith((".json", *HEADERS))]
    by_kind: dict[str, list[str]] = {}
    for key in keys:
        by_kind.setdefault(re.sub(r"\d+|^captures/[^/]*|mlp\.post|resid\.post", "…", key), []).append(key)
    kinds = sorted(by_kind)
    for i, chance in numbered(n, seed, "mutations of metadata", only):
        key = chance.choice(by_kind[kinds[i % len(kinds)]])
        before = (store / key).read_bytes()
        mutate = mutate_json if key.endswith(".json") else mutate_header
        what, data, is_forged = mutate(chance, before)
        case = f"seed {seed}, case {i}: {key}: {what}"
        (store / key).write_bytes(data)
        outcome, failures = expected.judge(store, only=readers.get(key, []))
        (store / key).write_bytes(before)
        if is_forged:  # a record that its own checksum confirms is believed in what it says, whatever that is
            failures = [failure for failure in failures if not failure[0].startswith(("silent", "verify says"))]
            outcome = "forged: " + ("believed" if outcome == "wrong" else outcome)
        result.add(case, outcome, failures)
        for of, detail in failures:
            say(f"mutations: {case}: {of}: {describe(detail)}")
    return result


def readers_of_files(oracle: Oracle, store: Path, expected: Expected) -> dict[str, list[str]]:
    """File → the readers that open it; of the others, no mutation of the file can change what they say."""
    found: dict[str, list[str]] = {}
    for reader in expected.right:
        path = oracle.workshop.folder / "opened"
        arguments = (str(store), expected.wanted, [reader])
        oracle.server.run("faults.metadata:observe_opened", *arguments, str(path), timeout_s=120)
        for key in set(path.read_text(encoding="utf-8").splitlines()):
            found.setdefault(key, []).append(reader)
    return found


def observe_opened(store: str, wanted: dict[str, list[str]], only: list[str], target: str) -> None:
    """Ask readers, and write the keys of the files that they opened."""
    from faults import shim
    from faults.observing import observe
    from faults.power import read_journal

    journal = Path(f"{target}.journal")
    shim.arm(Path(store), shim.Fault(), journal)
    observe(store, wanted, only)
    shim.disarm()
    paths = [operation.path for operation in read_journal(journal) if operation.kind == "o"]
    Path(target).write_text("\n".join(path.removeprefix(f"{store}/") for path in paths), encoding="utf-8")


def mutate_json(chance: random.Random, data: bytes) -> tuple[str, bytes, bool]:
    """What was done, the new bytes, whether they have a checksum that confirms them."""
    if chance.random() < 0.15:
        return _mutate_text(chance, data)
    value = json.loads(data)
    places = list(_places(value))
    container, name, path = chance.choice(places)
    before = container[name]
    if chance.random() < 0.15 and isinstance(container, dict):
        del container[name]
        what = f"{path} removed"
    else:
        odd = chance.choice([*ODD_VALUES, _near(chance, before)])
        container[name] = odd
        what = f"{path}: {describe(before)[:60]!r} → {str(odd)[:60]!r}"
    is_forged = chance.random() < 0.5 and checksum_again(value)
    text = json.dumps(value, ensure_ascii=False, indent=1)
    text = text.replace(f'"{BOMB}"', "[" * 100_000 + "]" * 100_000)
    return f"{what}{', with a new checksum' if is_forged else ''}", text.encode(), is_forged


def _near(chance: random.Random, value: Any) -> Any:
    """Something like the value, and not it."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + chance.choice((-1, 1, value, 1000))
    if isinstance(value, str):
        return value[1:] or "y"
    if isinstance(value, list):
        return value[:-1] if value and chance.random() < 0.5 else [*value, *value]
    return list(value) if isinstance(value, dict) else str(value)


def _places(value: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every item of a JSON document: its container, its name or index there, its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield value, name, f"{path}/{name}"
        yield from _places(item, f"{path}/{name}")


def _mutate_text(chance: random.Random, data: bytes) -> tuple[str, bytes, bool]:
    at = chance.randrange(len(data))
    return chance.choice(
        [
            ("deeply nested", b"[" * 100_000, False),
            ("deeply nested objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, False),
            ("not UTF-8", data[:at] + b"\xff\xfe" + data[at:], False),
            ("a number of 100,000 digits", b'{"n": ' + b"9" * 100_000 + b"}", False),
            ("a byte order mark", b"\xef\xbb\xbf" + data, False),
            ("a list", b"[]", False),
            ("twice", data + data, False),
            ("zeros", bytes(len(data)), False),
        ]
    )


def checksum_again(value: Any) -> bool:
    """Give every object that has a checksum the one that it now needs, inside first; whether there was any."""
    from actstore.store.files.records import with_checksum

    found = False
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            found |= checksum_again(item)
    if isinstance(value, dict) and "checksum" in value and isinstance(value["checksum"], str):
        body = {name: item for name, item in value.items() if name != "checksum"}
        # A commit record's checksum is of itself with an empty one; other records leave theirs out.
        value["checksum"] = with_checksum(body | ({"checksum": ""} if "shards" in value else {}))["checksum"]
        found = True
    return found


def mutate_header(chance: random.Random, data: bytes) -> tuple[str, bytes, bool]:
    """Bytes of the first or the last kilobyte, where the headers and footers are."""
    ends = [*range(min(len(data), 700)), *range(max(0, len(data) - 700), len(data))]
    at = chance.choice(ends)
    n = min(chance.choice((1, 1, 2, 4, 8)), len(data) - at)
    new = chance.choice((b"\xff" * n, bytes(n), chance.randbytes(n), (2**62).to_bytes(8, "little")[:n], b"\x7f" * n))
    if data[at : at + n] == new:
        new = bytes(byte ^ 1 for byte in new)
    return f"bytes {at}…{at + n} → {new.hex()}", data[:at] + new + data[at + n :], False
