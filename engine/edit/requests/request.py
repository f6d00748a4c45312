"""A request, "after this prompt the model should say this", and the cases that an edit is evaluated on; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Case:
    """What an edited model should say after a prompt, or still say."""

    prompt: str
    kind: str
    """A key of `CASE_KINDS`."""
    answer: str | None
    """What the edited model should say; of a locality, what it said before (None: whatever the model says now)."""
    image: Path | None
    where: str
    """File and line, for messages."""
    other: str | None = None
    """The answer that this one should be more probable than: of CounterFact the old one, of its neighbours the new one."""

    def to_json(self) -> dict[str, Any]:
        """As the record of an edit keeps it."""
        return _without_other({**vars(self), "image": None if self.image is None else str(self.image)})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Case:
        """The case that `to_json` described."""
        return cls(**{**value, "image": None if value["image"] is None else Path(value["image"])})


@dataclass(frozen=True)
class Request:
    """One fact to edit: after any of its prompts, the target."""

    prompts: tuple[str, ...]
    """What the edit is made from; further wordings of the fact may be among them."""
    target: str
    """The text that should follow, with the blank before it where texts have one."""
    subject: str | None = None
    """What the fact is about, as texts spell it."""
    image: Path | None = None
    tests: tuple[Case, ...] = ()
    """Cases that the edit is not made from."""
    where: str = "the request"
    """File and line, for messages."""
    other: str | None = None
    """What the target should be more probable than, such as what is true."""

    def __post_init__(self) -> None:
        if not self.prompts or not all(isinstance(text, str) and text for text in self.prompts):
            raise InvalidInputError(f"{self.where} has no `prompt`. Give the text that the target should follow.")
        if not isinstance(self.target, str) or not self.target.strip():
            raise InvalidInputError(f"{self.where} has no `target`. Give the text that should follow the prompt.")

    def cases(self) -> tuple[Case, ...]:
        """The prompts as cases of reliability, and the tests."""
        own = (Case(prompt, "reliability", self.target, self.image, self.where, self.other) for prompt in self.prompts)
        return (*own, *self.tests)

    def to_json(self) -> dict[str, Any]:
        """As the record of an edit keeps it."""
        image = None if self.image is None else str(self.image)
        tests = [case.to_json() for case in self.tests]
        return _without_other({**vars(self), "prompts": list(self.prompts), "image": image, "tests": tests})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Request:
        """The request that `to_json` described."""
        image = None if value["image"] is None else Path(value["image"])
        tests = tuple(Case.from_json(case) for case in value["tests"])
        return cls(**{**value, "prompts": tuple(value["prompts"]), "image": image, "tests": tests})


def _without_other(described: dict[str, Any]) -> dict[str, Any]:
    """Without the other answer where there is none, as earlier versions wrote it."""
    return described if described["other"] is not None else {k: v for k, v in described.items() if k != "other"}


def cases_of(requests: Iterable[Request]) -> tuple[Case, ...]:
    """The cases of all requests, in their order."""
    return tuple(case for request in requests for case in request.cases())


def recorded_requests(settings: Mapping[str, Any]) -> tuple[Request, ...]:
    """The requests that an edit's record says it was made from; none of an edit of words."""
    return tuple(Request.from_json(value) for value in settings.get("requests", ()))
