"""LSC, DSC, MDSC: how surprising a sample is, given samples of a reference, and how many degrees of surprise were met.

Surprise adequacy (Kim et al., ICSE 2019, arXiv 1808.08444; the Mahalanobis form by Kim et al. 2020) as coded by Yuan et al.
(ICSE 2023, arXiv 2112.01955): a sample is the vector of all neurons of all layers that vary in the reference, and is compared
with the reference's samples of its class. With x the sample, r those of its class c, n and d the number of them and of neurons:

    LSA = -log( Σ_r exp(-|x - r|² / 2h²) / n ) + d·log(h·sqrt(2π))        h: the bandwidth
    DSA = min over r in c |x - r| / min over r in other classes |x - r|
    MDSA = sqrt( (x - μ_c)ᵀ Σ_c⁻¹ (x - μ_c) )                             Σ_c over n; its pseudo-inverse where it has none

A criterion counts the buckets trunc(SA / width) that samples fell into. All three follow from inner products of samples, which
add up over layers: no vector of all layers is held but the reference's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store.capture.positions import blocks_with, check_positions, check_values, windows_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from actstore.engine.coverage.criteria import CoverageSettings
    from actstore.store.reader import Capture

SURPRISES: Final = ("lsc", "dsc", "mdsc")
"""The criteria that are measured here."""
MAX_REFERENCE: Final = 10_000
"""Maximum number of samples of the reference: every sample is compared with all of them."""
SINGULAR: Final = 1e-10
"""Eigenvalues of a class's Gram matrix below this share of the largest are rounding."""


@dataclass
class Piece:
    """Samples whose layers come one after another: what of them adds up over the layers."""

    classes: NDArray[np.int64]
    """[sample]"""
    inner: NDArray[np.float64]
    """[sample, sample of the reference] inner products so far."""
    squares: NDArray[np.float64]
    """[sample] squared lengths so far."""


@dataclass(frozen=True)
class SurpriseReference:
    """The samples of a reference capture, layer by layer, and their classes."""

    classes: tuple[str, ...]
    of_sample: NDArray[np.int64]
    """[sample] Index into `classes`."""
    varying: dict[int, NDArray[np.int64]]
    """Layer → its neurons whose variance over the samples is at least the minimum."""
    values: dict[int, NDArray[np.float32]]
    """Layer → [sample, varying neuron]"""
    bandwidth: float
    widths: Mapping[str, float]
    """Criterion → width of a bucket."""
    _gram: NDArray[np.float64] = field(repr=False)
    """[sample, sample]"""

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of what samples are compared with, in hexadecimal."""
        digest = hashlib.sha256(repr((self.classes, self.bandwidth, sorted(self.widths.items()))).encode())
        digest.update(self.of_sample.tobytes())
        for layer in self.values:
            digest.update(self.varying[layer].tobytes() + self.values[layer].tobytes())
        return digest.hexdigest()

    def piece(self, classes: NDArray[np.int64]) -> Piece:
        """Samples of these classes before their first layer."""
        return Piece(classes, np.zeros((len(classes), len(self.of_sample))), np.zeros(len(classes)))

    def add_layer(self, piece: Piece, layer: int, values: NDArray[np.float32]) -> None:
        """Add a layer's values [neuron, sample]; NaN makes a sample one that has no surprise."""
        own = values[self.varying[layer]].astype(np.float64)
        piece.inner += (self.values[layer].astype(np.float64) @ own).T
        piece.squares += (own**2).sum(axis=0)

    def buckets(self, piece: Piece) -> dict[str, NDArray[np.int64]]:
        """Criterion → the distinct buckets of the piece's samples, ascending, without those that have no finite surprise."""
        found = {}
        for name, width in self.widths.items():
            surprise = np.concatenate(
                [np.empty(0), *(self._surprise(name, piece, c) for c in range(len(self.classes)))]
            )
            finite = surprise[np.isfinite(surprise)]
            found[name] = np.unique(np.trunc(finite / width).astype(np.int64))
        return found

    def _surprise(self, name: str, piece: Piece, number: int) -> NDArray[np.float64]:
        """The surprise of the piece's samples of one class."""
        rows = np.flatnonzero(piece.classes == number)
        own = self.of_sample == number
        inner, squares = piece.inner[rows], piece.squares[rows]
        if name == "mdsc":
            return self._mahalanobis(inner[:, own], own)
        distances = np.maximum(squares[:, None] + np.diag(self._gram) - 2 * inner, 0)
        if name == "lsc":
            exponents = -distances[:, own] / (2 * self.bandwidth**2)
            largest = exponents.max(axis=1, keepdims=True)
            density = largest[:, 0] + np.log(np.exp(exponents - largest).mean(axis=1))
            return np.asarray(self._n_varying * np.log(self.bandwidth * np.sqrt(2 * np.pi)) - density)
        nearest, other = (np.sqrt(distances[:, part].min(axis=1, initial=np.inf)) for part in (own, ~own))
        # The authors' code gives a sample that is one of another class's 1e-6.
        return np.where(other > 0, nearest / np.where(other > 0, other, 1), 1e-6)

    def _mahalanobis(self, inner: NDArray[np.float64], own: NDArray[np.bool_]) -> NDArray[np.float64]:
        """From inner products with the class's samples: those of both, centred, in the coordinates of its principal axes."""
        gram = self._gram[np.ix_(own, own)]
        mean = gram.mean(axis=1)
        values, vectors = np.linalg.eigh(gram - mean[:, None] - mean + mean.mean())
        kept = values > SINGULAR * max(values[-1], 0)
        centred = inner - inner.mean(axis=1, keepdims=True) - mean + mean.mean()
        along = centred @ vectors[:, kept] / values[kept]
        distances: NDArray[np.float64] = np.sqrt(len(gram) * (along**2).sum(axis=1))
        return distances

    @property
    def _n_varying(self) -> int:
        return sum(map(len, self.varying.values()))


def read_reference(reference: Capture, settings: CoverageSettings, widths: dict[int, int]) -> SurpriseReference:
    """The samples of a reference capture at the settings' positions, with their classes.

    `InvalidInputError` where it has no values, no such positions or label, too many samples, too few of a class, or for dsc one
    class only.
    """
    check_values(reference, settings.site)
    check_positions(reference, settings.positions)
    classes = class_names(reference, settings)
    found: list[NDArray[np.int64]] = []
    values: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in widths}
    n_samples = 0
    for block, slots in blocks_with(reference, settings.positions, reference.blocks):
        n_samples += len(slots)
        if n_samples > MAX_REFERENCE:
            raise InvalidInputError(
                f"The reference {reference.record.name!r} has more than {MAX_REFERENCE:,} samples at positions "
                f'{settings.positions!r}, and every sample is compared with all of them. Take `positions="last"`, or a smaller '
                "reference."
            )
        found.append(classes_of(reference, block, slots, classes, settings))
        for layer in widths:
            values[layer].append(reference.block_values(layer, block, settings.site, saturated=True)[:, slots].T)
    of_sample = np.concatenate([np.empty(0, np.int64), *found])
    stacked = {layer: np.concatenate(parts) for layer, parts in values.items() if parts}
    finite = np.all([np.isfinite(layer).all(axis=1) for layer in stacked.values()], axis=0) & (of_sample >= 0)
    of_sample = of_sample[finite]
    _check_classes(of_sample, classes, settings)
    varying, kept = {}, {}
    for layer, layer_values in stacked.items():
        own = layer_values[finite]
        varying[layer] = np.flatnonzero(own.astype(np.float64).var(axis=0) >= settings.min_variance)
        kept[layer] = np.ascontiguousarray(own[:, varying[layer]])
    gram = np.zeros((len(of_sample), len(of_sample)))
    for layer_values in kept.values():
        wide = layer_values.astype(np.float64)
        gram += wide @ wide.T
    buckets = {name: float(getattr(settings, f"{name}_width")) for name in settings.criteria if name in SURPRISES}
    return SurpriseReference(classes, of_sample, varying, kept, settings.bandwidth, buckets, gram)


def class_names(reference: Capture, settings: CoverageSettings) -> tuple[str, ...]:
    """The values of the label column `settings.classes`, or one class of that name without; empty values are none."""
    if settings.classes is None:
        return ("",)
    record = reference.record.plan
    if settings.classes not in record.label_columns:
        labels = ", ".join(record.label_columns) or "none"
        raise InvalidInputError(
            f"The reference {reference.record.name!r} has no label {settings.classes!r}. Its labels are: {labels}. Check "
            "`classes`."
        )
    return tuple(value for column, value in record.labels if column == settings.classes and value)


def classes_of(
    capture: Capture, block: int, slots: NDArray[np.int64], classes: tuple[str, ...], settings: CoverageSettings
) -> NDArray[np.int64]:
    """The class of each slot of a block, as an index into `classes`, -1 for none; `InvalidInputError` for another class."""
    if settings.classes is None:
        return np.zeros(len(slots), np.int64)
    record, plan = capture.record.plan, capture.block_plan(block)
    if settings.classes not in record.label_columns:
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has no label {settings.classes!r}, which the classes are of. Check `classes`."
        )
    ids = plan.labels[:, record.label_columns.index(settings.classes)][windows_of(plan)[slots]]
    names = [record.labels[i][1] for i in ids.tolist()]
    if unknown := sorted(set(names) - {*classes, ""}):
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has {settings.classes}={unknown[0]}, of which the reference has no sample: "
            f"nothing "
            "to compare it with. Capture a reference with all classes."
        )
    index = {name: i for i, name in enumerate(classes)} | {"": -1}
    return np.array([index[name] for name in names], np.int64)


def _check_classes(of_sample: NDArray[np.int64], classes: tuple[str, ...], settings: CoverageSettings) -> None:
    counts = np.bincount(of_sample, minlength=len(classes))
    if "dsc" in settings.criteria and np.count_nonzero(counts) < 2:
        raise InvalidInputError(
            "The criterion dsc compares distances to a sample's own class and to others, and there is one class. Name a label "
            "column with several values in `classes`."
        )
    if few := [name for name, n in zip(classes, counts.tolist(), strict=True) if n < 2]:
        what = f"of {settings.classes}={few[0]}" if settings.classes else "at these positions"
        raise InvalidInputError(
            f"The reference has fewer than two samples {what}: too few to be surprised against. Capture a larger one."
        )
