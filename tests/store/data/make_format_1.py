"""Makes `format-1`, the store that format 1's readers must always read: `python tests/store/data/make_format_1.py`.

A Llama with random weights over nine short documents, captured twice: exactly, and as int8. To be run again only as long as
no version of actstore that writes format 1 has been released; from then on the folder is history.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from actstore.engine.capture.api import RunOptions, capture
from actstore.store import layout

HERE = Path(__file__).parent
TEXTS = [
    ("en", "the quick brown fox"),
    ("fr", "le renard brun"),
    ("en", "one two three four five six seven eight nine ten over the lazy dog"),
    ("py", "def add(a, b):\n    return a + b\n"),
    ("fr", "naïve café — 東京 😀"),
    ("en", "the lazy dog"),
    ("py", "return a + b"),
    ("fr", "le chien paresseux saute par-dessus le renard brun"),
    ("en", "ten nine eight"),
]


def main() -> None:
    """Write the store, replacing what was there."""
    spec = importlib.util.spec_from_file_location("models", HERE.parents[1] / "support" / "tiny_text.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    target = HERE / "format-1"
    shutil.rmtree(target, ignore_errors=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        # Names in the store are as they were given: no path of this machine may end up there.
        os.chdir(scratch)
        models.save_llama(Path("tiny-llama"), vocab_size=300, hidden_size=8, intermediate_size=12)
        models.save_tokenizer(Path("tiny-llama"), n_vocabulary=300)
        rows = [{"text": text, "language": language} for language, text in TEXTS]
        Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = {"label_columns": ("language",), "context": 32, "exemplars": 3}
        options = RunOptions(memory=20_000)
        capture("tiny-llama", "corpus.jsonl", target, options=options, **settings)
        settings |= {"precision": "int8", "layers": (1,), "gate_sign": False}
        capture("tiny-llama", "corpus.jsonl", target, name="in-int8", options=options, **settings)
    for lock in target.rglob(layout.LOCK_NAME):
        lock.unlink()  # says which process on which machine wrote
    files = [path for path in target.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes")


if __name__ == "__main__":
    main()
