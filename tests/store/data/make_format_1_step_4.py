"""Makes `format-1-step-4`: a planted store of bundled captures, and what they read to as JSON.

`python tests/store/data/make_format_1_step_4.py`. To be run again only as long as no version of actstore that writes format 1
has been released; from then on the folder is history.
"""

import json
import shutil
import sys
from pathlib import Path

import actstore

HERE = Path(__file__).parent
TARGET = HERE / "format-1-step-4"
EXPECTED = HERE / "format-1-step-4.expected.json"
sys.path.insert(0, str(HERE.parents[1] / "support"))

from planted_stores import Planted, plant  # noqa: E402  (of the tests, which are no package)


def main() -> None:
    """Write the store and what it reads to, replacing what was there."""
    shutil.rmtree(TARGET, ignore_errors=True)
    plant(TARGET, what=Planted(bundled=True))
    plant(TARGET, "int8", Planted(precision="int8", seed=3, lengths=(60, 40), bundled=True))
    plant(TARGET, "begun", Planted(blocks=[0], finish=False, lengths=(20, 60), gate_sign=False, bundled=True))
    for lock in TARGET.rglob("writer.lock"):
        lock.unlink()
    store = actstore.open(TARGET)
    found = {}
    for name in ("corpus", "int8", "begun"):
        capture, neuron = store.capture(name), store.neuron("L1.N7")
        found[name] = {
            "blocks": list(capture.blocks),
            "files": [key for key, _ in store.folder.sizes(f"captures/{name}/bundles")],
            "statistics": {key: str(value) for key, value in neuron.statistics(name).items()},
            "activations": neuron.activations(name).tolist()[:40],
            "gates": capture.gate_bits(1, 0).tolist()[:3] if name != "begun" else None,
        }
    EXPECTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
