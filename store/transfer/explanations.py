"""Explanations, copied: those that the target lacks, as each file is written once and for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.explanations.files import foreign, list_files, write_index
from actstore.store.explanations.record import RECORD, explanation_names, read_set
from actstore.store.explanations.tables import read_all
from actstore.store.files.names import write_names
from actstore.store.layout import explanations_key
from actstore.store.storage.lock import own_explanations

if TYPE_CHECKING:
    from collections.abc import Collection

    from actstore.store.explanations.record import ExplanationSet
    from actstore.store.model.root import RootRecord
    from actstore.store.storage.folder import Folder
    from actstore.store.transfer.transfer import Transfer


def read_explanations(source: Folder, root: RootRecord, captures: Collection[str] | None) -> list[ExplanationSet]:
    """The sets of explanations of a store, or those of some captures; `FormatError` where a file of them is damaged."""
    found = []
    for name in explanation_names(source):
        record = read_set(source, name)
        if record is None or (captures is not None and record.capture not in captures):
            continue
        if (what := foreign(source, record, root)) is not None:
            raise FormatError(f"{source}: {what}.")
        read_all(source, record)  # what is damaged is not copied
        found.append(record)
    return found


def check_explanations_of(source: Folder, target: Folder, record: ExplanationSet) -> None:
    """Raise `InvalidInputError` where the target has explanations of the name that are others."""
    key = explanations_key(record.name, "").rstrip("/")
    known = set(list_files(source, record.name))
    files = [RECORD, *(file for file in list_files(target, record.name) if file in known)]
    for file in files:
        one = f"{key}/{file}"
        if target.exists(one) and target.read(one) != source.read(one):
            raise InvalidInputError(
                f"{target} already has explanations {record.name!r} of its own, other than {source} has: {file}. Delete "
                f"{target}/{key}, or name another `dst`."
            )


def copy_explanations(transfer: Transfer, record: ExplanationSet) -> None:
    """Copy what the target lacks of a set; `ReadOnlyError` while another process writes it there."""
    source, target, name = transfer.source, transfer.target, record.name
    with own_explanations(target, name):
        write_names(target, "explanations", name)
        there = {*list_files(target, name), *([RECORD] if target.exists(explanations_key(name, RECORD)) else [])}
        for file in (RECORD, *list_files(source, name)):
            if file not in there:
                key = explanations_key(name, file)
                transfer.write(key, source.read(key))
        write_index(target, name)
