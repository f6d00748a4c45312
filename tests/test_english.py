"""Plain technical English: words that are out, wherever somebody reads them.

Read are the command line's help, every string and comment in the sources (docstrings and messages among them), and the pages of
the documentation outside of code. `OUT` says what to write instead. There is no list of files that are let off; a single place
may be in `EXCEPTIONS`, with its reason.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "api",
    "commands",
    "display",
    "engine",
    "explorer",
    "kernels",
    "store",
    "benchmarks",
    "demo",
    "docs",
    "tests",
)
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "demo/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

COUNT = r"(?:an?|one|two|three|four|five|ten|several|few|\d[\d,.]*|n|k|half an?)"
UNIT = (
    r"(?:bit|block|box|byte|call|case|character|column|count|document|draw|entry|example|exemplar|exponent|factor|file|flag|float|graph|"
    r"integer|key|label|layer|line|list|map|mean|microsecond|minute|name|node|number|object|page|pair|pass|path|picture|position|"
    r"probe|product|prompt|question|record|row|sample|scale|score|second|shard|slot|step|sum|table|task|test|text|thread|"
    r"threshold|token|trie|value|vector|window|word|row group)(?:e?s)?"
)
PER = (
    r"(?:answer|batch|bit|block|byte|call|caption|capture|case|cell|chunk|column|core|corpus|criterion|document|domain|draw|edit|"
    r"element|entry|expert|family|file|folder|forward pass|graph|group|image|item|key|label|layer|line|model|module|neuron|"
    r"node|noun|object|operation|option|page|pair|pass|patch|picture|position|precision|process|processor|program|prompt|query|"
    r"question|record|row|run|sample|seed|shard|site|slot|statistic|step|store|task|test|text|thread|token|trie|value|vector|"
    r"warp|window|word)"
)
OUT = {
    r"\b[m]end(?:s|ed|ing)?\b": "fix, check",
    r"\bso[ ]many\b": "maximum number of, the same number of",
    r"\bspeak(?:s|ing)? (?:for|against)\b": "promotes, suppresses, contributes to",
    r"\bby lot\b": "at random",
    r"\bstrangers?\b": "unexpected files, other …",
    r"\bdeaf(?:en(?:s|ed|ing)?)?\b": "pause",
    r"\btap(?:s|ped)?\b": "hook point",
    r"\bseal(?:s|ed|ing)?\b": "checksum",
    r"\bnot what (?:was|were) written there\b": "checksum mismatch",
    r"\bcut into tokens\b|\bcutters?\b": "tokenised, StoredTokenizer",
    r"\btally\b|\btallies\b": "statistics, counts",
    rf"\b{COUNT} {UNIT} an? {PER}\b": "per: one row per neuron",
    rf"\b(?:bits?|bytes?) an? {PER}\b": "per: bits per value",
    r"\btokens? an? (?:forward )?pass\b": "tokens per forward pass",
    rf"(?:\b(?:exactly|most|least|and)|,) one an? {PER}\b|\bexemplars an? {PER}\b": "one per …",
}
"""What must not be read anywhere → what to write instead."""
MAX_KNOWS_NOTHING = 20
"""Of sentences that say what a module knows nothing about: those that surprise. `tests/test_layers.py` has the rule."""

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("store/files/checksums.py", "seal"): "the key in the files of stores, which stays as it is",
    ("store/capture/plan.py", ", one a label"): "metadata of a table in stores, which stays as it is",
}
"""(file, words found) → why they stand there."""
OURSELVES = "tests/test_english.py"


def matches(text: str) -> Iterator[tuple[str, str]]:
    """Words that are out, each once and in their order, with what to write instead."""
    every = [
        (match.start(), -match.end(), match[0], better)
        for pattern, better in OUT.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    end = 0
    for start, stop, words, better in sorted(every):
        if start >= end:
            yield words, better
            end = -stop


def findings(texts: Iterator[tuple[int, str]], name: str) -> list[str]:
    """`file:line: words → instead` for everything that is out in some texts of a file."""
    return [
        f"{name}:{line}: {words!r} → {better}"
        for line, text in texts
        for words, better in matches(" ".join(text.split()))
        if (name, words) not in EXCEPTIONS and name != OURSELVES
    ]


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every string and every run of comments of a module, with its line."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, words = token.start[0], token.string.lstrip("#: ")
            if comments and comments[-1][0] + comments[-1][1].count("\n") + 1 == line:
                comments[-1] = (comments[-1][0], f"{comments[-1][1]}\n{words}")
            else:
                comments.append((line, words))
    yield from comments


def prose_of(page: Path) -> Iterator[tuple[int, str]]:
    """The paragraphs of a page without code, with their lines."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(
        r"^( *)```.*?^\1```$", lambda match: "\n" * match[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL
    )
    text = re.sub(r"`[^`\n]*`", "`…`", text)
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        yield line + len(paragraph) - len(paragraph.lstrip("\n")), paragraph
        line += paragraph.count("\n")


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_strings_and_comments_are_plain_english(folder: str) -> None:
    found = [line for path in modules(folder) for line in findings(texts_of(path), path.relative_to(ROOT).as_posix())]
    assert found == [], "\n".join(found)


def test_the_modules_of_the_checkout_are_plain_english() -> None:
    found = [line for path in sorted(ROOT.glob("*.py")) for line in findings(texts_of(path), path.name)]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_are_plain_english(page: Path) -> None:
    found = findings(prose_of(page), page.relative_to(ROOT).as_posix())
    assert found == [], "\n".join(found)


def test_help_is_plain_english() -> None:
    import typer

    from actstore.cli import application

    def texts(command: Any, name: str) -> Iterator[tuple[str, str]]:
        yield name, command.help or ""
        for parameter in command.params:
            yield f"{name} {parameter.opts[0]}", getattr(parameter, "help", None) or ""
        for child, inner in getattr(command, "commands", {}).items():
            yield from texts(inner, f"{name} {child}")

    every = dict(texts(typer.main.get_command(application()), "actstore"))
    assert len(every) > 200
    found = [line for name, text in every.items() for line in findings(iter([(0, text)]), name)]
    assert found == [], "\n".join(found)


def test_modules_do_not_list_what_they_know_nothing_about() -> None:
    saying = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in FOLDERS
        for path in modules(folder)
        for line, text in texts_of(path)
        if "nothing about" in " ".join(text.split()).lower() and path.name != Path(OURSELVES).name
    ]
    assert len(saying) <= MAX_KNOWS_NOTHING, "\n".join(saying)


def test_every_exception_is_still_there_and_has_a_reason() -> None:
    for (name, words), reason in EXCEPTIONS.items():
        assert words in (ROOT / name).read_text(encoding="utf-8"), name
        assert len(reason.split()) > 3, name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("M" + "end --layers.", ["M" + "end"]),
        ("Read at most so " + "many documents", ["so " + "many"]),
        ("neurons that speak " + "for a noun", ["speak " + "for"]),
        ("a table, a row a neuron", ["a row a neuron"]),
        ("at one byte a value", ["one byte a value"]),
        ("0.87 bits a byte, two sums a neuron", ["0.87 bits a byte", "two sums a neuron"]),
        ("how many tokens a forward pass takes", ["tokens a forward pass"]),
        ("one row per\nneuron; the tokens a neuron writes; gives a token a name; a commend amendment", []),
    ],
)
def test_words_that_are_out_are_found_and_others_are_not(text: str, words: list[str]) -> None:
    assert [line.split("'")[1] for line in findings(iter([(1, text)]), "page.md")] == words


def test_texts_of_a_module_are_its_strings_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""One\nrow."""\n\n# a row\n# a neuron\nx = f"so {1} many"  # so\n')
    assert [text for _, text in texts_of(path)] == ["One\nrow.", "so ", " many", "a row\na neuron", "so"] or [
        text for _, text in texts_of(path)
    ] == ["One\nrow.", "so ", " many", "a row\na neuron\nso"]
    page = tmp_path / "page.md"
    page.write_text("One `row a neuron`\n\n```sh\nrow a neuron\n```\n\nlast\nline\n")
    assert [(line, text.strip()) for line, text in prose_of(page) if text.strip()] == [
        (1, "One `…`"),
        (7, "last\nline"),
    ]
