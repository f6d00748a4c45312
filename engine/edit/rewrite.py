"""Rewrites: one word in place of another, or a target after a prompt, by any form; and what the record of a rewrite says."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from actstore.engine.edit.forms.table import FORMS, find_form
from actstore.engine.edit.requests.request import recorded_requests
from actstore.engine.edit.settings import FineSettings, KnowledgeSettings, LeastNormSettings, RewriteSettings
from actstore.engine.models.fingerprint import check_model, fingerprint_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.engine.edit.readings import Reader
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture

Settings = TypeVar("Settings", LeastNormSettings, FineSettings, KnowledgeSettings)


def needs_model(settings: RewriteSettings, capture: Capture) -> bool:
    """Whether a rewrite runs the model, or needs weights that the store does not hold."""
    return find_form(settings.form).needs_model(capture, settings)


def default_name(settings: RewriteSettings) -> str:
    """The name of an edit that was given none: both words, or the target of its first request, and the form."""
    what = (
        settings.requests[0].target.strip() if settings.requests else "-".join(word.strip() for word in settings.words)
    )
    return f"{what}-{settings.form}".replace("/", "-").replace("\\", "-").lstrip(".")


def rewrite(capture: Capture, name: str, settings: RewriteSettings, reader: Reader | None = None) -> Edit:
    """The edit that makes the model say `settings.new` in place of `settings.old`, or the targets of `settings.requests`.

    `reader` holds the capture's model, for the forms that need it. Raises `InvalidInputError` as the forms do; for words that
    the capture's texts do not hold, or that no tokens spell; and for a model that is not the capture's.
    """
    form = find_form(settings.form)
    if reader is not None:
        recorded = capture.record.model_fingerprint
        check_model(capture.folder, recorded, fingerprint_of(reader.model), reader.model.spec.name)
    elif form.needs_model(capture, settings):
        raise InvalidInputError(
            f"The {settings.form} form needs the model {capture.store.model.name} for this edit, which was not given. Pass it "
            "as `model`."
        )
    return form.make(capture, name, settings, reader)


def settings_of(edit: Edit) -> RewriteSettings:
    """The settings that a rewrite was made with; `InvalidInputError` for an edit that is no rewrite."""
    recorded = edit.record.settings
    if edit.record.form not in FORMS:
        raise InvalidInputError(
            f"Edit {edit.name!r} replaces no word: its form is {edit.record.form}. Pass `cases` that say what is expected."
        )
    made = RewriteSettings(
        recorded.get("from"),
        recorded.get("to"),
        edit.record.form,
        requests=recorded_requests(recorded),
        least_norm=_read_settings(LeastNormSettings, recorded),
        fine=_read_settings(FineSettings, recorded),
        knowledge=_read_settings(KnowledgeSettings, recorded),
    )
    return dataclasses.replace(made, examples=recorded.get("examples", 32), seed=recorded.get("seed", 0))


def _read_settings(kind: type[Settings], recorded: dict[str, Any]) -> Settings:
    """What a record says of some settings, the neurons and their layers aside."""
    names = {field.name for field in dataclasses.fields(kind)} & recorded.keys() - {"neurons", "layers"}
    return kind(**{name: recorded[name] for name in names})


def used_documents(edit: Edit) -> set[int] | None:
    """The documents of its capture that a rewrite was made from; None for all."""
    recorded = edit.record.settings
    if recorded.get("documents") is not None:
        return set(recorded["documents"])
    return None if recorded.get("max_documents") is None else set(range(recorded["max_documents"]))
