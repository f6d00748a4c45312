"""The tables of closed sets: every row can do what it says, and what it names exists."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from actstore.engine.edit.case_kinds import CASE_KINDS, HEADINGS
from actstore.engine.edit.forms.table import FORMS, find_form
from actstore.engine.edit.operations import OPERATIONS, Operation, Target
from actstore.engine.edit.passes import Passes
from actstore.engine.edit.readings import Reading
from actstore.engine.edit.scores import Snapshot, score
from actstore.engine.edit.settings import FineSettings, KnowledgeSettings, LeastNormSettings, RewriteSettings
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


def test_parameters_of_forms_are_settings() -> None:
    kinds = (RewriteSettings, LeastNormSettings, FineSettings, KnowledgeSettings)
    known = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    for name, form in FORMS.items():
        assert form.parameters <= known, name
    with pytest.raises(
        InvalidInputError, match="`form` is one of least-norm, fine, knowledge, knowledge-corrected, fine-tune"
    ):
        find_form("x")


def test_measures_of_case_kinds_are_scores() -> None:
    from actstore.engine.edit.cases import Task

    task = Task("x", "reliability", Reading(np.arange(3, dtype=np.int32), 2), *(np.array([1]),) * 2, np.array([True]))
    snapshot = Snapshot(np.array([[1, 0]], np.int32), np.array([-0.5]))
    row = score(task, snapshot, snapshot)
    for name, kind in CASE_KINDS.items():
        assert set(kind.measures) <= row.keys(), name
    assert {kind.heading for kind in CASE_KINDS.values()} == set(HEADINGS)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_operations_change_activations_and_read_their_own_parameters(kind: str) -> None:
    parameters = set(inspect.signature(Operation).parameters)
    assert set(OPERATIONS[kind].parameters) <= parameters - {"kind", "neurons", "positions"}
    passes = Passes()
    passes.begin((torch.zeros(1, 3, dtype=torch.int64),), {})
    operation = Operation(kind, ("L0.N0", "L0.N1"), value=4.5, source="0")
    target = Target(0, passes, np.full((3, 2), 7, np.float32))
    activations = torch.arange(1.0, 7.0).reshape(1, 3, 2)
    changed = OPERATIONS[kind].apply(operation, target, activations)
    assert changed.shape == activations.shape
    assert (changed != activations).all()


@pytest.mark.parametrize("module", ["edit.forms.table", "edit.baselines", "edit.case_kinds", "multimodal.rankings"])
def test_the_tables_that_the_command_line_reads_load_no_torch(module: str, tmp_path: Path) -> None:
    script = f"import sys, actstore.engine.{module}\nassert not {{'torch', 'transformers'}} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
