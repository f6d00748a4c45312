"""The tables of the methods: every entry names what exists, and reading them loads no model library and no compiler."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from inspect import isfunction
from typing import TYPE_CHECKING, Any, get_args

import pytest

from actstore.engine.attribution.option_tokens import TOO_LONG, TooLong
from actstore.engine.change.scorers import SCORERS
from actstore.engine.coactivation.settings import MEASURES, CoactivationSettings
from actstore.engine.coverage.criteria import CRITERIA, CoverageSettings
from actstore.engine.naica.evaluation import EvaluationSettings
from actstore.engine.naica.methods import ALIASES, METHODS
from actstore.engine.naica.prediction import PREDICTORS, Accuracy
from actstore.engine.naica.presets import PRESETS
from actstore.engine.naica.protocols import OPERATIONS, PROTOCOLS
from actstore.engine.selectivity.firing import COUNTABLE, FIRING_SITES
from actstore.engine.selectivity.methods import METHODS as SELECTIVITY_METHODS
from actstore.store.capture.positions import POSITIONS
from actstore.store.capture.questions.attribution_kinds import KINDS

if TYPE_CHECKING:
    from pathlib import Path

# What a command line reads at every start.
LIGHT = {
    "actstore.engine.attribution.option_tokens": "TOO_LONG",
    "actstore.engine.change.scorers": "SCORERS",
    "actstore.engine.coactivation.settings": "MEASURES",
    "actstore.engine.coverage.criteria": "CRITERIA",
    "actstore.engine.naica.methods": "METHODS",
    "actstore.engine.naica.protocols": "PROTOCOLS",
    "actstore.engine.selectivity.firing": "FIRING_SITES",
    "actstore.engine.selectivity.methods": "METHODS",
    "actstore.engine.naica.presets": "PRESETS",
    "actstore.engine.multimodal.rankings": "REGIONS",
    "actstore.store.capture.questions.attribution_kinds": "KINDS",
    "actstore.store.capture.positions": "POSITIONS",
}
TABLES: dict[str, dict[Any, Any]] = {
    "too long": {**TOO_LONG},
    "criteria": CRITERIA,
    "measures": MEASURES,
    "methods": METHODS,
    "predictors": PREDICTORS,
    "protocols": PROTOCOLS,
    "operations": OPERATIONS,
    "firing sites": FIRING_SITES,
    "selectivity methods": SELECTIVITY_METHODS,
    "presets": PRESETS,
    "modalities": COUNTABLE,
    "kinds": KINDS,
    "positions": POSITIONS,
    "scorers": SCORERS,
}


@pytest.mark.parametrize("table", TABLES)
def test_every_entry_has_a_label_of_its_own_and_a_help(table: str) -> None:
    entries = list(TABLES[table].values())
    assert len({entry.label for entry in entries}) == len(entries)
    assert all(entry.help.strip() for entry in entries)


def test_what_a_command_line_reads_at_every_start_loads_neither_models_nor_a_compiler(tmp_path: Path) -> None:
    script = "".join(f"from {module} import {table}\n" for module, table in LIGHT.items()) + (
        "import sys\nprint(*{'torch', 'transformers', 'tokenizers', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == []


@pytest.mark.parametrize("method", METHODS)
def test_the_function_of_every_selection_method_exists(method: str) -> None:
    module, _, name = METHODS[method].function.partition(":")
    assert isfunction(getattr(import_module(module), name))


def test_tables_and_the_types_beside_them_name_the_same() -> None:
    assert tuple(TOO_LONG) == get_args(TooLong)
    assert set(ALIASES.values()) <= set(METHODS)
    assert EvaluationSettings().methods == tuple(METHODS)
    assert set(PREDICTORS) == set(Accuracy.__dataclass_fields__) - {"label", "seed", "prompts", "neurons"}
    assert CoactivationSettings().sort in MEASURES
    settings = {criterion.setting for criterion in CRITERIA.values()} - {None}
    assert settings <= set(CoverageSettings.__dataclass_fields__)
