"""Finds, in Triton's intermediate code, products in 32 bits that addresses or masks are made of.

An index that was multiplied in 32 bits is wrong from 2³¹ elements on, and no test of a usual size shows it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

_VALUE = re.compile(r"%[\w.$-]+(?:#\d+)?")
_DEFINITION = re.compile(r"^((?:%[\w.$-]+(?::\d+)?(?:, )?)+) = (.*)$")
_LOOP = re.compile(r"scf\.for (?:unsigned )?(%\S+) = (%\S+) to (%\S+) step (%\S+)")
_CARRIED = re.compile(r"(%[\w.$-]+) = (%[\w.$#-]+)")
_BASES = ("tt.load", "tt.get_program_id", "arith.constant", "tt.make_range", "tt.atomic", "tt.get_num_programs")
_ACCESSES = {"tt.load": (0, 1), "tt.store": (0, 2), "tt.atomic_rmw": (0, 2)}
"""The operands of an access that say where: pointer and mask."""


class _Definition(NamedTuple):
    line: str
    operands: list[str]


class _Region(NamedTuple):
    results: list[str]
    carried: list[str]


def narrow_products(ttir: str) -> list[str]:
    """The lines that multiply in 32 bits and reach an address or a mask; none in a kernel that is right at any size.

    ttir: as Triton prints it, where functions are inlined. Raises ValueError for a loop that it cannot follow.
    """
    definitions, accesses = _read([re.sub(r" loc\(.*", "", line).strip() for line in ttir.splitlines()])
    found, seen, pending = [], set(), list(accesses)
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        for definition in definitions[value]:
            if definition.line.startswith(_BASES):
                continue
            if definition.line.startswith("arith.muli") and re.search(r"[ x<]i32>?$", definition.line):
                found.append(f"{value} = {definition.line}")
            pending.extend(definition.operands)
    return sorted(found)


def _read(lines: list[str]) -> tuple[dict[str, list[_Definition]], list[str]]:
    """What every value is made of, and the values that say where memory is accessed.

    Sibling regions may reuse a name: a value has all the definitions of its name.
    """
    definitions: dict[str, list[_Definition]] = defaultdict(list)
    accesses: list[str] = []
    regions: list[_Region] = []
    for line in lines:
        if line.startswith("}"):
            closed = regions.pop() if regions else _Region([], [])
            if line.endswith("{"):  # `} else {`
                regions.append(closed)
            continue
        match = _DEFINITION.match(line)
        names, operation = (match[1], match[2]) if match else ("", line)
        results = _results(names)
        operands = _VALUE.findall(operation)
        if "scf.while" in operation:
            raise ValueError(f"cannot follow the loop {line}")
        if loop := _LOOP.search(operation):
            carried = _CARRIED.findall(operation.partition("iter_args(")[2].partition(") ->")[0])
            definitions[loop[1]].append(_Definition("scf.for", [loop[2], loop[3], loop[4]]))
            for (argument, start), result in zip(carried, results, strict=True):
                definitions[argument].append(_Definition("scf.for", [start]))
                definitions[result].append(_Definition("scf.for", [argument]))
            regions.append(_Region(results, [argument for argument, _ in carried]))
        elif operation.endswith("{"):
            for result in results:
                definitions[result].append(_Definition(operation, operands if "scf.if" not in operation else []))
            regions.append(_Region(results if "scf.if" in operation else [], []))
        elif operation.startswith("scf.yield"):
            for values in (regions[-1].results, regions[-1].carried):
                for value, operand in zip(values, operands, strict=False):
                    definitions[value].append(_Definition("scf.yield", [operand]))
        else:
            for result in results:
                definitions[result].append(_Definition(operation, operands))
        for access, positions in _ACCESSES.items():
            if operation.startswith(access):
                accesses.extend(operands[i] for i in positions if i < len(operands))
    return definitions, accesses


def _results(names: str) -> list[str]:
    """The values that stand left of an equals sign: `%a, %b`, or `%a:2` for `%a#0` and `%a#1`."""
    results: list[str] = []
    for name in filter(None, names.split(", ")):
        value, _, count = name.partition(":")
        results.extend([f"{value}#{i}" for i in range(int(count))] if count else [value])
    return results
