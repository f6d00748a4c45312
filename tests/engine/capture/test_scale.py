"""What a capture would take by its configuration: against arithmetic by hand, the page on scale, and a capture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import LlamaConfig

import actstore
from actstore.commands.sizes import parse_count
from actstore.engine.capture import corpus_run
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[3] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def llama_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of Llama 2 7B alone."""
    path = tmp_path_factory.mktemp("7B")
    config = LlamaConfig(intermediate_size=11_008, max_position_embeddings=4096, dtype="float16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    return path


def test_a_7b_model_by_hand_and_as_the_page_on_scale_has_it(llama_7b: Path) -> None:
    (row,) = actstore.sizes(llama_7b, 10**9, precision="int8").to_pylist()
    neurons = 32 * 11_008
    # Blocks take three times the weights of the MLPs, of two bytes: two sets of values and gate signs, and half a set more.
    slots = round(3 * 3 * 4096 * neurons * 2 / (2.5 * neurons * (2 + 1 / 8)) / 1024) * 1024
    n_blocks = math.ceil(10**9 / slots)
    assert (row["block_slots"], row["n_blocks"]) == (slots, n_blocks)
    assert row["statistics_nbytes"] == 250 * neurons * n_blocks
    of_values = (0.62 + 1 / 8) * neurons * slots * n_blocks
    assert row["nbytes"] == pytest.approx(of_values + row["statistics_nbytes"] + 20 * 80 * neurons, rel=1e-6)
    per_block = 32 + 32 + 32 + 2  # values, scales, gate signs; statistics and the commit record
    assert n_blocks * per_block < row["n_files"] < n_blocks * per_block * 1.01
    assert row["bundled"]
    assert row["read_requests"] == 3 * n_blocks
    line = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| 10⁹ | int8 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == [
        f"{row['block_slots']:,}", f"{row['n_blocks']:,}", f"{row['nbytes'] / 1e12:,.2f}",
        f"{row['statistics_nbytes'] / 1e12:,.2f}", f"{row['n_files']:,}", f"{row['n_objects']:,}",
        f"{row['write_requests']:,}", f"{row['read_requests']:,}",
    ]  # fmt: skip


def test_what_a_capture_then_has(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_run, "BLOCK_SLOTS", 256)
    monkeypatch.setattr("actstore.engine.capture.scale.BLOCK_SLOTS", 256)
    capture = actstore.capture(str(tiny_model), corpus, tmp_path / "store", precision="int8")
    folder = tmp_path / "store" / "captures" / "corpus"
    plan = capture.record.plan
    (row,) = actstore.sizes(str(tiny_model), plan.n_blocks * plan.block_slots, precision="int8").to_pylist()
    assert (row["block_slots"], row["n_blocks"], row["bundled"]) == (plan.block_slots, plan.n_blocks, False)
    files = [path for path in folder.rglob("*") if path.is_file()]
    of_blocks = [path for path in files if "statistics" not in path.relative_to(folder).parts]
    assert abs(len(of_blocks) - row["n_files"]) < 20


def test_layers_sites_and_one_precision_or_several(tiny_model: Path) -> None:
    def nbytes(**settings: Any) -> list[int]:
        return actstore.sizes(str(tiny_model), 10**6, **settings)["nbytes"].to_pylist()

    every = actstore.sizes(str(tiny_model), 10**6)
    assert every["precision"].to_pylist() == ["exact", "half", "int8", "sparse", "none"]
    assert every["read_requests"].to_pylist()[-1] == 0
    (one,), (both,) = nbytes(precision="half", layers=[0]), nbytes(precision="half")
    assert one < both
    assert nbytes(precision="half", sites=["mlp.post", "resid.post"])[0] > both
    assert nbytes(precision="sparse", keep=0.01) < nbytes(precision="sparse", keep=0.5)


def test_the_command(tiny_model: Path, cli: Callable[..., Any]) -> None:
    found = cli("sizes", tiny_model, "--tokens", "1e6", "--precision", "half", "--layers", "0", "--json").json
    assert found["precisions"] == actstore.sizes(str(tiny_model), 10**6, precision="half", layers=0).to_pylist()
    shown = cli("sizes", tiny_model, "--tokens", "1,000,000").out
    assert [line.split()[0] for line in shown.splitlines()[1:6]] == ["exact", "half", "int8", "sparse", "none"]
    for said, expected in (
        ("many", "whole number such as 250000 or 1e9, found 'many'"),
        ("0", "lies between 1 and 10^15"),
    ):
        refused = cli("sizes", tiny_model, "--tokens", said)
        assert refused.status == 2
        assert expected in refused.err
    assert "has layers 0 to 1, found layer 7" in cli("sizes", tiny_model, "--tokens", "9", "--layers", "7").err


@pytest.mark.parametrize(("text", "expected"), [("250000", 250_000), ("1e9", 10**9), ("2_500", 2500), ("1.5e3", 1500)])
def test_numbers_of_tokens(text: str, expected: int) -> None:
    assert parse_count(text) == expected


@pytest.mark.parametrize("text", ["", "1.5", "nan", "inf", "-", "ten", "1e999"])
def test_no_numbers_of_tokens(text: str) -> None:
    with pytest.raises(InvalidInputError, match="whole number such as 250000"):
        parse_count(text)
