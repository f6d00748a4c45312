"""The linear-probe detector: whether a hyperplane over a layer's activations tells two labels apart.

Logistic regression with an L2 penalty on the activations of each window's last token, as a detector of jailbreaks in Zhou et
al. (ICSE 2025, arXiv 2408.15207). There are far more neurons than documents, so it is solved in the space that the documents
span, exactly and without randomness. Reads stores only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.store.arguments import Typed
from actstore.store.capture.positions import blocks_with, check_positions, check_values, warnings_of, windows_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

FEW_SAMPLES: Final = 20
"""Fewer samples of a label than this in the test part cause a warning."""
MAX_STEPS: Final = 100
"""Maximum number of Newton steps; a few suffice."""


@dataclass(frozen=True)
class ProbeSettings(Typed):
    """How the probe is fitted and tested."""

    ridge: float = 1.0
    """λ in Σ loss + λ/2 · |w|², activations standardised on the training part: the inverse of scikit-learn's C."""
    test_share: float = 0.3
    """Share of the documents of each label that the probe is tested on."""
    seed: int = 0
    """Random seed of the split into training and test documents."""
    site: str = "mlp.post"
    layers: tuple[int, ...] | None = None
    """The layers to probe; None is all captured ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge > 0:
            raise InvalidInputError(f"`ridge` must be above 0, found {self.ridge}.")
        if not 0 < self.test_share < 1:
            raise InvalidInputError(f"`test_share` must be between 0 and 1, found {self.test_share}.")


@dataclass(frozen=True)
class ProbeResult:
    """How well one layer, or all of them together, separate the labels of unseen documents."""

    layer: int | None
    """None for all layers together."""
    accuracy: float
    auroc: float
    train_accuracy: float


@dataclass(frozen=True)
class Probe:
    """The results of a probe, with the baseline to compare them with."""

    results: tuple[ProbeResult, ...]
    """One for each layer, and one for all together."""
    n_train: tuple[int, int]
    """Number of samples without and with the positive label."""
    n_test: tuple[int, int]
    majority: float
    """Accuracy on the test part of always predicting the label that is more frequent in the training part."""
    warnings: tuple[str, ...]


def fit_logistic(
    features: NDArray[np.float64], positive: NDArray[np.bool_], ridge: float
) -> tuple[NDArray[np.float64], float]:
    """The weights [feature] and the intercept that minimise Σ log(1 + exp(∓(x·w + b))) + ridge/2 · |w|².

    Newton's method, each step halved until the objective falls; the intercept is not penalised. The objective is strictly
    convex where both labels occur, so the minimum is unique; it is found to about 1e-9. Raises `InvalidInputError` where one
    label is missing.
    """
    if not 0 < positive.sum() < len(positive):
        raise InvalidInputError("Expected samples of both labels in `positive`, found one only.")
    design = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    penalty = np.append(np.full(features.shape[1], ridge), 0.0)
    sign = np.where(positive, 1.0, -1.0)

    def objective(weights: NDArray[np.float64]) -> float:
        return float(np.logaddexp(0, -sign * (design @ weights)).sum() + 0.5 * (penalty * weights) @ weights)

    weights = np.zeros(design.shape[1])
    value = objective(weights)
    for _ in range(MAX_STEPS):
        p = _sigmoid(design @ weights)
        gradient = design.T @ (p - positive) + penalty * weights
        if np.abs(gradient).max() < 1e-9 * len(positive):
            break
        hessian = (design.T * (p * (1 - p))) @ design
        hessian[np.diag_indices_from(hessian)] += penalty + 1e-12
        step = np.linalg.solve(hessian, gradient)
        length = 1.0
        while (after := objective(weights - length * step)) > value and length > 1e-10:
            length /= 2
        weights, value = weights - length * step, min(value, after)
    return weights[:-1], float(weights[-1])


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def span(gram: NDArray[np.float64], train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Coordinates [sample, direction] in the space that the training samples span, from inner products [sample, sample].

    A ridge fit in it predicts the same as one over all features, since the weights of the latter lie in that space.
    """
    values, vectors = np.linalg.eigh(gram[np.ix_(train, train)])
    nonzero = values > values[-1] * 1e-12
    return np.asarray(gram[:, train] @ (vectors[:, nonzero] / np.sqrt(values[nonzero])))


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The probability that a positive sample scores above a negative one, ties counted half; NaN without both."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def probe_capture(
    capture: Capture, by: str, positive: str, negative: str | None = None, settings: ProbeSettings | None = None
) -> Probe:
    """How well the last token's activations separate label `by` = `positive` from `negative` (None: from every other value).

    Documents are split by their content into a training and a test part, so that neither two windows of a document nor two
    documents of one text lie in both parts. Each layer is a separate probe; the last result is of all layers together. One
    layer's samples [sample, neuron] and two matrices [sample, sample] are in memory at a time.

    Raises `InvalidInputError` for a capture without values or such a label, and where a label has too few documents to split.

    >>> probe_capture(store.capture("prompts"), "kind", "jailbreak").results[-1].auroc
    """
    settings = settings or ProbeSettings()
    check_values(capture, settings.site)
    check_positions(capture, "last")
    samples = _find_samples(capture, by, positive, negative)
    layers = _probed_layers(capture, settings)
    train, test = _split(samples, settings, f"{by}={positive}", f"{by}={negative}" if negative else f"other {by}")
    warnings = [
        *warnings_of(capture, settings.site),
        *_warn_of_few_samples(samples.positive[test], by, positive, negative),
    ]
    total = np.zeros((len(samples.slot), len(samples.slot)))
    results = []
    for layer in layers:
        gram = _gram(_read_layer(capture, settings.site, layer, samples), train)
        total += gram
        results.append(_probe(layer, gram, samples.positive, train, test, settings))
    if len(layers) > 1:
        results.append(_probe(None, total, samples.positive, train, test, settings))
    n_train, n_test = (np.bincount(samples.positive[part], minlength=2) for part in (train, test))
    return Probe(
        tuple(results),
        (int(n_train[0]), int(n_train[1])),
        (int(n_test[0]), int(n_test[1])),
        float(n_test[int(n_train[1] > n_train[0])] / n_test.sum()),
        tuple(warnings),
    )


def _probe(
    layer: int | None,
    gram: NDArray[np.float64],
    positive: NDArray[np.bool_],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    settings: ProbeSettings,
) -> ProbeResult:
    if not gram[np.ix_(train, train)].any():  # no neuron of the layer varies over the training part
        scores = np.zeros(len(gram))
    else:
        coordinates = span(gram, train)
        weights, intercept = fit_logistic(coordinates[train], positive[train], settings.ridge)
        scores = coordinates @ weights + intercept
    correct = (scores > 0) == positive
    return ProbeResult(
        layer, float(correct[test].mean()), auroc(scores[test], positive[test]), float(correct[train].mean())
    )


def _gram(values: NDArray[np.float32], train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inner products [sample, sample] of values [sample, neuron] standardised on the training part; constants count 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean = values[train].mean(axis=0, dtype=np.float64)
        std = values[train].std(axis=0, dtype=np.float64)
    varies = np.isfinite(mean) & (std > 1e-12 * np.maximum(np.abs(mean), 1e-30))
    standard = (values[:, varies] - mean[varies]) / std[varies]
    # NaN: the neurons of an expert that a test token is not routed to. They count as the mean.
    standard[~np.isfinite(standard)] = 0
    return np.asarray(standard @ standard.T)


@dataclass(frozen=True)
class _Samples:
    """The last position of each window that has one of the two labels."""

    block: NDArray[np.int64]
    slot: NDArray[np.int64]
    """Counted from the first slot of the block."""
    positive: NDArray[np.bool_]
    content: NDArray[np.int64]
    """One number per distinct document text."""


def _find_samples(capture: Capture, by: str, positive: str, negative: str | None) -> _Samples:
    record = capture.record.plan
    if by not in record.label_columns:
        labels = ", ".join(record.label_columns) or "none"
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has no label {by!r}. Its labels are: {labels}. Capture again with "
            f'`label_columns=("{by}",)`.'
        )
    values = [value for column, value in record.labels if column == by]
    for value in (positive, negative):
        if value is not None and value not in values:
            raise InvalidInputError(f"No document has {by}={value}. The values of {by} are: {', '.join(values)}.")
    if positive == negative or len(values) < 2:
        raise InvalidInputError(
            f"A probe separates two values of {by}, found {positive!r} only. Name another as `negative`."
        )
    column = record.label_columns.index(by)
    _, content = np.unique(capture.documents()["sha256"].to_numpy(zero_copy_only=False), return_inverse=True)
    blocks: list[_Samples] = []
    for number, slots in blocks_with(capture, "last", capture.blocks):
        plan = capture.block_plan(number)
        window = windows_of(plan)[slots]
        label = np.array([record.labels[i][1] for i in plan.labels[window, column].tolist()], object)
        is_positive = (label == positive).astype(bool)
        selected = is_positive | ((label == negative) if negative is not None else np.ones(len(label), bool))
        document = plan.windows["document"][window]
        number_of_slot = np.full(len(slots), number)[selected]
        blocks.append(_Samples(number_of_slot, slots[selected], is_positive[selected], content[document][selected]))
    if not blocks:
        raise InvalidInputError(f"Capture {capture.record.name!r} has no window with a text token to probe.")
    return _Samples(
        np.concatenate([samples.block for samples in blocks]),
        np.concatenate([samples.slot for samples in blocks]),
        np.concatenate([samples.positive for samples in blocks]),
        np.concatenate([samples.content for samples in blocks]),
    )


def _probed_layers(capture: Capture, settings: ProbeSettings) -> Sequence[int]:
    captured = sorted(capture.record.layers(settings.site))
    if settings.layers is not None and (missing := sorted(set(settings.layers) - set(captured))):
        raise InvalidInputError(
            f"Capture {capture.record.name!r} has the layers {', '.join(map(str, captured))} at {settings.site}, found "
            f"{', '.join(map(str, missing))}. Check `layers`."
        )
    return captured if settings.layers is None else sorted(set(settings.layers))


def _split(
    samples: _Samples, settings: ProbeSettings, positive: str, negative: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples of the training and the test part; about `test_share` of each label's texts are in the test part."""
    rng = np.random.default_rng(settings.seed)
    in_test = np.zeros(len(samples.slot), bool)
    assigned = np.empty(0, np.int64)  # texts
    for is_positive in (True, False):
        # A text with both labels is split with the positive ones.
        texts = np.setdiff1d(samples.content[samples.positive == is_positive], assigned)
        n_test = min(max(1, round(settings.test_share * len(texts))), max(0, len(texts) - 1))
        assigned = np.union1d(assigned, texts)
        in_test |= np.isin(samples.content, rng.permutation(texts)[:n_test])
    for is_positive, name in ((True, positive), (False, negative)):
        own = samples.positive == is_positive
        if not in_test[own].any() or in_test[own].all():
            n_texts = len(np.unique(samples.content[own]))
            raise InvalidInputError(
                f"{name} has {n_texts} documents of different texts, too few for a training and a test part. Capture more, or "
                "probe another label."
            )
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def _warn_of_few_samples(test: NDArray[np.bool_], by: str, positive: str, negative: str | None) -> list[str]:
    return [
        f"Only {n} samples of {name} are in the test part: accuracy and AUROC are uncertain by several hundredths."
        for n, name in (
            (int(test.sum()), f"{by}={positive}"),
            (int((~test).sum()), f"{by}={negative}" if negative else f"other {by}"),
        )
        if n < FEW_SAMPLES
    ]


def _read_layer(capture: Capture, site: str, layer: int, samples: _Samples) -> NDArray[np.float32]:
    """The values [sample, neuron] of a layer."""
    values = np.empty((len(samples.slot), capture.record.layers(site)[layer]), np.float32)
    for block in np.unique(samples.block).tolist():
        in_block = samples.block == block
        values[in_block] = capture.block_values(layer, block, site, saturated=True)[:, samples.slot[in_block]].T
    return values
