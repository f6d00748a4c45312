"""Coverage criteria against plain numpy over all samples at once, merged and cut in every way, and read from captures."""

from __future__ import annotations

import uuid
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from elsewhere import Elsewhere
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from planted_stores import planted

from actstore.engine.coverage import state as coverage_state
from actstore.engine.coverage.coverage import Coverage
from actstore.engine.coverage.criteria import CoverageSettings
from actstore.engine.coverage.files import merge_coverages, read_coverage, write_coverage
from actstore.engine.coverage.measure import measure_coverage
from actstore.engine.coverage.state import KeptVectors, Ranges
from actstore.engine.workers.scan import HERE
from actstore.store.errors import FormatError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

EVERY = CoverageSettings(criteria=("nc", "kmnc", "nbc", "snac", "tknc", "tknp"), sections=10, top=3)
Values = dict[int, "NDArray[np.float32]"]


# The specification: every sample at once, one neuron or sample at a time.


def naive_nc(values: Values, t: float) -> int:
    covered = set()
    for layer, a in values.items():
        for sample in a.T:
            known = sample[~np.isnan(sample)]
            if len(known) and known.max() > known.min():
                scaled = (sample - known.min()) / (known.max() - known.min())
                covered |= {(layer, n) for n in np.flatnonzero(scaled > t)}
    return len(covered)


def naive_kmnc(values: Values, ranges: dict[int, Ranges], k: int) -> int:
    hit = set()
    for layer, a in values.items():
        for n, row in enumerate(a):
            low, high = float(ranges[layer].low[n]), float(ranges[layer].high[n])
            for value in row.astype(float):
                if low <= value <= high and high > low:
                    section = int(k * (Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low)))
                    hit.add((layer, n, min(k - 1, section)))
    return len(hit)


def naive_corners(values: Values, ranges: dict[int, Ranges]) -> tuple[int, int]:
    above = sum(int((a > ranges[layer].high[:, None]).any(axis=1).sum()) for layer, a in values.items())
    below = sum(int((a < ranges[layer].low[:, None]).any(axis=1).sum()) for layer, a in values.items())
    return above + below, above


def naive_top(sample: NDArray[np.float32], k: int) -> frozenset[int]:
    known = [n for n in range(len(sample)) if not np.isnan(sample[n])]
    return frozenset(sorted(known, key=lambda n: (-sample[n], n))[:k])


def naive_tknc(values: Values, k: int) -> int:
    return len({(layer, n) for layer, a in values.items() for sample in a.T for n in naive_top(sample, k)})


def naive_tknp(values: Values, k: int) -> int:
    n_samples = next(iter(values.values())).shape[1]
    return len({tuple(naive_top(a[:, i], k) for a in values.values()) for i in range(n_samples)})


def naive_all(values: Values, ranges: dict[int, Ranges], settings: CoverageSettings = EVERY) -> list[int]:
    corners, above = naive_corners(values, ranges)
    return [
        *(naive_nc(values, t) for t in settings.thresholds),
        naive_kmnc(values, ranges, settings.sections), corners, above,
        naive_tknc(values, settings.top), naive_tknp(values, settings.top),
    ]  # fmt: skip


def covered(coverage: Coverage) -> list[int]:
    return [row.covered for row in coverage.results()]


def add(coverage: Coverage, values: Values) -> None:
    mixed = np.zeros((next(iter(values.values())).shape[1], 2), np.uint64)
    for layer, a in values.items():
        coverage.add(layer, a, mixed, np.zeros(len(a), np.float32))
    coverage.end_samples(mixed)


@with_settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    n=st.sampled_from([0, 1, 17, 63]),
    nan=st.sampled_from([0.0, 0.2, 1.0]),
    cut=st.integers(0, 63),
)
def test_every_criterion_is_its_definition_however_samples_are_cut(seed: int, n: int, nan: float, cut: int) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values: ties, constant samples, values on the borders of sections.
    values = {
        layer: rng.integers(-4, 5, (width, n)).astype(np.float32) / 4 for layer, width in ((0, 5), (3, 33), (4, 2))
    }
    ranges = {}
    for layer, a in values.items():
        a[rng.random(a.shape) < nan] = np.nan
        low = rng.integers(-4, 1, len(a)).astype(np.float32) / 4
        ranges[layer] = Ranges(low, low + rng.integers(0, 5, len(a)).astype(np.float32) / 4)
    widths = {layer: len(a) for layer, a in values.items()}
    parts = [Coverage(EVERY, widths, ranges) for _ in range(2)]
    add(parts[0], {layer: a[:, :cut] for layer, a in values.items()})
    add(parts[1], {layer: a[:, cut:] for layer, a in values.items()})
    parts[1].merge(parts[0])
    assert covered(parts[1]) == naive_all(values, ranges)
    assert parts[1].n_samples == n


def test_sections_cover_the_range_and_its_ends() -> None:
    settings = CoverageSettings(criteria=("kmnc", "nbc", "snac"), sections=1000)
    ranges = {0: Ranges(np.float32([0, 0, 5]), np.float32([1, 1, 5]))}
    coverage = Coverage(settings, {0: 3}, ranges)
    sweep = np.linspace(0, 1, 5000, dtype=np.float32)
    add(coverage, {0: np.stack([sweep, np.where(sweep < 0.5, 0.0, 1.0).astype(np.float32), sweep + 5])})
    kmnc, nbc, snac = coverage.results()
    assert (kmnc.covered, kmnc.of) == (1002, 2000), "a range of one point has no sections"
    assert (nbc.covered, nbc.of, snac.covered, snac.of) == (1, 6, 1, 3)


def test_values_on_a_border_are_in_the_section_above_it() -> None:
    # Values that would be below their border if the quotient of sections and span were rounded first.
    borders = [
        (s, v) for s in range(1, 500) for v in range(1, s) if 1000 * v % s == 0 and v * (1000 / s) < 1000 * v // s
    ]
    span, value = np.float32(borders).T
    ranges = {0: Ranges(np.zeros_like(span), span)}
    coverage = Coverage(replace(EVERY, criteria=("kmnc",), sections=1000), {0: len(span)}, ranges)
    add(coverage, {0: np.stack([value, np.nextafter(value, np.float32(0))], axis=1)})
    (kmnc,) = coverage.results()
    assert len(borders) > 10
    assert kmnc.covered == 2 * len(borders)


@given(seed=st.integers(0, 50), n=st.integers(0, 40), distance=st.sampled_from([0.5, 1.0, 2.5]))
def test_kept_vectors_are_farther_apart_than_the_distance_and_nothing_else_is(
    seed: int, n: int, distance: float
) -> None:
    values = np.random.default_rng(seed).integers(-2, 3, (3, n)).astype(np.float32)
    state = KeptVectors.empty(3, distance)
    state.insert(values)
    kept: list[NDArray[np.float32]] = []
    for sample in values.T:
        if all(np.linalg.norm(sample - other) > distance for other in kept):
            kept.append(sample)
    assert [v.tolist() for v in state.vectors] == [v.tolist() for v in kept]
    other = KeptVectors.empty(3, distance)
    other.insert(values[:, ::-1])
    other.merge(state)
    apart = np.linalg.norm(other.vectors[:, None] - other.vectors, axis=-1) + np.eye(len(other.vectors)) * 99
    assert (apart > distance).all()
    for sample in values.T:
        assert np.linalg.norm(other.vectors - sample, axis=1).min() <= distance


def test_too_many_kept_vectors_are_refused_and_those_with_nan_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_state, "MAX_KEPT", 10)
    values = np.arange(24, dtype=np.float32).reshape(2, 12)
    state = KeptVectors.empty(2, 0.1)
    state.insert(np.where(np.arange(12) < 2, np.nan, values).astype(np.float32))
    assert len(state.vectors) == 10
    with pytest.raises(InvalidInputError, match="Raise `distance`"):
        state.insert(values)


def test_a_squared_distance_keeps_what_its_root_does() -> None:
    squared = CoverageSettings(criteria=("tfc",), distance=6.25, metric="squared")
    assert squared.kept_distance == 2.5
    values = np.random.default_rng(0).integers(-2, 3, (3, 40)).astype(np.float32)
    kept = []
    for sample in values.T:  # the authors' code: the sum of squares of differences, above the threshold
        if all(np.square(sample - other).sum() > 6.25 for other in kept):
            kept.append(sample)
    coverage = Coverage(squared, {0: 3}, {})
    add(coverage, {0: values})
    assert covered(coverage) == [len(kept)]


def test_nlc_is_the_mean_magnitude_of_covariances_however_samples_are_cut() -> None:
    rng = np.random.default_rng(0)
    values = {0: rng.standard_normal((4, 30)), 2: 1e3 + rng.standard_normal((7, 30)) ** 3}
    values = {layer: a.astype(np.float32) for layer, a in values.items()}
    values[2][1, 5] = np.nan
    expected = 0.0
    for a in values.values():
        kept = a[:, ~np.isnan(a).any(axis=0)].astype(np.float64)
        centred = kept - kept.mean(axis=1, keepdims=True)
        expected += np.abs(centred @ centred.T / kept.shape[1]).sum() / len(a) ** 2
    settings = CoverageSettings(criteria=("nlc",))
    whole, first, second = (Coverage(settings, {0: 4, 2: 7}, {}) for _ in range(3))
    add(whole, values)
    add(first, {layer: a[:, :11] for layer, a in values.items()})
    add(second, {layer: a[:, 11:] for layer, a in values.items()})
    first.merge(second)
    assert covered(whole) == pytest.approx([expected])
    assert covered(first) == pytest.approx([expected])
    assert covered(Coverage(settings, {0: 4}, {})) == [0]
    with pytest.raises(InvalidInputError, match="up to 8,192 neurons, found 9,000"):
        Coverage(settings, {0: 9000}, {})


# From captures.


def with_holes(values: np.ndarray, layer: int) -> np.ndarray:
    changed = values.copy()
    changed[3, ::5] = np.nan
    changed[1, 7] = np.inf
    return changed


def two_captures(**what: Any) -> tuple[Capture, Capture, Values, dict[int, Ranges]]:
    """A capture, its reference of other windows, the values of counted tokens, the ranges."""
    where = f"memory://{uuid.uuid4()}/store"
    reference, before = planted("reference", where, lengths=(50, 9, 60), seed=5)
    capture, values = planted("corpus", where, **{"values": with_holes} | what)
    seen = reference.tokens()["modality"].to_numpy(zero_copy_only=False) != "special"
    ranges = {layer: Ranges(a[:, seen].min(axis=1), a[:, seen].max(axis=1)) for layer, a in before.items()}
    chosen = capture.tokens()["modality"].to_numpy(zero_copy_only=False) != "special"
    finite = {layer: np.where(np.isfinite(a), a, np.nan)[:, chosen].astype(np.float32) for layer, a in values.items()}
    return capture, reference, finite, ranges


def test_a_capture_covers_what_its_values_do_however_few_samples_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capture, reference, values, ranges = two_captures()
    whole = measure_coverage(capture, EVERY, reference=reference)[""]
    assert covered(whole) == naive_all(values, ranges)
    assert whole.n_samples == values[0].shape[1]
    monkeypatch.setattr("actstore.engine.coverage.measure.SAMPLES_AT_ONCE", 7)
    assert covered(measure_coverage(capture, EVERY, reference=reference)[""]) == covered(whole)


def test_labels_have_coverages_of_their_own_and_together_are_the_whole() -> None:
    capture, reference, values, ranges = two_captures()
    found = measure_coverage(capture, EVERY, reference=reference, by="language")
    tokens = capture.tokens()
    language = np.array(["en", "fr"])[tokens["document"].to_numpy() % 2]
    chosen = language[tokens["modality"].to_numpy(zero_copy_only=False) != "special"]
    for name in ("en", "fr"):
        part = {layer: a[:, chosen == name] for layer, a in values.items()}
        assert covered(found[name]) == naive_all(part, ranges)
    found["en"].merge(found["fr"])
    assert covered(found["en"]) == naive_all(values, ranges)


def test_the_last_position_of_each_window_as_samples() -> None:
    capture, reference, _, ranges = two_captures()
    found = measure_coverage(capture, replace(EVERY, positions="last"), reference=reference)[""]
    ends = np.cumsum(np.bincount(capture.tokens()["window"])) - 1
    values = {
        layer: np.stack([capture.activations(layer, n) for n in range(w)])[:, ends] for layer, w in found.widths.items()
    }
    assert covered(found) == naive_all(values, ranges)
    assert found.n_samples == 6


@pytest.mark.parametrize("precision", ["exact", "half", "int8"])
def test_a_capture_is_not_beyond_its_own_range_whatever_its_precision(precision: str) -> None:
    capture, _ = planted(precision=precision)
    settings = CoverageSettings(criteria=("kmnc", "nbc", "snac"), sections=8)
    kmnc, nbc, snac = measure_coverage(capture, settings, reference=capture)[""].results()
    assert (nbc.covered, snac.covered) == (0, 0)
    assert kmnc.share is not None
    assert kmnc.share > 0.9
    ends = measure_coverage(capture, replace(settings, sections=1), reference=capture)[""].results()[0]
    assert ends.share == 1


def test_a_reference_needs_statistics_only_and_a_capture_values() -> None:
    where = f"memory://{uuid.uuid4()}/store"
    reference, _ = planted("reference", where, precision="none")
    capture, _ = planted("corpus", where)
    settings = CoverageSettings(criteria=("nbc",))
    assert measure_coverage(capture, settings, reference=reference)[""].results()[0].covered == 0
    for asked, message in (
        ((reference, settings, capture), "statistics only"),
        ((capture, settings, None), "The criteria nbc compare values .* `reference`"),
        ((capture, replace(settings, site="mlp.up"), reference), "no site 'mlp.up'"),
        ((capture, replace(settings, positions="image"), reference), "holds no image token"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            measure_coverage(asked[0], asked[1], reference=asked[2])
    with pytest.raises(InvalidInputError, match=r"has no label 'topic'\. Its labels are: language"):
        measure_coverage(capture, by="topic")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criteria": ("nc", "xyz")}, "Criteria are among nc, .*: found xyz"),
        ({"criteria": ()}, "at least one criterion"),
        ({"sections": 0}, "`sections` must be at least 1"),
        ({"top": 0}, "`top` must be at least 1"),
        ({"criteria": ("tfc",)}, "set `distance`"),
        ({"criteria": ("tfc",), "distance": -1.0}, "set `distance`"),
        ({"metric": "cosine"}, "`metric` must be one of euclidean, squared, found 'cosine'"),
        ({"mdsc_width": 0.0}, "`mdsc_width` must be above 0, found 0.0"),
    ],
)
def test_settings_without_meaning(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CoverageSettings(**settings)


def naive_surprise(
    samples: NDArray[np.float64], labels: NDArray[np.str_], seen: NDArray[np.float64], classes: NDArray[np.str_]
) -> dict[str, list[float]]:
    """LSA, DSA and MDSA of samples [sample, neuron], one after another, given those of the reference and its classes."""
    found: dict[str, list[float]] = {"lsc": [], "dsc": [], "mdsc": []}
    for x, label in zip(samples, labels, strict=True):
        own, others = seen[classes == label], seen[classes != label]
        kernel = np.exp(-((x - own) ** 2).sum(axis=1) / (2 * 0.8**2)) / (0.8 * np.sqrt(2 * np.pi)) ** len(x)
        found["lsc"].append(-np.log(kernel.mean()))
        nearest, other = (np.linalg.norm(x - part, axis=1).min() for part in (own, others))
        found["dsc"].append(nearest / other if other > 0 else 1e-6)
        mean, covariance = own.mean(axis=0), np.cov(own.T, bias=True)
        found["mdsc"].append(float(np.sqrt((x - mean) @ np.linalg.inv(covariance) @ (x - mean))))
    return found


def narrow(values: np.ndarray, layer: int) -> np.ndarray:
    """Four neurons of each layer vary, so that a class has more samples than neurons; the others are constant."""
    changed = np.zeros_like(values)
    changed[:4] = values[:4]
    return changed


SURPRISE = CoverageSettings(
    criteria=("lsc", "dsc", "mdsc"), classes="language", lsc_width=0.5, dsc_width=0.02, mdsc_width=0.25, bandwidth=0.8
)


def test_surprise_is_its_formulas_whatever_is_taken_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    where = f"memory://{uuid.uuid4()}/store"
    reference, before = planted("reference", where, lengths=(50, 40, 60), seed=5, values=narrow)
    capture, values = planted("corpus", where, values=narrow)

    def vectors(of: Capture, layers: Values) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
        tokens = of.tokens()
        chosen = tokens["modality"].to_numpy(zero_copy_only=False) != "special"
        stacked = np.concatenate([a[:4, chosen] for a in layers.values()]).T.astype(np.float64)
        return stacked, np.array(["en", "fr"])[tokens["document"].to_numpy()[chosen] % 2]

    naive = naive_surprise(*vectors(capture, values), *vectors(reference, before))
    expected = {
        name: {int(value / getattr(SURPRISE, f"{name}_width")) for value in naive[name]} for name in SURPRISE.criteria
    }
    whole = measure_coverage(capture, SURPRISE, reference=reference)[""]
    assert {name: set(buckets.tolist()) for name, buckets in whole.buckets.items()} == expected
    assert covered(whole) == [len(expected[name]) for name in SURPRISE.criteria]
    assert min(covered(whole)) > 3
    monkeypatch.setattr("actstore.engine.coverage.measure.SAMPLES_AT_ONCE", 7)
    shared = measure_coverage(capture, SURPRISE, reference=reference, by="language", executor=Elsewhere())
    shared["en"].merge(shared["fr"])
    assert covered(shared["en"]) == covered(whole)
    write_coverage(tmp_path / "x", {"": whole})
    again = read_coverage(tmp_path / "x")[""]
    again.merge(whole)
    assert covered(again) == covered(whole)
    other = measure_coverage(capture, SURPRISE, reference=capture)[""]
    with pytest.raises(InvalidInputError, match="the same `reference`"):
        other.merge(whole)
    assert other.buckets["dsc"].tolist() == [0], "every sample is one of its own class"


def test_references_that_cannot_surprise(monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"memory://{uuid.uuid4()}/store"
    reference, _ = planted("reference", where)
    capture, _ = planted("corpus", where)
    one_class = replace(SURPRISE, classes=None)
    for settings, message in (
        (SURPRISE, None),
        (one_class, "and there is one class. Name a label"),
        (replace(one_class, criteria=("lsc", "mdsc")), None),
        (replace(SURPRISE, classes="topic"), "has no label 'topic'"),
    ):
        if message is None:
            assert measure_coverage(capture, settings, reference=reference)[""].n_samples
            continue
        with pytest.raises(InvalidInputError, match=message):
            measure_coverage(capture, settings, reference=reference)
    monkeypatch.setattr("actstore.engine.coverage.surprise.MAX_REFERENCE", 20)
    with pytest.raises(InvalidInputError, match=r'more than 20 samples at positions .* Take `positions="last"`'):
        measure_coverage(capture, SURPRISE, reference=reference)
    statistics_only, _ = planted("statistics", where, precision="none")
    with pytest.raises(InvalidInputError, match="statistics only"):
        measure_coverage(capture, SURPRISE, reference=statistics_only)


# Files


def test_what_is_written_reads_back_and_merges_with_what_another_machine_saw(tmp_path: Path) -> None:
    settings = replace(EVERY, criteria=(*EVERY.criteria, "tfc"), distance=3.0)
    where = f"memory://{uuid.uuid4()}/store"
    reference, _ = planted("reference", where, seed=5)
    first, _ = planted("a", where, blocks=[0, 2], finish=False)
    second, _ = planted("b", where, blocks=[1], finish=False)
    whole, _ = planted("c", where)
    found = {
        c.record.name: measure_coverage(c, settings, reference=reference, by="language") for c in (first, second, whole)
    }
    for name, coverage in found.items():
        write_coverage(tmp_path / name, coverage)
        again = read_coverage(tmp_path / name)
        assert [covered(c) for c in again.values()] == [covered(c) for c in coverage.values()]
        write_coverage(tmp_path / "again", again)
        assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()
    merged = read_coverage(tmp_path / "a")
    merge_coverages(merged, read_coverage(tmp_path / "b"))
    for name in ("en", "fr"):
        assert covered(merged[name])[:-2] == covered(found["c"][name])[:-2]  # but tfc, which depends on the order
        assert merged[name].n_samples == found["c"][name].n_samples
    only = {"en": read_coverage(tmp_path / "a")["en"]}
    merge_coverages(only, {"de": found["b"]["fr"]})
    assert covered(only["de"]) == covered(found["b"]["fr"])


@pytest.mark.parametrize("criteria", [(*EVERY.criteria, "tfc", "nlc"), ("tfc",)])
def test_workers_write_what_one_process_does(criteria: tuple[str, ...], tmp_path: Path) -> None:
    settings = replace(EVERY, criteria=criteria, distance=3.0)
    capture, reference, *_ = two_captures()
    told: list[tuple[int, int]] = []
    for name, executor in (("alone", HERE), ("shared", Elsewhere())):
        found = measure_coverage(
            capture, settings, reference=reference, by="language", on_block=lambda *done: told.append(done), executor=executor
        )  # fmt: skip
        write_coverage(tmp_path / name, found)
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "shared").read_bytes()
    assert told[-1] == (len(capture.blocks), len(capture.blocks))


def test_only_what_was_measured_alike_merges(tmp_path: Path) -> None:
    where = f"memory://{uuid.uuid4()}/store"
    capture, _ = planted("a", where)
    other, _ = planted("b", where, seed=3)
    found = measure_coverage(capture, EVERY, reference=capture)[""]
    with pytest.raises(InvalidInputError, match="top is 3 in one and 4 in the other"):
        found.merge(measure_coverage(capture, replace(EVERY, top=4), reference=capture)[""])
    with pytest.raises(InvalidInputError, match="the same `reference`"):
        found.merge(measure_coverage(capture, EVERY, reference=other)[""])
    with pytest.raises(InvalidInputError, match="of the same layers"):
        found.merge(Coverage(EVERY, {0: 3}, {}))


def test_files_that_are_no_coverage(tmp_path: Path) -> None:
    capture, _ = planted()
    found = measure_coverage(capture)
    with pytest.raises(NotFoundError, match="There is no file"):
        read_coverage(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match="is damaged"):
        read_coverage(tmp_path / "text")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(FormatError, match="is not a coverage"):
        read_coverage(tmp_path / "other")
    with pytest.raises(InvalidInputError, match="folder of"):
        write_coverage(tmp_path / "no" / "x", found)
