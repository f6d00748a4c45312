"""The question sets of the paper (Chen, Dejl and Toni, arXiv 2406.10868), in the layout in which its authors give them.

They are not part of actstore: a preset says what the files are called, and what must be in them. The command line reads the
table; nothing here loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actstore.engine.inputs.questions import read_questions
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

LABEL: Final = "relation_name"
"""The label column of both sets."""


@dataclass(frozen=True)
class QuestionPreset:
    """One set of questions."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the command line and the documentation."""
    file: str
    """The name of its file."""
    values: tuple[str, ...]
    """The values of `LABEL`."""
    n_prompts: int = 3
    """Prompts per query, each with the options in another order."""


PRESETS: Final[dict[str, QuestionPreset]] = {
    "qrnca-domain": QuestionPreset(
        "domains",
        "Questions of six domains, 100 each and 52 of computer science.",
        "subject_qa.json",
        ("biology", "chemistry", "computer_science", "geography", "mathematics", "physics"),
    ),
    "qrnca-language": QuestionPreset(
        "languages", "Questions in six languages, 100 each.", "language_qa.json", ("ar", "en", "fr", "ja", "ru", "zh")
    ),
}
"""Name → questions; the values that `preset` takes."""


def find_questions(preset: str, path: str | Path) -> Path:
    """The questions file of a preset: `path` itself, or the file of the authors' name in this folder or in its `data`.

    `InvalidInputError` where there is no such preset, or where the file is not what it should be: a query of another label, or
    with another number of prompts. `NotFoundError` where there is no such file.
    """
    if preset not in PRESETS:
        raise InvalidInputError(f"Expected `preset` to be one of {', '.join(PRESETS)}, found {preset!r}.")
    wanted, file = PRESETS[preset], Path(path)
    if file.is_dir():
        places = (file / wanted.file, file / "data" / wanted.file)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise NotFoundError(
                f"There is no {wanted.file} in {file}: expected the data of the authors of QRNCA, or the path of that file."
            )
        file = found
    for fault in _faults(wanted, file):
        raise InvalidInputError(
            f"{file} does not hold the questions of {preset}: {fault}. Ask it with `attribute` instead."
        )
    return file


def _faults(preset: QuestionPreset, file: Path) -> Iterator[str]:
    for query in read_questions(file):
        value = query.labels.get(LABEL)
        if not query.prepared or value not in preset.values:
            yield f"query {query.name!r} has {LABEL} {value!r}, and expected is one of {', '.join(preset.values)}"
        if len(query.prompts) != preset.n_prompts:
            yield f"query {query.name!r} has {len(query.prompts)} prompts, and expected are {preset.n_prompts}"
