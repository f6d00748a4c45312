"""Names of a model's sites and of the number types it computes in; importing them does not load torch."""

from __future__ import annotations

from typing import Final

MLP_SITES: Final = ("mlp.post", "mlp.gate", "mlp.up")
BLOCK_SITES: Final = ("resid.pre", "resid.mid", "resid.post", "attn.out")
SITES: Final = (*MLP_SITES, *BLOCK_SITES)
"""Every site there is.

`mlp.post` is A_post, the input of the MLP's output projection; `mlp.gate` (after the activation) and `mlp.up` are its factors.
`resid.pre` enters the block, `resid.mid` enters the MLP branch after attention, `resid.post` leaves the block; `attn.out` is
what the (first) attention or other position-mixing sub-layer adds to the stream.
"""

DTYPES: Final = ("auto", "float32", "float16", "bfloat16")
"""What a model can compute in; `auto` is the number type of its weights."""
