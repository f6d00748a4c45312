"""Selective neurons of the embedded models, and their mask matrix: label × label, relative change in perplexity.

python benchmarks/tables/selectivity.py [--all | --only WORD] [--tokens 16000] [--draws 3] [--methods lape,lap] [--write]

Neurons are found on one half of the texts, perplexity is measured on the other, and then the other way round. Beside LAPE stand
LAP, a baseline of its paper, and random neurons. Four experiments, of which the first runs by default, and three more with
--all, on models that were trained on one language only:

- language: eight natural languages, the same messages in each; the model was trained on other such messages in all of them.
  1 % of its neurons is little for eight labels, so 2 % and 5 % are reported as well.
- format: Python, English, C and charmap tables, from the running Python's own files; the model was trained on its library.
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

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "demo" / "training")]

from fact_questions import fill, read_relations  # noqa: E402 - the demo must be importable first
from language_texts import read_held_out  # noqa: E402

from actstore.display import terminal  # noqa: E402 - and the checkout
from actstore.engine.capture.api import capture  # noqa: E402
from actstore.engine.inputs.corpus import read_corpus  # noqa: E402
from actstore.engine.models.load import load_model  # noqa: E402
from actstore.engine.models.tokenizer.load import TextTokenizer  # noqa: E402
from actstore.engine.selectivity.mask_matrix import (  # noqa: E402
    MaskMatrix,
    MaskSettings,
    by_layer,
    corpus_options,
    measure_masks,
    windows_of_corpus,
)
from actstore.engine.selectivity.methods import METHODS as SELECTIVITY_METHODS  # noqa: E402
from actstore.engine.selectivity.selectivity import SelectivitySettings, find_selectivity  # noqa: E402
from benchmarks.marked import rewrite, spread, table  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actstore.engine.selectivity.selectivity import Selectivity

DEMO: Final = ROOT / "demo"
MAX_CHARACTERS: Final = 8_000
"""Maximum number of characters per file, so that every label has many files."""
CHARACTERS_PER_LABEL: Final = 150_000


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    n_tokens: int
    """Number of tokens to predict in every measurement, divided equally among the labels."""
    draws: int
    """Number of draws of the random baseline."""
    methods: tuple[str, ...]
    """Keys of `methods.METHODS`; lape first."""


def without_words(source: str) -> str:
    """Python source without docstrings and comment lines."""
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            dropped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(keepends=True), 1)
    return "".join(line for n, line in lines if n not in dropped and not line.lstrip().startswith("#"))


def docstrings(source: str) -> str:
    """The docstrings of a module, its classes and functions: English, as far as Python's authors write it."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return "\n\n".join(text for text in texts if len(text) >= 200 and ">>>" not in text)


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
FORMATS = {"python": CODE, "english": PROSE, "c": Files("include", r".*\.h", without_comments), "tables": TABLES}
KINDS = {"code": CODE, "prose": PROSE, "tables": TABLES, "tests": Files("stdlib", r"test/test_.*\.py", without_words)}


def texts_of_files(labels: dict[str, Files], *, second_half: bool) -> Iterator[tuple[str, str]]:
    """(label, text), from one half of the files, in an order by hash, so that it does not follow the names."""
    for label, files in labels.items():
        root, n_characters = Path(sysconfig.get_path(files.folder)), 0
        names = [path.relative_to(root).as_posix() for path in root.rglob("*.*")]
        for digest, name in sorted((hashlib.sha256(name.encode()).digest(), name) for name in names):
            if (
                digest[4] % 2 != second_half
                or not re.fullmatch(files.names, name)
                or n_characters >= CHARACTERS_PER_LABEL
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
    texts = [
        (relation.domain, f"Question: {fill(phrasing, subject)}\nResponse: {answer}")
        for relation in read_relations(DEMO / "data" / "facts")
        for subject, answer in relation.facts
        for phrasing in (relation.held_out if second_half else relation.questions)
    ]
    yield from sorted(texts, key=lambda pair: hashlib.sha256(pair[1].encode()).digest())


def texts_of_languages(*, second_half: bool) -> Iterator[tuple[str, str]]:
    """(language, document), from one of the halves of messages that the language model was not trained on."""
    texts = read_held_out(DEMO / "models" / "language-llama" / "texts.jsonl.xz", "measure" if second_half else "search")
    yield from ((label, text) for label, documents in texts.items() for text in documents)


@dataclass(frozen=True)
class Experiment:
    """A model, and labelled texts for it."""

    name: str
    model: Path
    texts: Callable[..., Iterator[tuple[str, str]]]
    shares: tuple[float, ...] = (0.01,)
    """Of all neurons, to be selected; the default of the method first."""


EXPERIMENTS: Final = (
    Experiment("language", DEMO / "models" / "language-llama", texts_of_languages, (0.01, 0.02, 0.05)),
    Experiment("format", DEMO / "models" / "stdlib-llama", partial(texts_of_files, FORMATS)),
    Experiment("kind", DEMO / "models" / "stdlib-llama", partial(texts_of_files, KINDS)),
    Experiment("domain", DEMO / "models" / "fact-llama", texts_of_facts),
)


@dataclass(frozen=True)
class Result:
    """The matrix of one selection of neurons."""

    swapped: bool
    """Whether neurons were found on the second half."""
    share: float
    method: str
    selectivity: Selectivity
    matrix: MaskMatrix

    @property
    def n_rows(self) -> int:
        """Rows whose largest change is on the diagonal."""
        change = self.matrix.change
        return int(((change.argmax(axis=1) == np.arange(len(change))) & (self.matrix.n_neurons > 0)).sum())

    @property
    def n_columns(self) -> int:
        """Columns whose largest change is on the diagonal."""
        change = self.matrix.change
        return int((change.argmax(axis=0) == np.arange(len(change))).sum())

    @property
    def off_diagonal(self) -> np.ndarray:
        """The changes on the text of other labels."""
        return self.matrix.change[~np.eye(len(self.matrix.labels), dtype=bool)]


def run(experiment: Experiment, folder: Path, effort: Effort) -> list[Result]:
    """Capture each half; for every share and method find the neurons of the one, and measure on the other."""
    by, name = experiment.name, str(experiment.model)
    for half in ("first", "second"):
        with (folder / f"{half}.jsonl").open("w", encoding="utf-8") as file:
            for label, text in experiment.texts(second_half=half == "second"):
                file.write(json.dumps({"text": text, by: label}) + "\n")
    model, results = None, []
    for swapped in (False, True):
        found, measured = ("second", "first") if swapped else ("first", "second")
        captured = capture(
            name, folder / f"{found}.jsonl", folder / "store", name=found, precision="none", gate_sign=True, exemplars=0,
            label_columns=(by,),
        )  # fmt: skip
        model = model or load_model(name, dtype=captured.record.dtype)
        for share in experiment.shares:
            for method in effort.methods:
                selectivity = find_selectivity(captured, SelectivitySettings(by, share=share, method=method))
                labels = selectivity.firing.labels
                n_random = effort.draws if method == "lape" else 0
                settings = MaskSettings(max_tokens=effort.n_tokens // len(labels), n_random=n_random)
                texts = read_corpus(folder / f"{measured}.jsonl", corpus_options(captured, by))
                windows = windows_of_corpus(texts, captured, by, labels, settings.max_tokens, TextTokenizer.load(name))
                neurons = {k: by_layer(selectivity.firing.locate(flat)) for k, flat in selectivity.neurons.items()}
                matrix = measure_masks(model, captured, neurons, windows, settings)
                results.append(Result(swapped, share, method, selectivity, matrix))
    return results


def markdown(experiment: Experiment, results: list[Result], effort: Effort) -> str:
    """What is claimed, a row per selection, and the matrix of the default share."""
    first = results[0]
    counts, matrix = first.selectivity.firing.n_tokens, first.matrix
    note = (
        f"`{experiment.model.name}`: neurons from {counts.min():,} to {counts.max():,} tokens per label of one half, "
        f"perplexity on "
        f"{matrix.n_tokens.min():,} to {matrix.n_tokens.max():,} tokens of the other. Changes are means over labels ± standard "
        f"deviation; random: the same number of neurons from the same layers, {effort.draws} draws."
    )
    return "\n".join(
        [claims(experiment, results), "", summary(results), "", note, "", matrix_table(experiment, first), ""]
    )


def claims(experiment: Experiment, results: list[Result]) -> str:
    """One sentence per share: how often the diagonal is the largest of its row, in both directions, beside the baselines."""
    lines = []
    for share in experiment.shares:
        both = {
            m: [r for r in results if r.share == share and r.method == m] for m in {r.method: None for r in results}
        }
        n = len(both["lape"][0].matrix.labels)
        counts = {method: " and ".join(str(r.n_rows) for r in rows) for method, rows in both.items()}
        diagonal, random = (
            spread([100 * x for r in both["lape"] for x in np.diag(of(r)).tolist()], "{:+.1f}")
            for of in (lambda r: r.matrix.change, lambda r: r.matrix.random_change)
        )
        beside = f" (LAP: {counts['lap']})" if "lap" in counts else ""
        lines.append(
            f"- {share:.0%} of all neurons: perplexity rises most on a label's own text in {counts['lape']} of {n} "
            f"rows{beside}, "
            f"with the halves as they are and swapped; by {diagonal} % there, random neurons {random} %."
        )
    return "\n".join(lines)


def summary(results: list[Result]) -> str:
    """A row per half, share and method."""
    rows = []
    for result in results:
        matrix = result.matrix
        n, diagonal = len(matrix.labels), np.diag(matrix.change)
        random = np.diag(matrix.random_change) if len(matrix.random) else None
        rows.append(
            [
                "second" if result.swapped else "first",
                f"{result.share:.0%}",
                SELECTIVITY_METHODS[result.method].label,
                str(len(result.selectivity.selection.neurons)),
                f"{result.n_rows} of {n}",
                f"{result.n_columns} of {n}",
                "–" if random is None else f"{int((diagonal > random).sum())} of {n}",
                *(
                    "–" if values is None else spread((100 * values).tolist(), "{:+.1f}")
                    for values in (diagonal, result.off_diagonal, random)
                ),
            ]
        )
    header = [
        "found on half", "share", "method", "neurons", "rows largest on the diagonal", "columns", "diagonal above random",
        "change on the diagonal, %", "off it", "random neurons on it",
    ]  # fmt: skip
    return table(header, rows, left=3)


def matrix_table(experiment: Experiment, result: Result) -> str:
    """The matrix of one selection."""
    matrix = result.matrix
    lines = [
        f"| {experiment.name}: off | neurons | {' | '.join(matrix.labels)} |",
        f"|---|---:|{'---:|' * len(matrix.labels)}",
        f"| none: perplexity | | {' | '.join(f'{x:.2f}' for x in np.exp(matrix.clean))} |",
    ]
    largest = matrix.change.argmax(axis=1)
    for i, (label, n_neurons) in enumerate(zip(matrix.labels, matrix.n_neurons, strict=True)):
        cells = list(map(_percent, matrix.change[i]))
        if n_neurons:
            cells[largest[i]] = f"**{cells[largest[i]]}**"
        lines.append(f"| {label}, {result.share:.0%} of all | {n_neurons} | {' | '.join(cells)} |")
    random = map(_percent, matrix.random_change.max(axis=0))
    lines.append(f"| as many random: the largest | | {' | '.join(random)} |")
    return "\n".join(lines)


def _percent(change: float) -> str:
    return f"{100 * change:+.1f} %"


def main() -> None:
    """Run, print, and with --write put the tables where the documentation marks them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--all", action="store_true", help="all experiments instead of the first only")
    choice.add_argument("--only", help="only experiments whose name contains this")
    parser.add_argument("--tokens", type=int, default=16_000, help="number of tokens to predict, over all labels")
    parser.add_argument("--draws", type=int, default=3, help="number of draws of the random baseline")
    parser.add_argument("--methods", default="lape,lap", help="how neurons are selected; lape first")
    parser.add_argument("--write", action="store_true", help="put the tables between the marks in the documentation")
    arguments = parser.parse_args()
    effort = Effort(arguments.tokens, arguments.draws, tuple(arguments.methods.split(",")))
    sections = []
    experiments = EXPERIMENTS if arguments.all or arguments.only is not None else EXPERIMENTS[:1]
    for experiment in experiments:
        if arguments.only is not None and arguments.only not in experiment.name:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            sections.append(markdown(experiment, run(experiment, Path(folder), effort), effort))
        terminal.out.print(sections[-1], markup=False, soft_wrap=True)
        terminal.err.print(f"{experiment.name}: {time.monotonic() - began:.0f} s")
    if arguments.write and arguments.only is None:
        text = "\n".join([*sections, f"Made with Python {platform.python_version()}.", ""])
        rewrite("selectivity", text)


if __name__ == "__main__":
    main()
