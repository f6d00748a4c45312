"""demo/README.md names every model and every command's script as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
PAGE = (DEMO / "README.md").read_text(encoding="utf-8")
MODELS = sorted(folder.name for folder in (DEMO / "models").iterdir())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_stands_in_the_readme_with_its_size_and_its_command(name: str) -> None:
    folder = DEMO / "models" / name
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| [{name}](models/{name})")]
    assert f"| {log[0]['parameters']:,} |" in row
    assert f"| {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB |" in row
    script = re.search(rf"`python (\S+) --out demo/models/{name}\b", PAGE)
    assert script is not None
    assert (ROOT / script[1]).is_file()


def test_every_path_in_the_readme_exists() -> None:
    paths = {ROOT / path for path in re.findall(r"python (\S+\.py)", PAGE)}
    matches = re.findall(r"\]\((\S+?)\)|`((?:models|data|training)/[^`*\s]+)`", PAGE)
    paths |= {DEMO / (link or quoted) for link, quoted in matches}
    assert len(paths) > 10
    assert not [path for path in paths if not path.exists()]
