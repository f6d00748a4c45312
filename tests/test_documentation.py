"""What README.md and docs/ say: every block of code in them runs, as a reader would run it.

A page's blocks run in order in a folder of their own that holds what pages name: `gpt2`, `tuned` and `Qwen/Qwen3-0.6B` are
tiny models, as a name stands for the folder that is called so; `demo` has the embedded models, `build/demo/stdlib` less of the
corpus that `make demo` makes there. What a command prints is not compared. A block that is not to run has a comment before it,
`<!-- not run: the reason -->`, which ends in the line before the block. A block of Python whose first line names a file of the
package, `# kernels/…/api.py`, runs as that module, so that later blocks import from it; one that names a file of tests has its
tests run. Examples that `demo/tour.py` writes into a page, in
marks that begin with `output-`, run as a session of their own.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import lzma
import re
import shlex
import signal
import subprocess
import sys
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import planted_stores
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import actstore
from actstore.api.light import READING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conftest import Result

Item = TypeVar("Item")

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
RUN = ("python", "sh", "console")
"""Info strings of blocks that run."""
SHOWN = ("text", "json", "sql")
"""Info strings of blocks that show something. A tree or a formula may also have none."""
SLOW = ("README", "capture", "scale", "naica", "graphs", "multimodal", "edit", "first-store", "facts", "captions")
"""Pages that take more than a few seconds; so does every session of a tour."""
FILE = re.compile(r"# ((?:kernels|tests|benchmarks)/[\w/]+)\.py\n")
"""The first line of a block that is a file."""
TOUR = re.compile(r"^<!-- (output-[\w-]+) -->\n(.*?)^<!-- /\1 -->$", re.MULTILINE | re.DOTALL)
METHODS = sorted(page for page in (DOCS / "methods").glob("*.md") if page.stem != "index")
SCRIPTS = ("demo/training/pictures.py", "demo/hidden_states.py", "demo/subject_questions.py")
"""Those that run, as later lines of a page read what they write."""
N_PICTURES = 120
"""Of those that a page has drawn."""
N_QUESTIONS = 3
"""Of each kind in the fact model's questions."""
N_MESSAGES = 20
"""Of each language in the language model's texts."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    skipped: bool
    tour: str = ""
    """The tour that the block is a part of, if it is to run apart from its page."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """The command lines of a shell block; of what a console shows, those after its prompt."""
        joined = self.text.replace("\\\n", " ").splitlines()
        if self.kind == "console":
            return [line[2:] for line in joined if line.startswith("$ ")]
        return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    tours = [(match.start(), match.end(), match[1]) for match in TOUR.finditer(text)]
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip()
        comment = before.rpartition("<!--")[2] if before.endswith("-->") else ""
        line = text.count("\n", 0, match.start()) + 2
        body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        tour = next((name for start, end, name in tours if start < match.start() < end), "")
        found.append(Block(page, line, match[2].strip(), body, comment.strip().startswith("not run: "), tour))
    return found


BLOCKS = {page: blocks_of(page) for page in PAGES}


def texts() -> list[dict[str, str]]:
    """Documents in three languages, in which single tokens are what pages ask for."""
    english = "the capital of France is Paris and the capital of England is London , so I go to Paris . "
    french = "la capitale de la France est Paris et le renard brun saute sur le chien paresseux . "
    python = "def add ( a , b ) :\n    return a + b\n\ndef twice ( a ) :\n    return add ( a , a )\n"
    kinds = (("en", english), ("fr", french), ("py", python))
    return [{"text": text * (1 + i % 4), "language": language} for i in range(30) for language, text in kinds]


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([document["text"] for document in texts()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(folder)


def save_models(folder: Path) -> None:
    """`gpt2` and `tuned`: 4 layers of 64 neurons, the second with other weights; a gated model in `Qwen/Qwen3-0.6B`."""
    shape = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0}
    for seed, name in enumerate(("gpt2", "tuned")):
        torch.manual_seed(seed)
        config = GPT2Config(n_embd=16, n_layer=4, n_head=2, n_positions=256, n_inner=64, **shape)
        GPT2LMHeadModel(config).save_pretrained(folder / name)
        save_tokenizer(folder / name)
    torch.manual_seed(2)
    gated = Qwen3Config(
        hidden_size=16, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=256, **shape,
    )  # fmt: skip
    Qwen3ForCausalLM(gated).save_pretrained(folder / "Qwen" / "Qwen3-0.6B")
    save_tokenizer(folder / "Qwen" / "Qwen3-0.6B")


def save_corpora(folder: Path) -> None:
    """`corpus.jsonl`, `held-out.jsonl`, a folder `texts`, `questions.json`, `prompts.txt`."""
    documents = texts()
    for name, chosen in (("corpus", documents), ("held-out", documents[:30])):
        lines = [json.dumps(document) + "\n" for document in chosen]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "texts").mkdir()
    for number, document in enumerate(documents[:6]):
        (folder / "texts" / f"{number}.txt").write_text(document["text"], encoding="utf-8")
    questions = [
        {"question": f"What is {n} + {m}?", "options": [str(n + m + k) for k in range(4)], "answer": str(n + m),
         "domain": "sums" if n % 2 else "others"}
        for n in range(4) for m in range(3)
    ]  # fmt: skip
    (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    (folder / "prompts.txt").write_text("the capital of\nla capitale de\n", encoding="utf-8")


def _first_of_each(items: Iterable[Item], kind: Callable[[Item], str], n: int) -> list[Item]:
    """The first n items of each kind, in their order."""
    seen: Counter[str] = Counter()
    first = []
    for item in items:
        seen[kind(item)] += 1
        if seen[kind(item)] <= n:
            first.append(item)
    return first


def save_demo(folder: Path) -> None:
    """The embedded models, two of them with few of their questions and texts, and a little of the standard library."""
    (folder / "demo").mkdir()
    (folder / "demo" / "data").symlink_to(ROOT / "demo" / "data")
    for model in (ROOT / "demo" / "models").iterdir():
        (folder / "demo" / "models" / model.name).mkdir(parents=True)
        for file in model.iterdir():
            (folder / "demo" / "models" / model.name / file.name).symlink_to(file)
    asked = folder / "demo" / "models" / "fact-llama" / "questions.json"
    questions = json.loads(asked.read_text(encoding="utf-8"))
    few = _first_of_each(questions.items(), lambda item: item[1]["relation_name"], N_QUESTIONS)
    asked.unlink()
    asked.write_text(json.dumps(dict(few)), encoding="utf-8")
    messages = folder / "demo" / "models" / "language-llama" / "texts.jsonl.xz"
    with lzma.open(messages, "rt", encoding="utf-8") as lines:
        few_lines = _first_of_each(lines, lambda line: json.loads(line)["language"], N_MESSAGES)
    messages.unlink()
    with lzma.open(messages, "wt", encoding="utf-8") as file:
        file.writelines(few_lines)
    library = folder / "build" / "demo" / "stdlib"
    library.mkdir(parents=True)
    for module in ("bisect", "fnmatch", "keyword", "linecache", "reprlib", "shlex"):
        source = Path(importlib.util.find_spec(module).origin)  # type: ignore[arg-type, union-attr]
        (library / source.name).write_bytes(source.read_bytes())
    (library / "330").mkdir()  # as `actstore demo` has it: a prefix of the name's hash
    (library / "keyword.py").rename(library / "330" / "keyword.py")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that pages take for granted."""
    folder = tmp_path_factory.mktemp("given")
    save_models(folder)
    save_corpora(folder)
    save_demo(folder)
    return folder


@pytest.fixture
def workplace(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a page runs: what is given, and nothing yet of what the page makes."""
    for item in given.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def execute(cli: Callable[..., Result]) -> Callable[[str, str], None]:
    """Run one command line of a page."""
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    def run(command: str, where: str) -> None:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            unknown = [word for word in words[1:] if "=" not in word and word not in targets]
            assert not unknown, f"{where}: the Makefile has no target {unknown[0]}"
            return
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), f"{where}: there is no {words[1]}"
            if words[1] in SCRIPTS:
                few = [str(min(int(word), N_PICTURES)) if word.isdigit() else word for word in words[2:]]
                subprocess.run([sys.executable, str(ROOT / words[1]), *few], check=True, capture_output=True)
            return
        if words[0] == "rm":
            Path(words[1]).unlink()
            return
        assert words[0] == "actstore", f"{where}: only actstore and make are run here, found {command!r}"
        if words[1] == "serve":
            serve_and_stop(words[1:])
            return
        done = cli(*words[1:])
        assert done.status == 0, f"{where}: {command!r} ended with status {done.status}:\n{done.err}"

    return run


def serve_and_stop(words: list[str]) -> None:
    """Run a command that serves until it says where, at a port that is free, and interrupt it."""
    if "--port" in words:
        del words[(at := words.index("--port")) : at + 2]
    command = [sys.executable, "-m", "actstore.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert said.startswith("The explorer is at http://127.0.0.1:"), said + err
    assert process.returncode == 0, err


def load_fixtures(names: tuple[str, ...]) -> list[Any]:
    """Fixtures of tests/kernels/conftest.py, which pytest otherwise gives to tests of that folder alone."""
    spec = importlib.util.spec_from_file_location("kernel_fixtures", ROOT / "tests" / "kernels" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [getattr(module, name) for name in names]


device, on_device = load_fixtures(("device", "on_device"))


def module_of(block: Block, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType | None:
    """The new module, in a package that may be new too, that a block of the package is; else None."""
    match = FILE.match(block.text)
    if match is None or not match[1].startswith("kernels/"):
        return None
    if match[1].endswith("/gpu"):
        pytest.importorskip("actstore.kernels.gpu", exc_type=ImportError)
    name = "actstore." + match[1].replace("/", ".")
    package_name, _, child = name.rpartition(".")
    if package_name not in sys.modules:
        package = types.ModuleType(package_name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, package_name, package)
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules[package_name], child, module, raising=False)
    return module


SESSIONS = {
    f"{page.stem}-{tour}".rstrip("-"): [block for block in blocks if block.tour == tour and block.kind in RUN]
    for page, blocks in BLOCKS.items()
    for tour in dict.fromkeys(block.tour for block in blocks if block.kind in RUN)
}
"""Blocks that run in one folder, in their order: those of a page, and those of each tour on it."""
RUNNING = [
    pytest.param(blocks, id=name, marks=[pytest.mark.slow] if blocks[0].tour or name in SLOW else [])
    for name, blocks in SESSIONS.items()
]


@pytest.mark.parametrize("blocks", RUNNING)
def test_every_block_of_a_page_runs(
    blocks: list[Block],
    workplace: Path,
    execute: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    page = blocks[0].page
    monkeypatch.syspath_prepend(ROOT)  # `benchmarks` is a folder of the checkout
    # A module that can be found: numba keeps the name of a function's module with its machine code.
    module = types.ModuleType(f"page_{page.stem}".replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = vars(module)
    for block in blocks:
        if block.skipped:
            continue
        if block.kind == "python":
            # Line numbers of a traceback are those of the page.
            code = "\n" * (block.line - 1) + block.text
            own = module_of(block, monkeypatch)
            exec(compile(code, str(page), "exec"), names if own is None else vars(own))
            if block.text.startswith("# tests/"):
                for test in [names.pop(name) for name in list(names) if name.startswith("test_")]:
                    test(**{name: request.getfixturevalue(name) for name in inspect.signature(test).parameters})
        else:
            for command in block.commands():
                execute(command, block.where)


def test_every_block_says_what_it_is_and_few_are_not_run() -> None:
    blocks = [block for page in PAGES for block in BLOCKS[page]]
    unknown = [block.where for block in blocks if block.kind not in (*RUN, *SHOWN, "")]
    assert not unknown
    assert sum(block.kind in RUN for block in blocks) > 40
    assert sum(block.skipped for block in blocks) <= 6
    assert sum(map(len, SESSIONS.values())) == sum(block.kind in RUN for block in blocks)


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_page_of_a_method_has_commands_their_output_python_and_limits(page: Path) -> None:
    kinds = {block.kind for block in BLOCKS[page] if not block.tour and not block.skipped}
    assert {"sh", "python", "text"} <= kinds or page.stem == "coverage"  # whose formulas are a table
    outputs = [block for block in BLOCKS[page] if block.tour == f"output-{page.stem}"]
    assert any(not line.startswith("$ ") for block in outputs for line in block.text.splitlines())
    text = page.read_text(encoding="utf-8")
    assert "\n## In Python\n" in text
    assert "\n## Limits\n" in text
    python = "".join(block.text for block in BLOCKS[page] if block.kind == "python")
    assert "actstore.open(" in python


def test_a_block_that_fails_is_not_passed_over(workplace: Path, execute: Callable[[str, str], None]) -> None:
    with pytest.raises(AssertionError, match=r"status 2:\s+Error: There is no store at nowhere"):
        execute("actstore info nowhere", "here")
    with pytest.raises(AssertionError, match="no target dmo"):
        execute("make dmo", "here")
    with pytest.raises(AssertionError, match="only actstore and make"):
        execute("pip install actstore", "here")


def example_reader() -> dict[str, Any]:
    """The functions of the reader that the page on the format gives, which imports nothing of ours."""
    (block,) = [b for b in BLOCKS[DOCS / "format.md"] if "def read_neuron(" in b.text]
    names: dict[str, Any] = {}
    exec(compile(block.text, block.where, "exec"), names)
    assert "actstore" not in names
    return names


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("exact", "float32"), ("exact", "bfloat16"), ("half", "float32"), ("int8", "bfloat16"), ("sparse", "float32")],
)
def test_the_example_reader_reads_what_actstore_reads(workplace: Path, precision: str, dtype: str) -> None:
    options = actstore.RunOptions(dtype=dtype)
    capture = actstore.capture(
        "Qwen/Qwen3-0.6B", "corpus.jsonl", "s.actstore", options=options, precision=precision, max_tokens=3000
    )
    reader = example_reader()
    assert reader["committed_blocks"]("s.actstore", "corpus") == list(capture.blocks)
    for layer, neuron in ((0, 0), (3, 63)):
        found = reader["read_neuron"]("s.actstore", "corpus", layer, neuron)
        np.testing.assert_array_equal(found, capture.activations(layer, neuron))
        gates = np.concatenate([capture.gate_signs(layer, b)[neuron, : capture.used_slots[b]] for b in capture.blocks])
        np.testing.assert_array_equal(reader["read_gate_signs"]("s.actstore", "corpus", layer, neuron), gates)
    assert reader["read_tokens"]("s.actstore", "corpus").equals(
        capture.tokens().select(["id", "position", "window"]).to_arrow()
    )


def test_the_example_reader_reads_infinities_of_int8(tmp_path: Path) -> None:
    def infinite(values: Any, layer: int) -> Any:
        values[3, :3], values[4] = [np.inf, -np.inf, np.nan], np.inf
        return values

    capture, _ = planted_stores.planted(where=str(tmp_path / "store"), precision="int8", values=infinite)
    for neuron in (3, 4, 5):
        found = example_reader()["read_neuron"](str(tmp_path / "store"), "corpus", 1, neuron)
        np.testing.assert_array_equal(found, capture.activations(1, neuron))
    assert np.isposinf(capture.activations(1, 4)).all()


def load_generator() -> Any:
    """The module that makes pages of the code when the documentation is built."""
    spec = importlib.util.spec_from_file_location("generated_pages", DOCS / "generated_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_names_every_command_and_every_option() -> None:
    import typer

    from actstore.cli import application

    page = load_generator().command_line()

    def check(command: Any, name: str) -> None:
        section = page.partition(f"# `{name}`\n")[2].partition("\n## ")[0] if name != "actstore" else page
        assert section, name
        for parameter in command.params:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                assert flag in section or not flag.startswith("-"), f"{name}: {flag}"
        for child, inner in getattr(command, "commands", {}).items():
            check(inner, f"{name} {child}")

    check(typer.main.get_command(application()), "actstore")


def test_the_page_of_commands_shows_what_every_command_prints() -> None:
    import typer

    from actstore.cli import application

    generator = load_generator()
    page, commands = generator.command_line(), typer.main.get_command(application()).commands
    groups = {name: list(one.commands) for name, one in commands.items() if hasattr(one, "commands")}
    leaves = [name for name in commands if name not in groups]
    leaves += [f"{name} {child}" for name, children in groups.items() for child in children]
    assert len(leaves) > 50
    drawn = set()
    for name in leaves:
        section = page.partition(f"# `actstore {name}`\n")[2].partition("\n## ")[0].partition("**Usage**")[0]
        shown = re.search(r"^```console\n\$ (actstore .*)\n([^$`].*)$", section, re.MULTILINE)
        assert shown is not None, name
        assert generator.examples.command_of(shown[1], groups) == name
        if "![" in section:
            drawn.add(name)
    assert {"graphs show", "naica show", "selectivity show", "multimodal show", "multimodal map", "serve"} <= drawn


def test_an_example_is_of_the_command_that_ran() -> None:
    command_of = load_generator().examples.command_of
    groups = {"naica": ["show", "evaluate"]}
    assert command_of("actstore naica facts.actstore --by evaluate", groups) == "naica show"
    assert command_of("actstore naica evaluate facts.actstore", groups) == "naica evaluate"
    assert command_of("actstore top naica L3.N17", groups) == "top"


def test_the_page_of_the_interface_names_all_that_is_public() -> None:
    page = load_generator().api()
    for name in actstore.__all__:
        found = getattr(actstore, name)
        members = [found] if not inspect.ismodule(found) else [e for e in vars(found).values() if inspect.isclass(e)]
        for one in members:
            assert f"::: {one.__module__}.{one.__qualname__}\n" in page
    generator = load_generator()
    attributes = [
        name for name, member in vars(actstore.Store).items() if isinstance(member, functools.cached_property)
    ]
    assert sorted(generator.METHODS.values()) == sorted(f"store.{name}" for name in attributes)
    for name in generator.METHODS:
        assert f"::: actstore.{name}\n" in page


def test_the_light_installation_is_what_reading_takes() -> None:
    line = f"pip install {' '.join(READING)}\n"
    assert line in (ROOT / "README.md").read_text(encoding="utf-8")
    assert line in (DOCS / "install.md").read_text(encoding="utf-8")


def test_the_readme_is_an_overview() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= 15_000
    assert text.count(b"](docs/pictures/") == 1


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="`make docs` installs what builds the documentation")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "format.html").is_file()
