"""A scorer of the user's own: a Python function of the texts of prompt and generation, by object or by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    TextScore = Callable[[str, str], float]


@dataclass(frozen=True)
class OwnScorer:
    """F as a function gives it: `function(prompt, generation)`, both as texts."""

    function: TextScore
    text: Callable[[Sequence[int]], str]
    """Decodes token ids to text."""

    def __call__(self, prompt: Sequence[int], generated: Sequence[int]) -> float:
        """The score of a generation; `InvalidInputError` where the function gives no number."""
        score = self.function(self.text(prompt), self.text(generated))
        if not isinstance(score, Real):
            raise InvalidInputError(
                f"A scorer gives a number for each generation, and this one gave {score!r:.60}. Change the function."
            )
        return float(score)


def load_function(name: str) -> TextScore:
    """The function that `module:name` or `file.py:name` stands for; `InvalidInputError` where there is none."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not module_name or not attribute:
        raise InvalidInputError(
            f"A scorer of your own is named as module:function or file.py:function, found {name!r}. Check `function`."
        )
    try:
        with _working_folder_on_path():
            module = _module(module_name)
    except Exception as error:  # the module is a program of the user's, and may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InvalidInputError(
            f"The module of the scorer {name!r} cannot be imported ({reason}). Check `function`."
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InvalidInputError(f"{module_name} has no function {attribute!r} to score with. Check `function`.")
    return function  # type: ignore[no-any-return]


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None or not path.is_file():
        raise ImportError(f"there is no file {name}")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """While open, modules are also found where the program was started, as `python -m` finds them."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
