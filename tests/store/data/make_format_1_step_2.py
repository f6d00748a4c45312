"""Makes `format-1-step-2`: stores with everything that one can hold, and what they read to, beside them as JSON.

`python tests/store/data/make_format_1_step_2.py`. Three stores, for a store has one model: `text` (a Llama), `experts` (a
Mixtral in bfloat16) and `images` (a LLaVA), all tiny and random. To be run again only as long as no version of actstore that
writes format 1 has been released; from then on the folder is history.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

import actstore
from actstore import cli

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
TARGET = HERE / "format-1-step-2"
EXPECTED = HERE / "format-1-step-2.expected.json"
TEXTS = [
    ("en", "the quick brown fox jumps over the lazy dog"),
    ("fr", "le renard brun"),
    ("en", "one two three four five six seven eight nine ten over the lazy dog, one two three four five the brown fox"),
    ("py", "def add(a, b):\n    return a + b\n"),
    ("fr", "naïve café — 東京 😀"),
    ("en", "the quick brown fox"),
    ("py", "return a + b"),
    ("fr", "le chien paresseux saute par-dessus le renard brun"),
    ("en", "the lazy dog jumps over the brown fox, the quick dog"),
]
QUESTIONS = [
    {"question": "fox?", "options": ["brown", "lazy"], "answer": "A", "animal": "fox"},
    {"question": "dog?", "options": ["quick", "brown", "lazy"], "answer": "lazy", "animal": "dog"},
    {"question": "chien?", "options": ["brun", "paresseux"], "answer": "paresseux", "animal": "dog"},
]


def main() -> None:
    """Write the stores and what they read to, replacing what was there."""
    shutil.rmtree(TARGET, ignore_errors=True)
    torch.set_num_threads(1)
    # A store knows the folder of its model: one of a name that says where it comes from.
    scratch = Path(tempfile.gettempdir()) / "actstore-format-1-step-2"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    os.chdir(scratch)
    make_text(TARGET / "text")
    make_experts(TARGET / "experts")
    make_images(TARGET / "images")
    os.chdir(HERE)
    shutil.rmtree(scratch)
    for lock in TARGET.rglob("writer.lock"):
        lock.unlink()  # says which process on which machine wrote
    reader = module(TESTS / "support" / "reading_everything.py")
    found = {name: reader.read_everything(actstore.open(TARGET / name)) for name in ("experts", "images", "text")}
    EXPECTED.write_text(reader.dumped(found), encoding="utf-8")
    files = [path for path in TARGET.rglob("*") if path.is_file()]
    print(
        f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes; {EXPECTED.stat().st_size:,} of JSON"
    )


def module(path: Path) -> ModuleType:
    """A module of the tests, which are no package."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def run(*words: Any) -> None:
    """A command line."""
    sys.argv = ["actstore", *map(str, words), "--json"]
    status = cli._run(cli.application())
    if status:
        raise SystemExit(f"{sys.argv} ended with status {status}")


def write_lines(path: str, rows: list[dict[str, Any]]) -> None:
    """A file of JSON lines."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_text(store: Path) -> None:
    """Every precision, an unfinished capture, questions, probes, graphs of both methods, edits of five kinds."""
    models, tiny = module(TESTS / "support" / "tiny_text.py"), module(TESTS / "support" / "tiny.py")
    models.save_llama(
        Path("tiny-llama"), hidden_size=8, intermediate_size=12, max_position_embeddings=256, tie_word_embeddings=False
    )
    models.save_tokenizer(Path("tiny-llama"))
    llama = tiny.scatter_weights(transformers.LlamaForCausalLM.from_pretrained("tiny-llama"))
    with torch.no_grad():  # L1.N3 is too large for float16, and says no more than the others
        mlp, much = llama.model.layers[1].mlp, 3000.0
        mlp.gate_proj.weight[3] *= much
        mlp.up_proj.weight[3] *= much
        mlp.down_proj.weight[:, 3] /= much**2
        fox = transformers.AutoTokenizer.from_pretrained("tiny-llama").encode(" fox")[-1]
        llama.lm_head.weight[fox] *= 10  # so that there is a word that the model says, to be exchanged
    llama.save_pretrained("tiny-llama")
    write_lines("corpus.jsonl", [{"text": text, "language": language} for language, text in TEXTS])
    labelled: dict[str, Any] = {"label_columns": ("language",), "context": 32, "exemplars": 3}
    small = actstore.RunOptions(memory=20_000)

    def capture(name: str, options: actstore.RunOptions = small, **settings: Any) -> None:
        actstore.capture("tiny-llama", "corpus.jsonl", store, name=name, options=options, **labelled | settings)

    capture("corpus", sites=("mlp.post", "resid.post"))
    one: dict[str, Any] = {"layers": (1,), "gate_sign": False, "label_columns": ()}
    capture("half", precision="half", overlap=4, **one)
    capture("int8", precision="int8", positions="0,-1,-2", **one)
    capture("sparse", precision="sparse", keep=0.25, max_documents=5, **one)
    capture("statistics", precision="none", max_documents=5, **one)
    capture("begun", actstore.RunOptions(memory=4000), layers=(0,), precision="int8")
    interrupt(store / "captures" / "begun", block=1)
    write_lines("questions.jsonl", QUESTIONS)
    actstore.attribute("tiny-llama", "questions.jsonl", store, steps=4, templates=2, label_columns=("animal",))
    asked = ("--capture", "corpus", "--quiet")
    run("graph", "build", store, *asked, "--gain", 0)
    run("graph", "probe", "tiny-llama", store, *asked, "--sample", 60, "--window", 16)
    neurons = ("--neurons", "L0.N3,L1.N7")
    run("graph", "build", store, *asked, *neurons, "--gain", -1, "--also", "probes-sampled", "--name", "more")
    run("graph", "probe", "tiny-llama", store, *asked, *neurons, "--exemplars", 4, "--substitutes", 1,
        "--annotate", "graphs", "--published", "published")  # fmt: skip
    run("edit", "suppress", store, "--neurons", "L0.N3,L1.N2")
    run("edit", "boost", store, "--neurons", "L1.N7", "--factor", 3, "--as", "intervention", "--positions", "0,-1")
    operations = [
        {"kind": "set", "neurons": ["L0.N1"], "positions": "last", "value": 2.5},
        {"kind": "noise", "neurons": ["L0.N2", "L1.N2"], "sigma": 0.5, "seed": 7},
        {"kind": "patch", "neurons": ["L1.N4"], "capture": "corpus", "source": "2"},
    ]
    Path("operations.json").write_text(json.dumps({"operations": operations}))
    run("edit", "add", store, "operations.json", "--name", "operations")
    words = ("--capture", "corpus", "--from", "fox", "--to", "dog")
    run("edit", "rewrite", store, *words, "-k", 4, "--name", "least-norm")
    run("edit", "rewrite", store, *words, "-k", 3, "--form", "knowledge", "--name", "knowledge")
    run("edit", "rewrite", store, *words, "--form", "fine", "--steps", 3, "--leave-last", 0, "--name", "fine",
        "--model", "tiny-llama")  # fmt: skip


def interrupt(capture: Path, block: int) -> None:
    """Leave of a capture what a run leaves that was killed after a block was written, before it was committed."""
    (capture / f"blocks/{block}.json").unlink()
    (capture / "neurons.parquet").unlink()
    shutil.rmtree(capture / "statistics")


def make_experts(store: Path) -> None:
    """Layers that not every token goes through, of another dtype; int8 with infinite values."""
    tiny, models = module(TESTS / "support" / "tiny.py"), module(TESTS / "support" / "tiny_text.py")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=300, hidden_size=8, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=64, bos_token_id=0,
    )  # fmt: skip
    mixtral = tiny.scatter_weights(transformers.MixtralForCausalLM(config))
    with (
        torch.no_grad()
    ):  # L5.N2 is infinite, of either sign, and the last layer's last residual stream is asked by nobody
        mixtral.model.layers[1].mlp.experts.gate_up_proj[2, [2, 8]] *= 1e21
    mixtral.to(torch.bfloat16).save_pretrained("tiny-mixtral")
    models.save_tokenizer(Path("tiny-mixtral"), n_vocabulary=300)
    write_lines("corpus.jsonl", [{"text": text} for _, text in TEXTS])
    asked: dict[str, Any] = {"context": 32, "exemplars": 2, "max_documents": 3, "gate_sign": False}
    actstore.capture("tiny-mixtral", "corpus.jsonl", store, layers=(4, 5), **asked)
    actstore.capture("tiny-mixtral", "corpus.jsonl", store, name="int8", precision="int8", layers=(5,), **asked)


def make_images(store: Path) -> None:
    """Images with captions given and generated; the vision tower's own neurons; patches."""
    vision = module(TESTS / "support" / "tiny_vision.py")
    vision.tiny_vision_model("llava", Path("tiny-llava"))
    Path("pictures").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (24 + 8 * i, 40, 3), np.uint8)
        Image.fromarray(pixels).save(f"pictures/{i}.png")
    rows = [
        {"image": "0.png", "caption": "a red circle above a small blue square", "shape": "circle"},
        {"image": "1.png", "prompt": "what is in the picture?", "caption": "a small blue square", "shape": "square"},
    ]
    write_lines("pictures/images.jsonl", rows)
    asked: dict[str, Any] = {"exemplars": 2, "gate_sign": False}
    captions = {"sites": ("mlp.post", "resid.post"), "layers": (1,), "label_columns": ("shape",), "precision": "half"}
    actstore.capture("tiny-llava", "pictures", store, **asked, **captions)
    answers = {"generate": True, "max_new_tokens": 3, "prefix": "a", "positions": "generated,image", "layers": (0,)}
    actstore.capture("tiny-llava", "pictures", store, name="own", precision="int8", **asked, **answers)
    actstore.capture("tiny-llava", "pictures", store, name="tower", part="vision", layers=(3,), **asked)


if __name__ == "__main__":
    main()
