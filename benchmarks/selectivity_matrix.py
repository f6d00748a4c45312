"""Selective neurons of the embedded models, and their mask matrix: label × label, relative change in perplexity.

python benchmarks/selectivity_matrix.py [--only WORD] [--readme]

Three experiments, each with labels that its model had reason to tell apart; all are reported. Neurons are found on one half
of the texts, perplexity is measured on the other.

- language: Python, English, C and charmap tables, from the running Python's own files; the model was trained on its library.
- kind: code, prose, tables and tests, all of them from that library.
- domain: the fact model's nine domains, found on its training phrasings, measured on held-out ones.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import re
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "demo")]

from fact_questions import fill, read_relations  # noqa: E402 - the demo must be importable first

from actstore import terminal  # noqa: E402 - and the checkout
from actstore.engine.attribution.mask_matrix import (  # noqa: E402
    MaskMatrix,
    MaskSettings,
    by_layer,
    corpus_options,
    measure_masks,
    windows_of_corpus,
)
from actstore.engine.attribution.selectivity import SelectivitySettings, find_selectivity  # noqa: E402
from actstore.engine.capture_run import capture  # noqa: E402
from actstore.engine.corpus import read_corpus  # noqa: E402
from actstore.engine.models import load_model  # noqa: E402
from actstore.engine.tokens import TextTokenizer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.engine.attribution.selectivity import Selectivity

DEMO: Final = HERE.parent / "demo"
MAX_CHARACTERS: Final = 8_000
"""Taken of each file, so that many files speak for a label."""
CHARACTERS_A_LABEL: Final = 150_000
N_TOKENS: Final = 16_000
"""To predict in every pass, shared out among the labels."""
DRAWS: Final = 2


def without_words(source: str) -> str:
    """Python source without docstrings and comment lines: what is left is code."""
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(keepends=True), 1)
    return "".join(line for n, line in lines if n not in dropped and not line.lstrip().startswith("#"))


def docstrings(source: str) -> str:
    """The docstrings of a module, its classes and functions: English, as far as Python's authors write it."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if len(text) >= 200 and ">>>" not in text)


def without_comments(source: str) -> str:
    """C source without its comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", source, flags=re.DOTALL)


@dataclass(frozen=True)
class Files:
    """Where the texts of a label come from, and which part of each."""

    folder: str
    """A path that `sysconfig` knows."""
    names: str
    """A regular expression for paths in it."""
    part: Callable[[str], str] = str


_LIBRARY = r"(?!test/|encodings/|pydoc_data/|site-packages/)(?!.*/tests?/).*\.py"
CODE, PROSE = Files("stdlib", _LIBRARY, without_words), Files("stdlib", _LIBRARY, docstrings)
TABLES = Files("stdlib", r"encodings/(cp|iso|mac|koi|tis|ptcp|hp|palmos|kz).*\.py")
LANGUAGES = {"python": CODE, "english": PROSE, "c": Files("include", r".*\.h", without_comments), "tables": TABLES}
KINDS = {"code": CODE, "prose": PROSE, "tables": TABLES, "tests": Files("stdlib", r"test/test_.*\.py", without_words)}


def texts_of_files(labels: dict[str, Files], *, second_half: bool) -> Iterator[tuple[str, str]]:
    """(label, text), from one half of the files, in an order that has nothing to do with their names."""
    for label, files in labels.items():
        root, n_characters = Path(sysconfig.get_path(files.folder)), 0
        names = [path.relative_to(root).as_posix() for path in root.rglob("*.*")]
        for digest, name in sorted((hashlib.sha256(name.encode()).digest(), name) for name in names):
            if (
                digest[4] % 2 != second_half
                or not re.fullmatch(files.names, name)
                or n_characters >= CHARACTERS_A_LABEL
            ):
                continue
            try:
                text = files.part((root / name).read_text(encoding="utf-8"))[:MAX_CHARACTERS]
            except (UnicodeDecodeError, SyntaxError, ValueError):  # files that are broken on purpose
                continue
            if len(text) >= 500:
                yield label, text
                n_characters += len(text)


def texts_of_facts(*, second_half: bool) -> Iterator[tuple[str, str]]:
    """(domain, question and answer), in the phrasings that the fact model was trained on, or in those held out."""
    found = [
        (relation.domain, f"Question: {fill(phrasing, subject)}\nResponse: {answer}")
        for relation in read_relations(DEMO / "facts")
        for subject, answer in relation.facts
        for phrasing in (relation.held_out if second_half else relation.questions)
    ]
    yield from sorted(found, key=lambda pair: hashlib.sha256(pair[1].encode()).digest())


@dataclass(frozen=True)
class Experiment:
    """A model, and labelled texts for it."""

    name: str
    model: Path
    texts: Callable[..., Iterator[tuple[str, str]]]


EXPERIMENTS: Final = (
    Experiment("language", DEMO / "stdlib-llama", partial(texts_of_files, LANGUAGES)),
    Experiment("kind", DEMO / "stdlib-llama", partial(texts_of_files, KINDS)),
    Experiment("domain", DEMO / "fact-llama", texts_of_facts),
)


def run(experiment: Experiment, folder: Path) -> tuple[Selectivity, MaskMatrix]:
    """Capture one half, find the neurons, measure on the other half."""
    by, model = experiment.name, str(experiment.model)
    for half in ("first", "second"):
        with (folder / f"{half}.jsonl").open("w", encoding="utf-8") as file:
            for label, text in experiment.texts(second_half=half == "second"):
                file.write(json.dumps({"text": text, by: label}) + "\n")
    held = capture(
        model,
        folder / "first.jsonl",
        folder / "store",
        precision="none",
        gate_sign=True,
        exemplars=0,
        label_columns=(by,),
    )
    found = find_selectivity(held, SelectivitySettings(by))
    texts = read_corpus(folder / "second.jsonl", corpus_options(held, by))
    settings = MaskSettings(max_tokens=N_TOKENS // len(found.neurons), n_random=DRAWS)
    windows = windows_of_corpus(texts, held, by, found.firing.labels, settings.max_tokens, TextTokenizer.load(model))
    neurons = {label: by_layer(found.firing.locate(flat)) for label, flat in found.neurons.items()}
    return found, measure_masks(load_model(model, dtype=held.record.dtype), held, neurons, windows, settings)


def markdown(experiment: Experiment, found: Selectivity, matrix: MaskMatrix) -> str:
    """The README's table and the sentence below it."""
    change, labels, n = matrix.change, matrix.labels, len(matrix.labels)
    lines = [
        f"| {experiment.name}: off | neurons | {' | '.join(labels)} |",
        f"|---|---:|{'---:|' * n}",
        f"| none: perplexity | | {' | '.join(f'{x:.2f}' for x in np.exp(matrix.clean))} |",
    ]
    for label, n_neurons, row in zip(labels, matrix.n_neurons, change, strict=True):
        cells = [f"**{_percent(x)}**" if n_neurons and x == row.max() else _percent(x) for x in row]
        lines.append(f"| {label} | {n_neurons} | {' | '.join(cells)} |")
    for label, n_neurons, row in zip(labels, matrix.n_neurons, matrix.random_change, strict=True):
        lines.append(f"| random, like {label} | {n_neurons} | {' | '.join(map(_percent, row))} |")
    by_row = int((change.argmax(axis=1) == np.arange(n)).sum())
    by_column = int((change.argmax(axis=0) == np.arange(n)).sum())
    counts = found.firing.n_tokens
    note = (
        f"`{experiment.model.name}`: the largest of its row is on the diagonal in {by_row} of {n} rows, the largest of its "
        f"column in {by_column} of {n} columns; over the random row of its label, the diagonal is larger in "
        f"{int((np.diag(change) > np.diag(matrix.random_change)).sum())} of {n}. {len(found.selection.neurons)} of "
        f"{len(found.selection.entropies):,} neurons are selected, from {counts.min():,} to {counts.max():,} tokens a label; "
        f"perplexity on {matrix.n_tokens.min():,} to {matrix.n_tokens.max():,} tokens of the other half."
    )
    return "\n".join([*lines, "", note, ""])


def _percent(change: float) -> str:
    return f"{100 * change:+.1f} %"


def main() -> None:
    """Run, print, and with --readme write the tables into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="only experiments whose name contains this")
    parser.add_argument("--readme", action="store_true", help="write the tables between the README's marks")
    arguments = parser.parse_args()
    sections = []
    for experiment in EXPERIMENTS:
        if arguments.only is not None and arguments.only not in experiment.name:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            sections.append(markdown(experiment, *run(experiment, Path(folder))))
        terminal.out.print(sections[-1], markup=False, soft_wrap=True)
        terminal.err.print(f"{experiment.name}: {time.monotonic() - began:.0f} s")
    if arguments.readme and arguments.only is None:
        means = f"Random rows are means of {DRAWS} draws of as many neurons from the same layers."
        text = "\n".join([*sections, f"{means} Made with Python {platform.python_version()}.", ""])
        readme = HERE.parent / "README.md"
        marked = re.compile(r"(<!-- selectivity -->\n).*?(<!-- /selectivity -->)", re.DOTALL)
        readme.write_text(marked.sub(lambda m: m[1] + text + m[2], readme.read_text()))


if __name__ == "__main__":
    main()
