"""How many threads torch computes with: small products lose by more than one, and their last bits depend on the number."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """While open, operations of this thread run on `n` threads, neither more nor fewer.

    Until somebody says how many, MKL may take fewer, in its own judgement.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
