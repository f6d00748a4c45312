"""The forms of a rewrite as one table: what each needs, which settings mean something to it, and the function that makes it.

A new form is a module of this folder and a row here; the command line, the checks and the tests read the table. Importing it
loads neither torch nor transformers: each row imports its form when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from actstore.engine.edit.words import find_replacement
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture


@dataclass(frozen=True)
class Form:
    """One way to make a rewrite."""

    label: str
    help: str
    make: Callable[[Capture, str, RewriteSettings, Reader | None], Edit]
    """(capture, name of the edit, settings, the capture's model) → the edit."""
    needs_model: Callable[[Capture, RewriteSettings], bool]
    """Whether `make` needs the model of a capture for a rewrite."""
    parameters: frozenset[str]
    """Settings that mean something to this form and not to all forms."""
    is_baseline: bool = False


def _make_least_norm(capture: Capture, name: str, settings: RewriteSettings, reader: Reader | None) -> Edit:
    if _is_joint(capture, settings):
        from actstore.engine.edit.forms.joint import make

        return make(capture, name, settings, reader)
    from actstore.engine.edit.forms.least_norm import least_norm

    return least_norm(capture, *settings.words, name, settings.least_norm_settings())


def _is_joint(capture: Capture, settings: RewriteSettings) -> bool:
    return bool(settings.requests) or not find_replacement(capture, *settings.words).is_single


def _make_knowledge(capture: Capture, name: str, settings: RewriteSettings, reader: Reader | None) -> Edit:
    from actstore.engine.edit.forms.knowledge import make

    return make(capture, name, settings, reader)


def _make_learned(capture: Capture, name: str, settings: RewriteSettings, reader: Reader | None) -> Edit:
    from actstore.engine.edit.forms.learned import make

    assert reader is not None
    return make(capture, name, settings, reader)


def _knowledge_needs_model(capture: Capture, settings: RewriteSettings) -> bool:
    from actstore.engine.edit.forms.knowledge import needs_model

    return needs_model(capture, settings)


_LEARNING: Final = frozenset({"examples", "steps", "rate", "per_position", "leave_last", "seed"})
_LOCATING: Final = frozenset({"k", "layers", "queries", "questions", "path_steps", "examples", "seed"})

FORMS: Final = {
    "least-norm": Form(
        "least norm",
        "the smallest change that is right at all positions at once, from the store (ours)",
        _make_least_norm,
        needs_model=_is_joint,
        parameters=frozenset({"k", "layers", "margin", "control", "ridge"}),
    ),
    "fine": Form(
        "FiNE",
        "learned with the model, as Pan et al. (ICLR 2025)",
        _make_learned,
        needs_model=lambda capture, settings: True,
        parameters=_LEARNING,
    ),
    "knowledge": Form(
        "knowledge neurons",
        "input embeddings subtracted from rows and added, as published (Dai et al. 2022)",
        _make_knowledge,
        needs_model=_knowledge_needs_model,
        parameters=_LOCATING,
    ),
    "knowledge-corrected": Form(
        "knowledge neurons, corrected",
        "the same with what the head reads, and the activation's sign (ours)",
        _make_knowledge,
        needs_model=_knowledge_needs_model,
        parameters=_LOCATING,
    ),
    "fine-tune": Form(
        "fine-tuning",
        "the rows of the fine form, learned by the loss on the target alone: a baseline",
        _make_learned,
        needs_model=lambda capture, settings: True,
        parameters=_LEARNING,
        is_baseline=True,
    ),
}


def find_form(name: str) -> Form:
    """The form of a name; `InvalidInputError` where there is none."""
    if name not in FORMS:
        raise InvalidInputError(f"`form` is one of {', '.join(FORMS)}, found {name!r}.")
    return FORMS[name]
