"""What records say of a file's bytes, as ranges of them with a CRC-32C each: read once, a file is copied and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import google_crc32c

from actstore.store.errors import FormatError
from actstore.store.files.checksums import verify_header
from actstore.store.files.parquet import undamaged
from actstore.store.files.shards import WHAT_TO_DO
from actstore.store.files.table_checksums import key_bytes, mismatch, read_trailer
from actstore.store.layout import weights_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actstore.store.storage.folder import Folder
    from actstore.store.storage.pieces import Source


@dataclass(frozen=True)
class CheckedRange:
    """Bytes start…stop of a file, and their CRC-32C, which was begun with `seed`."""

    start: int
    stop: int
    checksum: int
    seed: int = 0


if TYPE_CHECKING:
    Ranges = Callable[[Source], Sequence[CheckedRange]]
    """What is known of the bytes of a file that is open; `FormatError` where its beginning or end already tell of damage."""


def unknown(_: Source) -> Sequence[CheckedRange]:
    """Of a file of which no record says anything: nothing."""
    return ()


def whole(checksum: str) -> Ranges:
    """The checksum of all bytes."""
    return lambda source: [CheckedRange(0, source.nbytes, int(checksum, 16))]


def of_table(folder: Folder, key: str, digest: str = "") -> Ranges:
    """Those of a Parquet table, by its own checksums; `digest`: what the record that it belongs to says of it."""

    def ranges(source: Source) -> Sequence[CheckedRange]:
        with undamaged(folder, key):
            trailer = read_trailer(source)
        if digest and (trailer is None or trailer.digest != digest):
            raise mismatch(folder, key)
        if trailer is None:
            return ()  # of an earlier version
        seed = google_crc32c.value(key_bytes(key))
        return [
            CheckedRange(0, trailer.at, trailer.before, seed),
            CheckedRange(trailer.footer_at, source.nbytes, trailer.after, seed),
        ]

    return ranges


def of_weights(folder: Folder, part: str, bound_to: str | None) -> Ranges:
    """Those of a part of the weights, by its own checksums, which must be `bound_to` where the root says so."""

    def ranges(source: Source) -> Sequence[CheckedRange]:
        try:
            found = verify_header(part, source, bound_to=bound_to)
        except (ValueError, EOFError) as error:
            raise damaged(folder, weights_key(part), str(error)) from None
        return () if found is None else [CheckedRange(found[0], source.nbytes, int(found[1], 16))]

    return ranges


def damaged(folder: Folder, key: str, what: str) -> FormatError:
    """The error that a file is not what its record says, so that it is not copied."""
    return FormatError(f"{folder}/{key} is damaged, or is being rewritten: {what}. It was not copied.", WHAT_TO_DO)
