"""Which positions of a window with an answer, or with an image, get a place in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store.errors import InvalidInputError
from actstore.store.layout import GENERATED, IMAGE, SPECIAL, TEXT

if TYPE_CHECKING:
    from numpy.typing import NDArray

OF_TEXT: Final = ("all", "last", "generated")
"""The names that `positions` of a capture of text takes."""
OF_IMAGES: Final = (*OF_TEXT, "image")


class Positions:
    """Which positions of a window are kept: names and indices, separated by commas, whatever any of them names."""

    def __init__(self, text: str, *, of_images: bool = True) -> None:
        """`InvalidInputError` for what is none of them."""
        self._names, self._indices, self._of_images = set[str](), set[int](), of_images
        for item in text.split(","):
            if item.strip() in (OF_IMAGES if of_images else OF_TEXT):
                self._names.add(item.strip())
                continue
            try:
                self._indices.add(int(item))
            except ValueError:
                known = f"of images are {', '.join(OF_IMAGES)}" if of_images else "are `all`, `last`, `generated`"
                raise InvalidInputError(
                    f"Positions {known} or indices such as 0,5,-1, found {text!r}. Check `positions`."
                ) from None

    @property
    def are_few(self) -> bool:
        """Whether a window keeps a handful of positions only."""
        return not self._names & {"all", "image"}

    @property
    def of_answers(self) -> bool:
        """Whether windows that have an answer keep its positions."""
        return "generated" in self._names

    def at_most(self, context: int) -> int:
        """The largest number of positions that a window of `context` tokens keeps."""
        if self._names - {"last"}:
            return context
        return min(context, len(self._indices) + len(self._names))

    def kept(self, modality: NDArray[np.uint8], n_prompt: int) -> NDArray[np.int32]:
        """The kept positions, ascending.

        `generated`: those that predict a token of the answer, and the answer's last: what is read of a capture as `generated`
        or `predicting` is all there. Of images not where that is the token that ends it, which counts as no part of an answer.
        """
        length = len(modality)
        kept = np.zeros(length, bool)
        kept[[p % length for p in self._indices if -length <= p < length]] = True
        if "all" in self._names:
            kept[:] = True
        if "generated" in self._names and n_prompt < length:
            ends = self._of_images and modality[-1] == SPECIAL
            kept[max(n_prompt - 1, 0) : length - 1 if ends else length] = True
        if "image" in self._names:
            kept |= modality == IMAGE
        if "last" in self._names:
            kept[np.flatnonzero(np.isin(modality, (TEXT, GENERATED)))[-1:]] = True
        return np.flatnonzero(kept).astype(np.int32)
