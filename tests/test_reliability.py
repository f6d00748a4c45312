"""The page on reliability says what was counted: its table is made from the results, never typed."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"


@pytest.fixture(scope="module", autouse=True)
def checkout() -> Iterator[None]:
    """The scripts are in the checkout, which they put on the path."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT))
    yield
    sys.path[:] = before


@pytest.fixture
def reliability() -> Any:
    return importlib.import_module("benchmarks.reliability")


def between(mark: str) -> str:
    """What the page has between two marks."""
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_page_has_the_recorded_results(reliability: Any) -> None:
    assert between("reliability") == reliability.markdown(reliability.read_results()) + "\n"


def test_the_page_has_the_recorded_costs() -> None:
    against = importlib.import_module("benchmarks.against")
    assert between("against") == against.markdown(against.read_results()) + "\n"


def test_a_campaign_that_was_not_run_is_named(reliability: Any) -> None:
    result = {"n": 300, "seed": 16, "commit": "abc", "outcomes": {"killed": 300}, "failures": {"stuck": {"count": 2}}}
    text = reliability.markdown({"kills": result})
    assert "| kills |" in text
    assert "| killed: 300 | stuck: 2 | 16, `abc` | 300 |" in text
    assert (
        "Not run yet: errors, power cuts, tampering, repairs, mutations, threads, first writers, pairs, fillers, fillers on S3."
        in text
    )


def test_what_is_recorded_was_run_in_full(reliability: Any) -> None:
    for name, result in reliability.read_results().items():
        assert result["n"] >= reliability.CAMPAIGNS[name][0], name


def test_results_are_as_the_script_writes_them(reliability: Any) -> None:
    text = reliability.RESULTS.read_text(encoding="utf-8")
    assert text == json.dumps(reliability.read_results(), indent=1, ensure_ascii=False) + "\n"
