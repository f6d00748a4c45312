"""What `info`, `verify` and `capture` say of a store of which a part is damaged, lost, or from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import planted_stores
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    planted_stores.plant(tmp_path / "store")
    planted_stores.plant(tmp_path / "store", "second")
    return tmp_path / "store"


@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_a_damaged_capture_has_a_row_and_hides_no_other(cli: Callable[..., Any], path: Path, damage: str) -> None:
    file = path / "captures/second/zarr.json"
    file.write_bytes(b"") if damage == "empty" else file.unlink()
    described = cli("info", path, "--json").json
    assert [*described["captures"]] == ["corpus"]
    (reason,) = described["damaged"].values()
    assert f"{path}/captures/second/zarr.json" in reason
    shown = cli("info", path)
    assert next(line.split()[-1] for line in shown.out.splitlines() if line.startswith("second")) == "damaged"
    assert f"second: damaged: {reason}" in shown.out
    for arguments in (("verify", path, "--json"), ("verify", path, "--capture", "second", "--json")):
        found = cli(*arguments)
        assert found.status == 1
        (damaged,) = found.json["damaged"]
        assert (damaged["capture"], damaged["key"]) == ("second", "zarr.json")
        assert reason.startswith(damaged["what"])  # what to do is said once, by the command
    assert "1 damaged part" in cli("verify", path).out
    assert cli("top", path, "L1.N3").out


@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_a_damaged_root_is_one_sentence_of_every_command(
    refused: Callable[..., str], path: Path, tiny_model: Path, corpus: Path, damage: str
) -> None:
    (path / "zarr.json").write_bytes(b"") if damage == "empty" else (path / "zarr.json").unlink()
    for arguments in (("info", path), ("verify", path), ("top", path, "L1.N3"), ("capture", tiny_model, corpus, path)):
        sentence = refused(*arguments)
        assert "the store's root is " in sentence
        assert "Restore zarr.json from a copy of the store" in sentence


def test_workers_find_what_one_process_does_in_every_capture(cli: Callable[..., Any], path: Path) -> None:
    for key in ("corpus/values/mlp.post/1/c/0/2", "second/gate_sign/0/c/0/0", "second/neurons.parquet"):
        (path / "captures" / key).write_bytes(b"damaged")
    alone, shared = (cli("verify", path, "--json", "--workers", n) for n in (1, 2))
    assert shared == alone
    assert [one["capture"] for one in shared.json["damaged"]] == ["corpus", "second", "second"]
