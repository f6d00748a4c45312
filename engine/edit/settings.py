"""Settings of rewrites: the words or the requests, the form, the neurons, and what each form needs to know."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from actstore.engine.edit.requests.request import Request  # noqa: TC001  (`Typed` reads the annotations)
from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

MARGIN = 2.0
"""The margin of a word that is exchanged over a whole capture."""
PROMPT_MARGIN = 8.0
"""The margin of a target after a few prompts: other wordings activate the same neurons less."""


@dataclass(frozen=True)
class LeastNormSettings(Typed):
    """How neurons are selected and rewritten."""

    k: int | None = None
    """Number of neurons: those that contribute most to the old word where it is predicted. None: as few of the last layer as
    suffice."""
    layers: tuple[int, ...] | None = None
    """Layers that they are selected from; None: the last ones, as few as suffice."""
    neurons: tuple[tuple[int, int], ...] | None = None
    """(layer, index) of the neurons themselves, instead."""
    margin: float | None = None
    """By how much the new word's logit should exceed the largest other; None: `MARGIN`, and of prompts `PROMPT_MARGIN`."""
    control: float = 1.0
    """Weight of the positions that should not change."""
    rounds: int = 4
    """How often positions are weighted again, by what is predicted for them; 0 is plain ridge regression."""
    ridge: float = 1e-3
    """Weight of ‖c‖², relative to the mean diagonal."""
    max_documents: int | None = None
    """Number of documents, the capture's first, to learn from; the others are left for evaluation."""
    reach: float = 0.98
    """Share of held-out positions that the smallest set of neurons must be predicted to change, and to leave unchanged."""


@dataclass(frozen=True)
class FineSettings(Typed):
    """How neurons are located and their rows learned; the defaults are the paper's."""

    per_position: int = 5
    """Neurons located per token of each example's target."""
    leave_last: int = 3
    """Number of last layers that are not edited."""
    rate: float = 1e-3
    """Learning rate of Adam. The paper has 5e-3 for Llama-2-7B."""
    steps: int = 50
    """Maximum number of steps."""
    stop: float = 0.9
    """Learning ends once every token of every target has a higher probability than this."""
    kl: float = 1.0
    """Weight of KL(before ‖ after) over the prompts' positions but the last."""
    repetition: float = 10.0
    """Weight of the largest −log(1 − p) of a target's token after the whole text."""
    norm: float = 0.1
    """Weight of ‖δ‖₂."""
    plain: bool = False
    """Fine-tuning: the first term of the loss alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("per_position", 1), ("leave_last", 0), ("steps", 1)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"`{name}` is at least {least}, found {getattr(self, name)}.")


@dataclass(frozen=True)
class KnowledgeSettings(Typed):
    """How the knowledge forms locate neurons, and how far they move their rows."""

    queries: tuple[str, ...] = ()
    """Queries of stored attributions whose knowledge neurons are rewritten; none: integrated gradients of the examples."""
    questions: str | None = None
    """The capture of questions that holds those attributions; None: the only one."""
    path_steps: int = 20
    """Steps of the integral; the paper's."""
    factors: tuple[float, float] = (1.0, 8.0)
    """λ₁ and λ₂ in units of ‖row‖ / ‖embedding‖; the paper's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path_steps < 1:
            raise InvalidInputError(f"`path_steps` is at least 1, found {self.path_steps}.")


@dataclass(frozen=True)
class RewriteSettings(Typed):
    """Which word takes the place of which, or what follows which prompts; and how."""

    old: str | None = None
    new: str | None = None
    form: str = "least-norm"
    """A key of `forms.table.FORMS`, which `rewrite` looks it up in."""
    neurons: tuple[tuple[int, int], ...] | None = None
    """(layer, index) of the neurons that are rewritten; None: selected by the form's own rule."""
    least_norm: LeastNormSettings = dataclasses.field(default_factory=LeastNormSettings)
    """Also k, layers and max_documents of the knowledge forms, and max_documents of the fine one."""
    fine: FineSettings = dataclasses.field(default_factory=FineSettings)
    knowledge: KnowledgeSettings = dataclasses.field(default_factory=KnowledgeSettings)
    examples: int = 8
    """Documents with the old word that the learned and the knowledge forms look at."""
    seed: int = 0
    """Random seed of the draw of examples."""
    requests: tuple[Request, ...] = ()
    """Prompts and their targets, in place of two words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.examples < 1:
            raise InvalidInputError(f"`examples` is at least 1, found {self.examples}.")
        if self.requests and not (self.old is self.new is None):
            raise InvalidInputError("Give two words, `old` and `new`, or a `prompt` and its `target`: one of the two.")
        if not self.requests and (self.old is None or self.new is None):
            raise InvalidInputError("Expected two words, `old` and `new`, or a `prompt` and its `target`, or `cases`.")

    @property
    def words(self) -> tuple[str, str]:
        """The old and the new word, of a rewrite of words."""
        assert self.old is not None
        assert self.new is not None
        return self.old, self.new

    def least_norm_settings(self) -> LeastNormSettings:
        """Those of the least-norm form, with the neurons that are named for every form and the margin where none is said."""
        least = self.least_norm
        usual = PROMPT_MARGIN if self.requests else MARGIN
        margin = usual if least.margin is None else least.margin
        return dataclasses.replace(least, neurons=self.neurons or least.neurons, margin=margin)
