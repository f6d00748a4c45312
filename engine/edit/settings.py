"""Settings of rewrites: which form, which neurons, and what each form needs to know. Knows nothing about what forms do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from actstore.store.arguments import Typed
from actstore.store.errors import InvalidInputError

FORMS: Final = {
    "least-norm": "from the store alone: the shortest change that serves all positions at once (ours)",
    "fine": "learned with the model, as Pan et al. (ICLR 2025)",
    "knowledge": "word embeddings taken off and put on, as Dai et al. (2022)",
    "fine-tune": "the same rows as the fine form's, by the loss on the target alone: a baseline",
}


@dataclass(frozen=True)
class LeastNormSettings(Typed):
    """How neurons are chosen and rewritten."""

    k: int | None = None
    """Neurons, those that contribute most to the old word where it is predicted; None: as few of the last layer as do."""
    layers: tuple[int, ...] | None = None
    """Where they are chosen; None: in the last layers, as few as do."""
    neurons: tuple[tuple[int, int], ...] | None = None
    """(layer, index) of the neurons themselves, instead."""
    margin: float = 2.0
    """By how much the new word's logit shall be above the largest other."""
    control: float = 1.0
    """Weight of the positions that shall not change."""
    rounds: int = 4
    """How often positions are weighed anew by what would become of them; 0 is plain ridge regression."""
    ridge: float = 1e-3
    """Weight of ‖c‖², in shares of the mean diagonal."""
    max_documents: int | None = None
    """The first so many documents of the capture; the others are left for evaluation."""
    reach: float = 0.98
    """Share of held-out positions that the smallest set of neurons must be predicted to win, and to keep."""


@dataclass(frozen=True)
class FineSettings(Typed):
    """How neurons are located and their rows learned; the defaults are the paper's."""

    per_position: int = 5
    """Neurons located for each token of each example's target."""
    leave_last: int = 3
    """Last layers that are left alone."""
    rate: float = 1e-3
    """Adam's. The paper has 5e-3 for Llama-2-7B."""
    steps: int = 50
    """At most."""
    stop: float = 0.9
    """Probability of every token of every target at which learning ends."""
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
                raise InvalidInputError(f"--{name.replace('_', '-')} is at least {least}, found {getattr(self, name)}.")


@dataclass(frozen=True)
class RewriteSettings(Typed):
    """What is exchanged, and how."""

    old: str
    new: str
    form: str = "least-norm"
    neurons: tuple[tuple[int, int], ...] | None = None
    """(layer, index) of the neurons that are rewritten; None: found by the form's own rule."""
    least_norm: LeastNormSettings = dataclasses.field(default_factory=LeastNormSettings)
    """Also k, layers and max_documents of the knowledge form, and max_documents of the fine one."""
    fine: FineSettings = dataclasses.field(default_factory=FineSettings)
    examples: int = 8
    """Documents with the old word that the fine form learns from."""
    factors: tuple[float, float] = (1.0, 8.0)
    """λ₁ and λ₂ of the knowledge form."""
    seed: int = 0
    """Which documents are examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise InvalidInputError(f"A form is one of {', '.join(FORMS)}, found {self.form!r}.")
        if self.examples < 1:
            raise InvalidInputError(
                f"At least one example must be learned from, found {self.examples}. Mend --examples."
            )
