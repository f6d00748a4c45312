"""Values beyond the range of float16: what readers of a capture replace them with, and the sentences that say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store.capture.overflow import LARGEST

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from actstore.store.capture.overflow import Overflow
    from actstore.store.capture.reader import Capture

_NAMED: Final = 3
"""Maximum number of neurons that a sentence names."""


def saturated_maxima(
    capture: Capture, layer: int, site: str, has_overflow: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """The largest finite activation of each neuron of a layer, as far as stored values can show it; shape [neuron].

    The statistics' own, which is exact, but where values overflowed 65,504: a share of it is then reached by stored values.
    `has_overflow` [neuron] says where that is, if not in this capture.
    """
    maxima = capture.layer_statistics(layer, site).maximum
    if has_overflow is None:
        has_overflow = capture.has_overflow(layer, site)
    return np.where(has_overflow, np.minimum(maxima, np.float32(LARGEST)), maxima)


def overflows_in_any(captures: Sequence[Capture], layer: int, site: str) -> NDArray[np.bool_]:
    """Which neurons of a layer have values that one of some captures stores as infinite; shape [neuron]."""
    overflows: NDArray[np.bool_] = np.any([capture.has_overflow(layer, site) for capture in captures], axis=0)
    return overflows


def overflow_sentence(capture: Capture, site: str, overflow: Overflow, consequence: str) -> str | None:
    """The sentence for users of a site's values, which overflowed as `overflow` says; None where none did."""
    if not (names := overflow.names):
        return None
    shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    neurons = f"{len(names):,} neuron{'' if len(names) == 1 else 's'} ({shown})"
    one = overflow.n_values == 1
    what = "Activations" if overflow.n_values is None else f"{overflow.n_values:,} activation{'' if one else 's'}"
    return (
        f"{what} of {neurons} at {site} of capture {capture.record.name!r} {'lies' if one else 'lie'} beyond {LARGEST:,}, "
        f"the largest float16, and {'is' if one else 'are'} stored as infinite: {consequence}. Capture with "
        '`precision="exact"` to keep every value.'
    )


COUNTED_AS: Final = f"such a value counts as {LARGEST:,} here"
"""The consequence for readers that compute with `saturated` values."""


def overflow_sentences(
    capture: Capture,
    sites: Collection[str] | None = None,
    consequence: str = COUNTED_AS,
    neurons: Sequence[tuple[int, int]] | None = None,
) -> list[str]:
    """`overflow_sentence` of each of some sites that has something to say; of all sites, and all neurons, unless named."""
    overflows = {site: overflow for site, overflow in capture.overflow.items() if sites is None or site in sites}
    if neurons is not None:
        overflows = {site: overflow.of(neurons) for site, overflow in overflows.items()}
    sentences = (overflow_sentence(capture, site, overflow, consequence) for site, overflow in overflows.items())
    return [sentence for sentence in sentences if sentence is not None]
