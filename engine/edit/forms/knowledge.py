"""The knowledge-neuron update: word embeddings subtracted from and added to rows, without learning.

Dai et al. (ACL 2022, arXiv 2104.08696): `row += −λ₁ t + λ₂ t′` with the input embeddings of the old word and the new, λ₁ =
‖row‖ / ‖t‖ and λ₂ = 8 ‖row‖ / ‖t′‖. Knows nothing about how neurons are found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def updated_rows(rows: Tensor, old: Tensor, new: Tensor, factors: tuple[float, float] = (1.0, 8.0)) -> Tensor:
    """Rows [neuron, d_model] with the old word's embedding [d_model] taken off and the new one's put on.

    `factors` are λ₁ and λ₂ in units of ‖row‖ / ‖embedding‖; the paper's are 1 and 8.
    """
    wide = rows.double()
    length = wide.norm(dim=1, keepdim=True)
    less, more = factors
    changed = wide - less * length * torch.nn.functional.normalize(old.double(), dim=0)
    result: Tensor = changed + more * length * torch.nn.functional.normalize(new.double(), dim=0)
    return result
