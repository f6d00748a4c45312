"""Makes `format-1-step-3`: a planted store with index files, tables by column and exemplars, and what they read to as JSON.

`python tests/store/data/make_format_1_step_3.py`. To be run again only as long as no version of actstore that writes format 1
has been released; from then on the folder is history.
"""

import json
import shutil
import sys
from pathlib import Path

import actstore

HERE = Path(__file__).parent
TARGET = HERE / "format-1-step-3"
EXPECTED = HERE / "format-1-step-3.expected.json"
sys.path.insert(0, str(HERE.parents[1] / "support"))

from planted_stores import Planted, plant  # noqa: E402  (of the tests, which are no package)


def main() -> None:
    """Write the store and what it reads to, replacing what was there."""
    shutil.rmtree(TARGET, ignore_errors=True)
    plant(TARGET, what=Planted(gate_sign=False))
    plant(TARGET, "int8", Planted(precision="int8", seed=3, lengths=(60, 40), gate_sign=False))
    plant(TARGET, "begun", Planted(blocks=[0], finish=False, lengths=(20, 60), gate_sign=False))
    for lock in TARGET.rglob("writer.lock"):
        lock.unlink()
    store = actstore.open(TARGET)
    found = {}
    for name in ("corpus", "int8"):
        neuron = store.neuron("L1.N7")
        found[name] = {
            "blocks": list(store.capture(name).blocks),
            "statistics": {key: str(value) for key, value in neuron.statistics(name).items()},
            "activations": neuron.activations(name).tolist()[:40],
            "exemplars": neuron.exemplars(3, name, context=4).to_arrow().drop_columns(["activations"]).to_pylist(),
            "histogram": neuron.histogram(name)[0].tolist(),
        }
    EXPECTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
