"""LAPE against its formula written out, on planted counts, planted stores, and a model that is selective by construction."""

from __future__ import annotations

import math
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import planted_stores
import pytest
from elsewhere import Elsewhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actstore.engine.selectivity import firing as firing_counts
from actstore.engine.selectivity import selectivity
from actstore.engine.selectivity.firing import count_firing
from actstore.engine.selectivity.selectivity import MIN_TOKENS, SelectivitySettings, find_selectivity, select_neurons
from actstore.store import layout
from actstore.store.capture.plan import Plan, PlannedWindow, PlanWriter
from actstore.store.capture.statistics.neuron_table import write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.capture.writer import CaptureWriter, create_capture
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import PlanRecord
from actstore.store.model import root
from actstore.store.reader import Store
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.store.reader import Capture

LABELS = (("topic", "a"), ("language", "en"), ("topic", "b"), ("language", "fr"), ("language", "de"), ("language", ""))
"""Label ids as they are met: two columns, mixed; the last is that of a document without a language."""
TOPICS, LANGUAGES = (0, 2), (1, 3, 4, 5)
KINDS = (layout.TEXT, layout.IMAGE, layout.SPECIAL, layout.GENERATED)


def plan_images(folder: Folder, seed: int) -> tuple[PlanRecord, NDArray[np.uint8], NDArray[np.int32]]:
    """A plan of windows with text, image, special and generated tokens; the modality and the language of every token."""
    rng = np.random.default_rng(seed)
    writer = PlanWriter(folder, "corpus", planted_stores.BLOCK_SLOTS, {})
    lengths, modalities, languages = (20, 30, 14, 40, 9, 24, 7), [], []
    windows = []
    for number, length in enumerate(lengths):
        writer.add_document({"source": f"{number}", "sha256": "0" * 64, "n_tokens": length})
        modality = rng.choice(KINDS, length).astype(np.uint8)
        ids = rng.integers(0, 100, length).astype(np.int32)
        spoken = 3 if number == 4 else number % 3
        labels = (TOPICS[number % 2], LANGUAGES[spoken])
        windows.append(PlannedWindow(number, ids, np.arange(length, dtype=np.int32), modality, labels))
        modalities.append(modality)
        languages.append(np.full(length, spoken, np.int32))
    blocks = [windows[:3], windows[3:5], windows[5:]]
    for block in blocks:
        writer.add_block([block])
    plan = PlanRecord(
        writer.close(LABELS), "c", "c" * 64, "", {}, ("topic", "language"), LABELS, len(lengths), len(lengths), sum(lengths),
        planted_stores.BLOCK_SLOTS, len(blocks),
    )  # fmt: skip
    return plan, np.concatenate(modalities), np.concatenate(languages)


@cache
def plant(seed: int = 0, **what: Any) -> tuple[Capture, dict[int, NDArray[Any]], NDArray[np.uint8], NDArray[np.int32]]:
    """A capture of such windows, its values [neuron, token] by layer, and the modality and language of every token."""
    folder = Folder(f"memory://{uuid.uuid4()}/store", read_only=False)
    plan_record, modality, language = plan_images(folder, seed)
    record = planted_stores.capture_record("corpus", plan_record, planted_stores.Planted(**what))
    root.write_neurons(folder, planted_stores.model_record(), None)
    root.write_root(folder, planted_stores.model_record())
    record = create_capture(folder, record)
    rng = np.random.default_rng(seed + 1)
    values = {
        layer: rng.standard_normal((width, len(modality)), np.float32)
        for layer, width in enumerate(planted_stores.WIDTHS)
    }
    values[0][0, ::7] = np.inf
    values[0][1, ::5] = np.nan
    values[1][:3, ::3] = 0
    values[1][5, ::4] = 1e6  # beyond float16: infinite at precision half, and above zero all the same
    plan, first = Plan(folder, "corpus", plan_record), 0
    with CaptureWriter(folder, record, n_threads=1, overlap=False) as writer:
        for block in range(plan_record.n_blocks):
            last = first + len(plan.block(block).position)
            here = {layer: v[:, first:last] for layer, v in values.items()}
            arrays, statistics = planted_stores.fill(record, plan, block, here)
            writer.submit(block, arrays, statistics, began=0.0)
            first = last
    running = RunningStatistics(folder, record)
    running.advance()
    write_finished(folder, record, running.total)
    return Store(folder).capture("corpus"), values, modality, language


def firing(values: NDArray[Any], source: str) -> NDArray[np.bool_]:
    """Where planted neurons fire: the planted gate is open where the activation is below zero."""
    found: NDArray[np.bool_] = -values > 0 if source == "mlp.gate" else (values > 0) & np.isfinite(values)
    return found


class TestCounts:
    @pytest.mark.parametrize("site", ["mlp.gate", "mlp.post"])
    @pytest.mark.parametrize("kind", [None, "text", "image", "generated"])
    @pytest.mark.parametrize("precision", ["exact", "half", "int8", "none"])
    def test_are_those_of_the_tokens_that_carry_label_and_modality(
        self, site: str, kind: str | None, precision: str
    ) -> None:
        capture, values, modality, language = plant(precision=precision)
        if site == "mlp.post" and kind and precision in ("int8", "none"):
            with pytest.raises(
                InvalidInputError, match=f"at precision {precision} those of .* Capture with `gate_sign=True`"
            ):
                count_firing(capture, "language", site=site, modality=kind)
            return
        found = count_firing(capture, "language", site=site, modality=kind)
        assert found.labels == ("en", "fr", "de")
        counted = modality != layout.SPECIAL if kind is None else modality == layout.MODALITIES.index(kind)
        for label in range(3):
            of_label = counted & (language == label)
            assert found.n_tokens[label] == of_label.sum() > 0
            for layer, where in found.layers.items():
                expected = firing(values[layer], site)[:, of_label].sum(axis=1)
                assert np.array_equal(found.positives[where, label], expected), (layer, label)

    @pytest.mark.parametrize("site", ["mlp.gate", "mlp.post"])
    def test_by_workers_are_the_same(self, site: str) -> None:
        capture, *_ = plant()
        alone = count_firing(capture, "language", site=site, modality="text")
        workers = Elsewhere()
        shared = count_firing(capture, "language", site=site, modality="text", executor=workers)
        assert len(workers.items) == len(capture.blocks) > 1
        assert np.array_equal(shared.positives, alone.positives)
        assert np.array_equal(shared.n_tokens, alone.n_tokens)

    @pytest.mark.parametrize("site", ["mlp.gate", "mlp.post", None])
    def test_from_statistics_and_from_stored_signs_are_the_same(
        self, site: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        capture, *_ = plant(seed=5)
        from_statistics = count_firing(capture, "topic", site=site)
        sources, everything = firing_counts._sources(capture, site), set(KINDS) - {layout.SPECIAL}
        monkeypatch.setattr(firing_counts, "_ROWS", 3)
        parts, n_tokens = firing_counts._count_blocks(capture, sources, [0, 2], everything)
        assert np.array_equal(np.concatenate(parts), from_statistics.positives)
        assert np.array_equal(n_tokens, from_statistics.n_tokens)
        assert from_statistics.positives.any(axis=0).all()

    def test_one_modality_alone_is_read_from_the_statistics(self, monkeypatch: pytest.MonkeyPatch) -> None:
        location = f"memory://{uuid.uuid4()}/store"
        planted_stores.plant(location)
        capture = Store(location).capture()
        monkeypatch.setattr(firing_counts, "_count_blocks", lambda *_: pytest.fail("blocks were read"))
        text = count_firing(capture, "language", modality="text")
        assert np.array_equal(text.positives, count_firing(capture, "language").positives)

    def test_a_plain_layer_fires_where_its_activation_is_above_zero(self) -> None:
        capture, values, modality, language = plant(seed=7)  # one of its own, to be changed
        layers = capture.store.model.layers
        plain = (layers[0], type(layers[1])(**{**vars(layers[1]), "gated": False}))
        object.__setattr__(capture.store.model, "layers", plain)
        found = count_firing(capture, "language")
        first = (language == 0) & (modality != layout.SPECIAL)
        for layer, source in ((0, "mlp.gate"), (1, "mlp.post")):
            expected = firing(values[layer], source)[:, first].sum(axis=1)
            assert np.array_equal(found.positives[found.layers[layer], 0], expected)

    def test_a_gated_capture_without_signs_names_the_flag(self) -> None:
        capture, *_ = plant(gate_sign=False)
        with pytest.raises(
            InvalidInputError,
            match=r"no gate signs of layer .*`gate_sign=True` or `sites=\(\"mlp.gate\",\)`, or .* `site=\"mlp.post\"`",
        ):
            count_firing(capture, "language")
        assert count_firing(capture, "language", site="mlp.post").n_tokens.all()


def by_the_formula(
    probabilities: NDArray[Any], share: float, quantile: float
) -> tuple[list[float | None], float, list[int]]:
    """Entropies, threshold and selected neurons, one number at a time."""
    flat = sorted(probabilities.ravel().tolist())
    threshold = flat[max(round(len(flat) * quantile), 1) - 1]
    entropies: list[float | None] = []
    for row in probabilities.tolist():
        total = sum(row)
        entropies.append(None if total == 0 else -sum(p / total * math.log(p / total) for p in row if p > 0))
    candidates = [n for n, row in enumerate(probabilities.tolist()) if max(row) > threshold]
    ranked = sorted(candidates, key=lambda n: (round(entropies[n] or 0, 9), -max(probabilities[n]), n))
    return entropies, threshold, ranked[: round(len(probabilities) * share)]


class TestSelection:
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
    @given(
        seed=st.integers(0, 2**32 - 1),
        n=st.sampled_from([1, 2, 63, 100, 257]),
        k=st.integers(2, 5),
        share=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
        quantile=st.sampled_from([0.3, 0.5, 0.95, 1.0]),
    )
    def test_is_the_formula(self, seed: int, n: int, k: int, share: float, quantile: float) -> None:
        # Tenths, so that ties and neurons that never fire are common.
        probabilities = np.random.default_rng(seed).integers(0, 11, (n, k)) / 10
        probabilities[:: max(1, n // 5)] = 0
        found = select_neurons(probabilities, share, quantile)
        entropies, threshold, _ = by_the_formula(probabilities, share, quantile)
        assert found.threshold == threshold
        for entropy, expected in zip(found.entropies.tolist(), entropies, strict=True):
            assert math.isnan(entropy) if expected is None else entropy == pytest.approx(expected, abs=1e-12)
        above = probabilities > threshold
        assert found.n_candidates == above.any(axis=1).sum()
        assert len(found.neurons) == len(set(found.neurons.tolist())) == min(found.n_candidates, round(n * share))
        assert np.array_equal(found.members, above[found.neurons])
        assert found.members.any(axis=1).all()
        chosen = found.entropies[found.neurons]
        assert (np.diff(chosen) >= 0).all()
        left = np.setdiff1d(np.flatnonzero(above.any(axis=1)), found.neurons)
        if len(left) and len(chosen):
            assert found.entropies[left].min() >= chosen.max()

    def test_selects_and_assigns_as_the_formula_does(self) -> None:
        probabilities = np.random.default_rng(3).random((500, 4))
        found = select_neurons(probabilities, 0.01, 0.9)
        assert found.neurons.tolist() == by_the_formula(probabilities, 0.01, 0.9)[2]
        assert len(found.neurons) == 5

    def test_ties_go_to_the_neuron_that_fires_more_and_then_to_the_earlier(self) -> None:
        probabilities = np.array([[0.5, 0], [0.9, 0], [0, 0.9], [0, 0], [0.3, 0.3], [0.9, 0]])
        found = select_neurons(probabilities, 4 / 6, 0.5)
        assert found.neurons.tolist() == [1, 2, 5, 0]
        assert found.members.tolist() == [[True, False], [False, True], [True, False], [True, False]]

    def test_the_threshold_is_a_probability_and_lies_below_strictly(self) -> None:
        # Of 40 probabilities the 38th smallest: two lie above it, and the one equal to it does not.
        probabilities = np.arange(40, dtype=np.float64).reshape(20, 2) / 40
        found = select_neurons(probabilities, 1.0)
        assert found.threshold == 37 / 40
        assert found.neurons.tolist() == [19]
        assert found.n_requested == 20

    def test_the_selected_are_one_percent_of_all_neurons(self) -> None:
        rng = np.random.default_rng(0)
        for n in (100, 149, 151, 2688, 10_000):
            assert len(select_neurons(rng.random((n, 6))).neurons) == round(n * 0.01)


class TestFinding:
    def test_warns_of_labels_with_few_or_no_tokens_and_of_too_few_candidates(self) -> None:
        capture, _, modality, language = plant()
        found = find_selectivity(capture, SelectivitySettings("language", share=1.0))
        n_en = int(((language == 0) & (modality != layout.SPECIAL)).sum())
        assert (
            f"Label 'en' has {n_en} tokens; fewer than {MIN_TOKENS:,} make its probabilities uncertain."
            in found.warnings
        )
        assert found.warnings[-1].startswith(f"Only {found.selection.n_candidates} neurons fire above the threshold")
        assert {n for flat in found.neurons.values() for n in flat.tolist()} == set(found.selection.neurons.tolist())
        assert found.firing.names(np.array([0, 4, 5, 44])) == ["L0.N0", "L0.N4", "L1.N0", "L1.N39"]

    def test_a_label_without_a_token_of_the_modality_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        capture, *_ = plant()
        whole = count_firing(capture, "language")
        empty = type(whole)(whole.labels, whole.n_tokens * [1, 0, 1], whole.positives * [1, 0, 1], whole.layers)
        monkeypatch.setattr(selectivity, "count_firing", lambda *_, **__: empty)
        found = find_selectivity(capture, SelectivitySettings("language", modality="image"))
        assert list(found.neurons) == ["en", "de"]
        assert found.warnings[0] == "Label 'fr' has no token to count, and is left out."

    def test_refuses_what_it_cannot_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        capture, *_ = plant()
        with pytest.raises(InvalidInputError, match=r"has no label 'domain'\. Its labels are: topic, language"):
            find_selectivity(capture, SelectivitySettings("domain"))
        for wrong, message in (
            ({"site": "mlp.up"}, "`site`"),
            ({"modality": "padding"}, "one of text, image, generated"),
            ({"share": 0.0}, "`share`"),
            ({"activation_quantile": 1.5}, "`activation_quantile`"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                SelectivitySettings("language", **wrong)  # type: ignore[arg-type]
        whole = count_firing(capture, "language")
        one = type(whole)(("en",), whole.n_tokens[:1], whole.positives[:, :1], whole.layers)
        monkeypatch.setattr(selectivity, "count_firing", lambda *_, **__: one)
        with pytest.raises(
            InvalidInputError, match=r"at least two values of a label, .* tokens for 'en' of 'language' only"
        ):
            find_selectivity(capture, SelectivitySettings("language"))

    def test_refuses_a_capture_that_is_not_complete(self) -> None:
        location = f"memory://{uuid.uuid4()}/store"
        planted_stores.plant(location, what=planted_stores.Planted(blocks=(0,), finish=False))
        capture = Store(location).capture()
        n_blocks = capture.record.plan.n_blocks
        with pytest.raises(
            InvalidInputError, match=f"1 of {n_blocks} blocks of 'corpus' are filled. Finish it with `resume=True`"
        ):
            find_selectivity(capture, SelectivitySettings("language"))

    def test_needs_neither_torch_nor_transformers(self, run_without: Callable[..., Any], tmp_path: Path) -> None:
        planted_stores.plant(tmp_path / "store")
        line = ("selectivity", "store", "--by", "language", "--share", "0.1", "--json")
        done = run_without(("transformers", "torch", "tokenizers"), line)
        assert done.returncode == 0, done.stderr
        assert '"labels": {"en": [' in done.stdout
