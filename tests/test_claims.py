"""What README.md and the pages of methods state as a result: every figure in their sentences is in a table that a script wrote.

A figure is a number in a sentence: not in code, a formula, a link or a heading. Those that are no result (years, defaults,
parts of a formula or of a name) are named in `NOT_RESULTS` by the words around them, so that a new figure needs either a table
or an entry here. Tables that state results of a method say how many cases and seeds they are of, and how far these spread.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METHODS = ROOT / "docs" / "methods"
PAGES = [ROOT / "README.md", *sorted(METHODS.glob("*.md"))]

GENERATED = re.compile(r"^<!-- ([\w-]+) -->\n(.*?)^<!-- /\1 -->$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
NOT_PROSE = re.compile(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)|https?://\S+|arXiv \d+\.\d+", re.DOTALL)
FIGURE = re.compile(r"(?<![\w.^·])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
YEAR = re.compile(r"(?:19|20)\d\d")
MEASURED = ("multimodal", "knowledge-prompts", "naica", "probe", "protein", "selectivity")
"""Marks of tables of results whose text must name cases, seeds and spread."""

NOT_RESULTS: dict[str, tuple[str, ...]] = {
    "README.md": (
        "Python 3.11 or newer", "(650 MB instead of several GB)",
        "above 5·10¹² operations", "Apache-2.0. The", "(Apache-2.0)",
    ),
    "change.md": ("(5 %) that changed most", "1 means that the neurons carry", "skips layer 31"),
    "coactivation.md": (
        "0 unless given", "at most are 0: correlations", "count as ±65,504", "n² / 2 products", "8 million pairs, 0.45 GB",
    ),
    "contributions.md": ("(Gemma 2), the score", "(Gemma 2 and 3, OLMo 2, GLM-4)"),
    "coverage.md": (
        "(t = 0.25, 0.5, 0.75)", "(k = 1,000)", "(k = 10) | neurons ever", "(k = 10) | distinct patterns",
    ),
    "edit.md": (
        "sets activations to 0", "= 8 ‖row‖/‖t′‖", "with margin 2", "the 5 neurons that contribute", "the last 3 layers left",
        "10 · max −log(1 − p(target", "0.1 · ‖δ‖, Adam at 1e-3, at most 50 steps, until p > 0.9",
        "each with 500 pictures of its own",
    ),
    "graphs.md": (
        "nats (0.25). Where a path ends", "Tokens between may be ignored, up to 3 in a row",
        "more than 5 nats of leave-one-out", "Contexts look back at most (12) tokens",
        "is at least (0.3)", "half of the neuron's 20 top windows, and 40 ordinary", "without a graph counts as 0",
        "takes 60 to 130 model calls",
    ),
    "knowledge.md": (
        "of at least (0.2) of its", "at least (0.7) of its", "fewer than (2) neurons the share is lowered by 0.05",
        "with more than (5) it is", "with m = 20 steps", "the default here is 16", "a share of 0.7 asks for both",
        "of three, 0.7 is all",
    ),
    "multimodal.md": (
        "The k (20) largest", "specificity | 1 − share", "N(0, I) is added", "It is around 0 for random neurons",
        "BLIP-2, Idefics3", "Gemma 3, InternVL",
    ),
    "naica.md": (
        "into templates (3) with shuffled", "an ica of 0 or less", "fewer than 1 / u", "suppressed (× 0) or boosted (× 2)",
        "log(P / (1 − P))", "k / m for k = 1 … m", "runs from 0 to 1 with both ends",
    ),
    "selectivity.md": (
        "above the 95 % quantile", "are selected, 1 % of *all*", "fewer than 1,000 tokens", "on more than 95 % of its tokens",
        "max(mean activation, 0)", "Switching off is = 0 at", "which = 0 amounts to",
    ),
}  # fmt: skip
"""Page → the words around figures that are no result: of methods, models, formats. They must be there."""


def prose(page: Path) -> str:
    """A page's sentences, one blank between words."""
    text = FENCE.sub(" ", GENERATED.sub(" ", page.read_text(encoding="utf-8")))
    lines = [line for line in NOT_PROSE.sub(" ", text).splitlines() if not line.startswith("#")]
    return " ".join(" ".join(lines).split())


def generated(page: Path) -> str:
    """What scripts wrote into a page."""
    return "\n".join(match[2] for match in GENERATED.finditer(page.read_text(encoding="utf-8")))


TABLES = "\n".join(map(generated, [*PAGES, ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "reliability.md"]))


def figures(text: str) -> list[str]:
    """The figures of a text, years aside."""
    return [figure for figure in FIGURE.findall(text) if not YEAR.fullmatch(figure)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_of_a_sentence_is_in_a_table_or_no_result(page: Path) -> None:
    text = prose(page)
    for phrase in NOT_RESULTS.get(page.name, ()):
        assert phrase in text, f"{page.name} no longer says {phrase!r}: take it out of NOT_RESULTS"
        text = text.replace(phrase, " ")
    known = set(figures(TABLES))
    unknown = [
        f"{figure} (… {text[max(0, match.start() - 50) : match.end() + 30]} …)"
        for match in FIGURE.finditer(text)
        if not YEAR.fullmatch(figure := match[0]) and figure not in known
    ]
    assert not unknown, f"{page.name} states {unknown}: write it by a script between marks, or name it in NOT_RESULTS"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in NOT_RESULTS], ids=lambda page: page.name)
def test_what_is_no_result_holds_a_figure(page: Path) -> None:
    assert all(figures(phrase) for phrase in NOT_RESULTS[page.name])


@pytest.mark.parametrize("mark", MEASURED)
def test_tables_of_results_name_cases_seeds_and_spread(mark: str) -> None:
    (block,) = [m[2] for page in PAGES for m in GENERATED.finditer(page.read_text(encoding="utf-8")) if m[1] == mark]
    if block.startswith("Not measured"):
        return
    assert "±" in block, "no spread"
    assert re.search(r"\b\d+ (?:seeds|draws|splits)\b", block), "no number of seeds"
    assert re.search(r"\d[\d,]* (?:queries|pictures|tokens|documents|texts)\b", block), "no number of cases"
    assert re.search(r"left out|held out|held-out|of the other|other half|captions that it gives", block), "no protocol"


def test_figures_are_told_from_names() -> None:
    assert figures("of 2,560 neurons 0.45 are L3.N17 in GPT-2, arXiv v1, 5·10¹², 12 % since 2024") == [
        "2,560", "0.45", "2", "5", "12",
    ]  # fmt: skip
