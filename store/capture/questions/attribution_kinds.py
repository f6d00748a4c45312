"""The kinds of scores that stored attributions give, as one table: what each is made of, and what the capture must hold.

The command line, the messages and the methods read this table; another kind is another entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from actstore.store.files.records import CaptureRecord

IG: Final = "attribution.ig"
"""Site of the integrated gradients of P(right letter), per prompt."""
GRADIENT: Final = "attribution.gradient"
"""Site of ∂P/∂a at the activations as they are."""
ACTIVATION: Final = "mlp.post"
"""Site of the activations; `attributed_site` says where a capture has those of another site in its place."""


def attributed_site(record: CaptureRecord) -> str:
    """The site whose activations a capture attributes to; those of earlier versions have but one."""
    return str(record.settings.get("site", ACTIVATION))


def attributed_scope(record: CaptureRecord) -> str:
    """Which activations a capture attributes to: "position", where the answer is predicted, or all of its "sequence"."""
    return str(record.settings.get("scope", "position"))


@dataclass(frozen=True)
class AttributionKind:
    """One kind of score of a neuron for a prompt."""

    label: str
    """What tables call it."""
    help: str
    """One sentence for the command line and the documentation."""
    sites: tuple[str, ...]
    """A score is the product of the values at these sites, taken in this order."""
    uses_weights: bool = False
    """Whether it is also multiplied by the neuron's weight on the logit of the right letter, from the store's weights."""

    @property
    def requirement(self) -> str:
        """What `actstore.attribute` has to be called with for these scores, as a phrase."""
        return "weights in the store (without `weights=False`)" if self.uses_weights else "`gradients=True`"


KINDS: Final[dict[str, AttributionKind]] = {
    "ig": AttributionKind("integrated gradients", "Integrated gradients of the right letter's probability.", (IG,)),
    "gradient": AttributionKind(
        "gradient × activation",
        "Gradient of the right letter's probability times the activation.",
        (ACTIVATION, GRADIENT),
    ),
    "activation": AttributionKind("activation", "The activation itself.", (ACTIVATION,)),
    "contribution": AttributionKind(
        "contribution",
        "Activation times the neuron's weight on the right letter's logit.",
        (ACTIVATION,),
        uses_weights=True,
    ),
}
"""Name → kind, the one to prefer first."""
