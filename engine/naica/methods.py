"""The methods that select neurons for a query, as one table: NA-ICA and the baselines that the paper compares it with.

Another method is a function in a module, an entry here, and a test. The command line reads this table at every start, so the
functions are named, not imported: their modules load the compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.engine.devices.device import Device
    from actstore.engine.naica.naica import NaicaSettings
    from actstore.engine.naica.selection import SelectedNeurons
    from actstore.engine.workers.executor import Executor
    from actstore.store.capture.questions.attributions import Attributions

    Select = Callable[[Attributions, NaicaSettings, int, Executor, Device], SelectedNeurons]


@dataclass(frozen=True)
class SelectionMethod:
    """One way to select neurons for every query from stored attributions."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the command line and the documentation."""
    function: str
    """`module:name` of the function that selects: of attributions, settings of NA-ICA, a random seed, executor and device."""
    is_random: bool = False
    """Whether the selection depends on the seed."""

    def select(
        self, attributions: Attributions, settings: NaicaSettings, seed: int, executor: Executor, device: Device
    ) -> SelectedNeurons:
        """The neurons of every query."""
        module, _, name = self.function.partition(":")
        function = cast("Select", getattr(import_module(module), name))
        return function(attributions, settings, seed, executor, device)


_BASELINES: Final = "actstore.engine.naica.baselines"

METHODS: Final[dict[str, SelectionMethod]] = {
    "random": SelectionMethod("random neurons", "Random neurons.", f"{_BASELINES}:select_random", is_random=True),
    "activation": SelectionMethod(
        "activation",
        "The largest activations, summed over the prompts of a query.",
        f"{_BASELINES}:select_largest_activations",
    ),
    "kn": SelectionMethod(
        "knowledge neurons*",
        "Knowledge neurons with multiple choice: those that most prompts of a query agree on.",
        f"{_BASELINES}:select_knowledge_neurons",
    ),
    "without-ica": SelectionMethod(
        "QRNCA without ICA",
        "NA-ICA without the inverse cluster frequency: ordered by attribution alone.",
        f"{_BASELINES}:select_without_ica",
    ),
    "with-common": SelectionMethod(
        "QRNCA with common neurons",
        "NA-ICA with the neurons kept that are common to many queries.",
        f"{_BASELINES}:select_with_common",
    ),
    "naica": SelectionMethod(
        "QRNCA",
        "NA-ICA: attributions weighted by the inverse cluster frequency, common neurons removed.",
        f"{_BASELINES}:select_naica",
    ),
}
"""Name → method, in the order of the tables; the names that `method` and `methods` take."""

ALIASES: Final = {"qrnca": "naica"}
"""Other names of methods."""


def resolve_method(name: str) -> str:
    """The key of `METHODS` that a name or an alias stands for; `InvalidInputError` for any other."""
    method = ALIASES.get(name, name)
    if method not in METHODS:
        raise InvalidInputError(f"Expected a method of {', '.join(METHODS)}, found {name!r}. Check `method`.")
    return method
