"""A 7B model's layer against its vocabulary: what the search takes in memory beyond its inputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actstore.kernels.vocabulary_top_k.api import vocabulary_top_k

NEURONS, VOCABULARY, K = 11_008, 32_000, 10


def search(d: int) -> int:
    """The megabytes by which the process's peak grows."""
    rng = np.random.default_rng(0)
    vocabulary_top_k(rng.standard_normal((64, d), np.float32), rng.standard_normal((100, d), np.float32), K)
    vectors, unembedding = (
        rng.standard_normal((NEURONS, d), np.float32),
        rng.standard_normal((VOCABULARY, d), np.float32),
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    vocabulary_top_k(vectors, unembedding, K)
    return (kilobytes("VmHWM") - before) // 1024


def kilobytes(name: str) -> int:
    """A line of /proc/self/status."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{name}:")]
    return int(line.split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by Linux")
def test_it_needs_less_than_100_mb() -> None:
    done = subprocess.run([sys.executable, __file__, "512"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 100  # the products alone would take 1,409


if __name__ == "__main__":
    print(search(int(sys.argv[1])))
