"""Several files that are written now and brought to the disk together, while the caller does something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from actstore.store.storage.disk import PartialFile


class Batch:
    """Files that outlast a power cut once `sync` has returned; their writers do not wait for the disk.

    A storage without files of its own takes no notice of it: what is written there is there when it is closed.
    """

    def __init__(self, pool: Executor) -> None:
        """Wait for the disk in the threads of `pool`."""
        self._pool = pool
        self._files: list[tuple[PartialFile, Future[None]]] = []

    def add(self, file: PartialFile) -> None:
        """Publish a file that has ended; returns at once."""
        self._files.append((file, self._pool.submit(_publish, file)))

    def sync(self) -> None:
        """Wait until every file added is published and on disk; the `OSError` of the first that cannot be."""
        for _, published in self._files:
            published.result()
        # Once per folder, after all of its files.
        one_of_each = {file.folder: file for file, _ in self._files}.values()
        for settled in [self._pool.submit(file.settle) for file in one_of_each]:
            settled.result()


def _publish(file: PartialFile) -> None:
    try:
        file.publish(settle=False)
    except BaseException:
        file.discard()
        raise
