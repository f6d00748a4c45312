"""The table of a capture's tokens, by its plan alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actstore.store.layout import MODALITIES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.store.capture.plan import Plan


def token_table(plan: Plan, slots: NDArray[np.int64]) -> pa.Table:
    """One row per token in `slots`: token (its slot), id, position (in its window), window, document, modality."""
    columns = (plan.array(f"tokens/{name}")[slots] for name in ("ids", "position", "window", "modality"))
    ids, position, window, kind = columns
    documents = plan.table("windows")["document"].to_numpy()
    modality = pa.DictionaryArray.from_arrays(pa.array(kind.astype(np.int8)), list(MODALITIES))
    names = ("token", "id", "position", "window", "document", "modality")
    return pa.table([slots, ids, position, window, documents[window], modality], names=names)
