"""The command line in a process that is told to end once a block is committed.

Told from within: a test that watches from outside is late where the machine is busy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping


def run_told_to_end(
    number: signal.Signals, *command: object, after: int = 2, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `actstore COMMAND …`, which gets the signal after the commit of block `after`."""
    arguments = [sys.executable, __file__, str(number.value), str(after), *map(str, command)]
    return subprocess.run(
        arguments, capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False
    )


def _main() -> None:
    from actstore.cli import main
    from actstore.store.storage.folder import Folder

    write, (number, block, *command) = Folder.write_json, sys.argv[1:]

    def write_json(self: Folder, key: str, *arguments: Any, **keywords: Any) -> None:
        write(self, key, *arguments, **keywords)
        if key.endswith(f"/blocks/{block}.json"):
            os.kill(os.getpid(), int(number))

    Folder.write_json = write_json  # type: ignore[method-assign]
    sys.argv[1:] = command
    main()


if __name__ == "__main__":
    _main()
