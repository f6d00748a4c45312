"""The plan: every token in one place, windows whole, little padding, the same bytes every time."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actstore.engine.capture.plan import (
    LOOKAHEAD_WINDOWS,
    PlanSettings,
    TextPlanner,
    Windower,
    batch_windows,
    block_size,
    pack_blocks,
    tokenise,
)
from actstore.engine.inputs.corpus import Document
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.capture.plan import Plan, PlannedWindow
from actstore.store.errors import InvalidInputError
from actstore.store.layout import PADDING, SLOT_MULTIPLE, SPECIAL, TEXT
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from actstore.store.files.records import PlanRecord


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> TextTokenizer:
    return TextTokenizer.load(str(tiny_model))


def id_documents(lengths: Iterable[int], labels: dict[str, str] | None = None) -> list[Document]:
    """Documents of token ids in which every token of the corpus has an id of its own."""
    documents, first = [], 0
    for i, n in enumerate(lengths):
        documents.append(Document(f"ids:{i}", ids=np.arange(first, first + n, dtype=np.int64), labels=labels or {}))
        first += n
    return documents


def window_of(length: int, n_kept: int | None = None) -> PlannedWindow:
    kept = np.arange(length if n_kept is None else n_kept, dtype=np.int32)
    return PlannedWindow(0, np.zeros(length, np.int32), kept, np.full(len(kept), TEXT, np.uint8), ())


def plan_of(
    folder: Path, documents: list[Document], plan_settings: PlanSettings, *, tokenizer: TextTokenizer | None = None,
    label_columns: tuple[str, ...] = (), n_vocabulary: int | None = None,
) -> tuple[Plan, PlanRecord]:  # fmt: skip
    opened = Folder(folder, read_only=False)
    planner = TextPlanner(plan_settings, "a test", tokenizer, n_vocabulary, label_columns)
    record = planner.write(iter(documents), opened, "corpus")
    return Plan(opened, "corpus", record), record


# Windows


@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=12),
    context=st.integers(2, 24),
    overlap=st.integers(0, 23),
)
@settings(deadline=None, max_examples=150)
def test_every_token_is_kept_exactly_once_and_overlap_is_reread(lengths: list[int], context: int, overlap: int) -> None:
    overlap %= context
    windower = Windower(PlanSettings(context=context, overlap=overlap), None)
    for document in id_documents(lengths):
        assert document.ids is not None
        windows = list(windower.windows(document.ids.astype(np.int32), 0, ()))
        kept = [w.ids[w.kept] for w in windows]
        np.testing.assert_array_equal(np.concatenate([*kept, []]), document.ids)
        for before, window in pairwise(windows):
            np.testing.assert_array_equal(window.ids[:overlap], before.ids[len(before.ids) - overlap :])
        assert all(1 <= len(w.ids) <= context for w in windows)
        assert all(len(w.ids) == context for w in windows[:-1]), "only the last window of a document may be short"


def test_a_document_longer_than_the_context_is_windowed_with_special_tokens_around_each_window(
    tokenizer: TextTokenizer,
) -> None:
    ids = np.arange(10, 40, dtype=np.int32)
    windows = list(Windower(PlanSettings(context=11), tokenizer).windows(ids, 3, (1,)))
    assert [len(w.ids) for w in windows] == [11, 11, 11]
    assert [int(w.ids[0]) for w in windows] == [0, 0, 0]
    np.testing.assert_array_equal(np.concatenate([w.ids[1:] for w in windows]), ids)
    assert all(w.modality.tolist() == [SPECIAL] + [TEXT] * 10 for w in windows)
    assert all((w.document, w.labels) == (3, (1,)) for w in windows)


@pytest.mark.parametrize(("begin", "first"), [("auto", 0), ("always", 0), ("never", 10)])
def test_begin_decides_on_the_special_tokens(tokenizer: TextTokenizer, begin: str, first: int) -> None:
    settings = PlanSettings(context=8, begin=begin)  # type: ignore[arg-type]
    (window,) = Windower(settings, tokenizer).windows(np.array([10, 11], np.int32), 0, ())
    assert window.ids[0] == first


class _Bare:
    """A tokenizer that adds nothing by itself and names a begin-of-text token."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    special_ids, begin = frozenset({7}), 7


class _Wrapping(_Bare):
    """An encoder's: class token before, separator after."""

    prefix, suffix, special_ids = (7,), (8,), frozenset({7, 8})


def test_begin_always_adds_the_token_that_the_tokenizer_leaves_out() -> None:
    settings = PlanSettings(context=8, begin="always")
    (window,) = Windower(settings, _Bare()).windows(np.array([10], np.int32), 0, ())  # type: ignore[arg-type]
    assert window.ids.tolist() == [7, 10]
    with pytest.raises(InvalidInputError, match='`begin="always"` needs a tokenizer that names a begin-of-text token'):
        Windower(settings, None)


def test_an_encoders_special_tokens_stand_on_both_sides_and_are_marked() -> None:
    windower = Windower(PlanSettings(context=6), _Wrapping())  # type: ignore[arg-type]
    first, second = windower.windows(np.arange(10, 16, dtype=np.int32), 0, ())
    assert (first.ids.tolist(), second.ids.tolist()) == ([7, 10, 11, 12, 13, 8], [7, 14, 15, 8])
    assert second.modality.tolist() == [SPECIAL, TEXT, TEXT, SPECIAL]


def test_special_tokens_inside_the_text_are_marked_special() -> None:
    windower = Windower(PlanSettings(context=6, begin="never"), _Wrapping())  # type: ignore[arg-type]
    (window,) = windower.windows(np.array([10, 8, 11], np.int32), 0, ())
    assert window.modality.tolist() == [TEXT, SPECIAL, TEXT]


def test_position_last_is_the_last_text_token_not_the_separator() -> None:
    windower = Windower(PlanSettings(context=6, positions="last"), _Wrapping())  # type: ignore[arg-type]
    windows = list(windower.windows(np.arange(10, 16, dtype=np.int32), 0, ()))
    assert [w.ids[w.kept].tolist() for w in windows] == [[13], [15]]


def test_positions_by_index_count_from_both_ends_and_may_miss_short_windows() -> None:
    windower = Windower(PlanSettings(context=4, positions="0,-1,3"), None)
    first, second = windower.windows(np.arange(6, dtype=np.int32), 0, ())
    assert (first.kept.tolist(), second.kept.tolist()) == ([0, 3], [0, 1])
    beyond = Windower(PlanSettings(context=4, positions="3"), None)
    assert [w.ids.tolist() for w in beyond.windows(np.arange(6, dtype=np.int32), 0, ())] == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, "at least 1 token, found a context of 0"),
        ({"context": 8, "overlap": 8}, r"between 0 and the context less one \(7\), found 8"),
        ({"context": 8, "overlap": -1}, "found -1"),
        ({"context": 8, "positions": "first"}, "found 'first'"),
        ({"context": 8, "block_slots": 100}, "multiples of 64 slots, found 100"),
        ({"context": 100, "block_slots": 64}, "up to 100 tokens, more than a block of 64 slots holds"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PlanSettings(**changes)  # type: ignore[arg-type]


def test_special_tokens_must_leave_room_for_text() -> None:
    with pytest.raises(
        InvalidInputError, match="leaves 1 for text after special tokens, which must exceed the overlap of 2"
    ):
        Windower(PlanSettings(context=3, overlap=2), _Wrapping())  # type: ignore[arg-type]


# Blocks and batches


@given(
    sizes=st.lists(st.integers(1, 64), max_size=300),
    block_slots=st.sampled_from([64, 128, 256]),
    batch_tokens=st.integers(1, 400),
    max_padding=st.sampled_from([0.0, 1 / 16, 0.5]),
)
@settings(deadline=None, max_examples=100)
def test_blocks_and_batches_hold_every_window_once_within_their_bounds(
    sizes: list[int], block_slots: int, batch_tokens: int, max_padding: float
) -> None:
    windows = [window_of(n) for n in sizes]
    blocks = list(pack_blocks(windows, block_slots))
    assert sorted(id(w) for block in blocks for w in block) == sorted(map(id, windows))
    for block in blocks:
        assert 0 < sum(len(w.kept) for w in block) <= block_slots
        batches = batch_windows(block, batch_tokens, max_padding)
        assert sorted(id(w) for batch in batches for w in batch) == sorted(map(id, block))
        for batch in batches:
            lengths = [len(w.ids) for w in batch]
            area = max(lengths) * len(batch)
            assert len(batch) == 1 or area <= batch_tokens
            assert area - sum(lengths) <= max_padding * area


def test_windows_move_forward_to_fill_a_block_but_never_past_the_lookahead() -> None:
    sizes = np.random.default_rng(0).integers(1, 513, 3000).tolist()
    windows = [window_of(n) for n in sizes]
    order = {id(w): i for i, w in enumerate(windows)}
    placed = [order[id(w)] for block in pack_blocks(windows, 4096) for w in block]
    earliness = np.array(placed) - np.arange(len(placed))
    assert earliness.max() <= LOOKAHEAD_WINDOWS
    assert earliness.max() > 0


@pytest.mark.parametrize("context", [128, 512, 1000])
def test_padding_wastes_under_two_percent_of_the_slots(context: int) -> None:
    random = np.random.default_rng(context)
    # Document lengths as corpora have them: many short, a few far longer than the context.
    lengths = np.minimum(np.exp(random.normal(5.0, 1.2, 4000)).astype(int) + 1, 50_000)
    windower = Windower(PlanSettings(context=context), None)
    windows = [w for n in lengths for w in windower.windows(np.zeros(n, np.int32), 0, ())]
    slots = block_size(context, 16_384)
    blocks = list(pack_blocks(windows, slots))[:-1]
    used = sum(len(w.kept) for block in blocks for w in block)
    assert len(blocks) > 40
    assert 1 - used / (len(blocks) * slots) < 0.02


@given(context=st.integers(1, 5000), target=st.integers(-100, 40_000), everywhere=st.booleans())
def test_a_block_takes_at_least_one_window_and_whole_bytes_of_sign_bits(
    context: int, target: int, everywhere: bool
) -> None:
    slots = block_size(context, target, stored_everywhere=everywhere)
    assert slots % SLOT_MULTIPLE == 0
    assert slots >= (context if everywhere else SLOT_MULTIPLE)
    assert not everywhere or slots <= max(2 * context, target + context) + SLOT_MULTIPLE


# The whole plan


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=10),
    context=st.integers(2, 40),
    overlap=st.integers(0, 39),
    target=st.sampled_from([64, 200]),
)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
def test_a_written_plan_gives_every_token_one_slot(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], context: int, overlap: int, target: int
) -> None:
    plan_settings = PlanSettings(context=context, overlap=overlap % context, block_slots=block_size(context, target))
    plan, record = plan_of(tmp_path_factory.mktemp("plan"), id_documents(lengths), plan_settings)
    ids, modality = plan.array("tokens/ids"), plan.array("tokens/modality")
    window, position = plan.array("tokens/window"), plan.array("tokens/position")
    assert len(ids) == record.n_blocks * record.block_slots
    used = modality != PADDING
    np.testing.assert_array_equal(np.sort(ids[used]), np.arange(sum(lengths)))
    assert set(ids[~used].tolist() + window[~used].tolist() + position[~used].tolist()) <= {-1}
    assert record.n_tokens == sum(lengths)
    inputs, windows = plan.array("inputs/ids"), plan.table("windows").to_pydict()
    for number, start, n, slot, n_slots in zip(
        *(windows[c] for c in ("window", "input_start", "n_inputs", "slot_start", "n_slots")), strict=True
    ):
        here = slice(slot, slot + n_slots)
        assert set(window[here].tolist()) == {number}
        np.testing.assert_array_equal(inputs[start : start + n][position[here]], ids[here])
        assert slot // record.block_slots == (slot + n_slots - 1) // record.block_slots, "a window lies in one block"
    assert plan.fingerprint() == record.fingerprint


def test_the_same_documents_give_the_same_plan_and_any_change_another(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    texts = [f"text number {i} " * (1 + i % 9) for i in range(50)]
    plan_settings = PlanSettings(context=16, block_slots=128)

    def fingerprint(name: str, texts: list[str], **changes: int) -> str:
        documents = [Document(f"t:{i}", text=text) for i, text in enumerate(texts)]
        settings = PlanSettings(**{**plan_settings.__dict__, **changes})
        return plan_of(tmp_path / name, documents, settings, tokenizer=tokenizer)[1].fingerprint

    first = fingerprint("a", texts)
    assert fingerprint("b", texts) == first
    assert fingerprint("c", [*texts[:-1], "another"]) != first
    assert fingerprint("d", texts, overlap=1) != first
    for name in ("inputs/ids", "tokens/ids", "tokens/window"):
        a, b = (sorted((tmp_path / x / "captures/corpus" / name).rglob("*")) for x in "ab")
        assert [p.read_bytes() for p in a if p.is_file()] == [p.read_bytes() for p in b if p.is_file()]


def test_labels_documents_and_windows_stand_in_the_tables(tmp_path: Path) -> None:
    documents = [
        Document("one", ids=np.arange(5), labels={"language": "en", "kind": "book"}),
        Document("two", ids=np.arange(40), labels={"language": "fr", "kind": "book"}),
        Document("three", ids=np.arange(3), labels={"language": "en"}),
    ]
    plan, record = plan_of(
        tmp_path, documents, PlanSettings(context=16, block_slots=64), label_columns=("language", "kind")
    )
    assert record.labels == (("language", "en"), ("kind", "book"), ("language", "fr"), ("kind", ""))
    table = plan.table("documents").to_pydict()
    assert table["source"] == ["one", "two", "three"]
    assert table["language"] == ["en", "fr", "en"]
    assert table["kind"] == ["book", "book", ""]
    assert table["n_tokens"] == [5, 40, 3]
    assert table["sha256"] == [d.sha256 for d in documents]
    windows = plan.table("windows").to_pydict()
    labels_of = dict(zip(windows["document"], windows["labels"], strict=True))
    assert labels_of == {0: [0, 1], 1: [2, 1], 2: [0, 3]}
    assert plan.block(0).labels.shape == (len(windows["window"]), 2)


def test_ids_corpora_need_no_tokenizer_and_must_fit_the_vocabulary(tmp_path: Path) -> None:
    plan, record = plan_of(tmp_path / "a", id_documents([20]), PlanSettings(context=8, block_slots=64), n_vocabulary=20)
    np.testing.assert_array_equal(plan.array("inputs/ids"), np.sort(plan.array("inputs/ids")))
    assert plan.fingerprint() == record.fingerprint
    with pytest.raises(InvalidInputError, match="below the model's vocabulary of 19, found 19 in ids:0"):
        plan_of(tmp_path / "b", id_documents([20]), PlanSettings(context=8, block_slots=64), n_vocabulary=19)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(InvalidInputError, match="Name one with `tokenizer`"):
        list(tokenise([Document("t", text="words")], None))


def test_tokenise_keeps_the_order_of_text_and_ids_mixed(tokenizer: TextTokenizer) -> None:
    documents = [Document(str(i), text="one two") if i % 3 else Document(str(i), ids=np.array([i])) for i in range(200)]
    found = list(tokenise(documents, tokenizer))
    assert [d.source for d, _ in found] == [str(i) for i in range(200)]
    (expected,) = tokenizer.encode(["one two"])
    assert all(ids.tolist() == (expected.tolist() if int(d.source) % 3 else [int(d.source)]) for d, ids in found)


def test_max_tokens_stops_after_the_window_that_reaches_it(tmp_path: Path) -> None:
    settings = PlanSettings(context=8, block_slots=64, max_tokens=20)
    _, record = plan_of(tmp_path, id_documents([10, 10, 10, 10]), settings)
    assert (record.n_tokens, record.n_documents) == (20, 2)
    settings = PlanSettings(context=8, block_slots=64, max_tokens=11)
    _, record = plan_of(tmp_path, id_documents([10, 10, 10, 10]), settings)
    assert (record.n_tokens, record.n_documents) == (18, 2), "windows stay whole"


def test_a_corpus_without_a_token_to_store_is_refused_and_leaves_no_table(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds no token to store"):
        plan_of(tmp_path, id_documents([3, 3]), PlanSettings(context=8, block_slots=64, positions="7"))
    assert not list(tmp_path.rglob("*.parquet*"))


def test_a_column_with_too_many_values_is_no_label(tmp_path: Path) -> None:
    documents = [Document(str(i), ids=np.arange(2), labels={"id": str(i)}) for i in range(1100)]
    with pytest.raises(InvalidInputError, match="at most 1024 distinct values, and 'id' has more"):
        plan_of(tmp_path, documents, PlanSettings(context=8, block_slots=64), label_columns=("id",))


def test_reserved_columns_cannot_be_labels(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be called 'source'"):
        plan_of(tmp_path, id_documents([3]), PlanSettings(context=8, block_slots=64), label_columns=("source",))
