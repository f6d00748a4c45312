"""The closed sets of a model's sites and number types, each as one table; importing them does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Site:
    """A named position in a transformer block where activations are read."""

    axis: Literal["neuron", "d_model", "head"]
    """What one row of its values has an entry for."""
    description: str


SITES: Final[Mapping[str, Site]] = {
    "mlp.post": Site("neuron", "A_post, the input of the MLP's output projection"),
    "mlp.gate": Site("neuron", "the activated factor of A_post in a gated MLP"),
    "mlp.up": Site("neuron", "the other factor of A_post in a gated MLP"),
    "resid.pre": Site("d_model", "the residual stream that enters the block"),
    "resid.mid": Site("d_model", "the residual stream that enters the MLP branch, after attention"),
    "resid.post": Site("d_model", "the residual stream that leaves the block"),
    "attn.out": Site("d_model", "what the (first) attention or other position-mixing sub-layer adds to the stream"),
    "attn.q": Site("head", "the queries of all heads as projected, before a rotary embedding or a norm"),
    "attn.k": Site("head", "the keys of all heads as projected, as many as the model has heads for keys"),
    "attn.v": Site("head", "the values of all heads as projected"),
    "attn.z": Site("head", "the input of attention's output projection: what all heads give, side by side"),
}
"""Site → what it is, in the order in which records and `inspect` list sites.

Sites of neurons are those of `PRODUCT_SITES`; for the others a walk finds hook points in `residual.py`.
"""

PRODUCT_SITES: Final = ("mlp.post", "mlp.gate", "mlp.up")
"""What a gated layer has: its product and the two factors, as `products.py` reads them. Other layers have the first."""
HEAD_SITES: Final = tuple(name for name, site in SITES.items() if site.axis == "head")
"""Of the projections of attention; their width is that of all heads, `head` by `head`."""
BLOCK_SITES: Final = tuple(name for name in SITES if name not in PRODUCT_SITES)
"""Read once per block, under its first layer."""

DTYPES: Final[Mapping[str, str]] = {
    "auto": "the number type of the weights, float32 for float16 weights on the CPU",
    "float32": "32 bits",
    "float16": "16 bits, 10 of them mantissa: overflows above 65,504",
    "bfloat16": "16 bits, 7 of them mantissa, with the range of float32",
}
"""What a model can compute in → what it is. No precision of a capture holds more than float32."""

NUMBER_TYPES: Final = tuple(name for name in DTYPES if name != "auto")
