"""One worker with one thread against two workers of Ray on this machine: a capture, and its graphs.

What two workers take before they begin, the start of Ray and the import of the libraries, is a candidate of its own.
"""

from __future__ import annotations

TESTS = ("tests/engine/workers", "tests/engine/capture/test_workers.py")
