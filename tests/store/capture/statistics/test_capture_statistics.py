import dataclasses

import numpy as np
import pytest
from numcodecs import Zstd

from actstore.kernels.pack.statistics import HISTOGRAM_EDGES
from actstore.store.capture.commits import committed_blocks
from actstore.store.capture.statistics import capture_statistics
from actstore.store.capture.statistics import running as running_statistics
from actstore.store.capture.statistics.capture_statistics import (
    CaptureStatistics,
    is_finished,
    sum_statistics,
)
from actstore.store.capture.statistics.neuron_table import QUANTILES, neuron_table, write_finished
from actstore.store.capture.statistics.running import RunningStatistics
from actstore.store.errors import FormatError
from actstore.store.files.plain_arrays import write_array
from actstore.store.files.records import CommitRecord
from actstore.store.layout import block_statistics_key, commit_key, folded_statistics_key
from actstore.store.reader import Store, read_capture
from actstore.store.storage.folder import Folder


def commit_record(record, number, seconds=0.0):
    stated = {"plan": record.plan.fingerprint, "model": record.model_fingerprint, "identity": record.identity}
    return CommitRecord(number, {}, seconds, capture=record.name, **stated).with_checksum()


def commit(folder, record, number, block):
    folder.write(block_statistics_key(record.name, number), block.encode())
    folder.write_json(commit_key(record.name, number), commit_record(record, number).to_json())


def plain_sum(record, blocks):
    total = CaptureStatistics.empty(record)
    for block in blocks:
        total.merge(block)
    return total


def same(a, b):
    return a.encode() == b.encode()


@pytest.fixture
def folder(somewhere):
    return Folder(somewhere, read_only=False)


def test_encoding_keeps_every_bit(record, statistics_of):
    original = statistics_of(1)
    original.sites["mlp.post", 0].mean[0] = np.nextafter(0.1, 1)
    original.sites["mlp.post", 0].minimum[1] = -np.inf
    decoded, n_blocks = CaptureStatistics.decode(original.encode(7), record, "here")
    assert n_blocks == 7
    for (site, layer), found in decoded.sites.items():
        for name, array in found.arrays().items():
            expected = original.sites[site, layer].arrays()[name]
            assert array.dtype == expected.dtype, name
            assert array.tobytes() == expected.tobytes(), name
    for layer, positives in decoded.gate_positives.items():
        np.testing.assert_array_equal(positives, original.gate_positives[layer])
    np.testing.assert_array_equal(decoded.label_tokens, original.label_tokens)


def test_what_was_decoded_can_be_added_to(record, statistics_of):
    decoded, _ = CaptureStatistics.decode(statistics_of(1).encode(), record, "here")
    decoded.merge(statistics_of(2))
    assert same(decoded, plain_sum(record, [statistics_of(1), statistics_of(2)]))


def test_damage_is_named(record, statistics_of):
    data = statistics_of(1).encode()
    rng = np.random.default_rng(0)
    for at in [*range(20), *rng.integers(0, len(data), 150).tolist()]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            decoded, _ = CaptureStatistics.decode(bytes(damaged), record, "S/blocks/3")
        except FormatError as error:
            assert "The statistics S/blocks/3 are damaged" in str(error)  # noqa: PT017
        else:  # a bit that says nothing, such as a reserved one
            assert same(decoded, statistics_of(1)), f"byte {at} changed numbers without a word"
    for cut in (data[: len(data) // 2], b"", bytes(Zstd().encode(b"nothing"))):
        with pytest.raises(FormatError, match="are damaged"):
            CaptureStatistics.decode(cut, record, "S/blocks/3")


@pytest.mark.parametrize("interrupted_after", [0, 2, 3, 4, 7, 10])
def test_checkpoints_change_no_bit(folder, record, statistics_of, monkeypatch, interrupted_after):
    """A killed and resumed run ends with the bits of an undisturbed one, wherever it was killed."""
    monkeypatch.setattr(running_statistics, "CHECKPOINT_BLOCKS", 3)
    blocks = [statistics_of(seed) for seed in range(10)]
    running = RunningStatistics(folder, record)
    for number in range(10):
        if number == interrupted_after:
            running = RunningStatistics(folder, record)
            assert running.n_blocks == number // 3 * 3
        commit(folder, record, number, blocks[number])
        running.advance(checkpoint=True)
        assert running.n_blocks == number + 1
    assert same(running.total, plain_sum(record, blocks))
    checkpoint = RunningStatistics(folder, record)
    assert checkpoint.n_blocks == 9
    checkpoint.advance()
    assert same(checkpoint.total, running.total)


def test_blocks_are_added_in_their_order(folder, record, statistics_of):
    """Whatever order they are committed in: floating point sums depend on it."""
    blocks = [statistics_of(seed) for seed in range(5)]
    running = RunningStatistics(folder, record)
    added = []
    for number in (3, 0, 4, 2, 1):
        commit(folder, record, number, blocks[number])
        running.advance(checkpoint=True)
        added.append(running.n_blocks)
    assert added == [0, 1, 1, 1, 5]
    assert same(running.total, plain_sum(record, blocks))


@pytest.mark.parametrize(
    ("order", "resumed_after", "added", "read"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7), None, [1, 2, 3, 4, 5, 6, 7, 8], []),
        ((0, 1, 2, 3, 4, 5, 6, 7), 5, [1, 2, 3, 4, 5, 6, 7, 8], [3, 4]),
        ((3, 0, 4, 2, 1, 5, 6, 7), None, [0, 1, 1, 1, 2, 6, 7, 8], [2, 3, 4]),
        ((0, 2, 3, 4, 6, 7, 1, 5), None, [1, 1, 1, 1, 1, 1, 2, 6], [2, 3, 4]),
    ],
)
def test_blocks_at_hand_are_added_as_those_that_are_read(
    folder, record, statistics_of, monkeypatch, order, resumed_after, added, read
):
    """Bit for bit, checkpoints too; only a run that is resumed, or in another order, reads what it has not got at hand."""
    monkeypatch.setattr(running_statistics, "CHECKPOINT_BLOCKS", 3)
    blocks, found_read = [statistics_of(seed) for seed in range(8)], []
    read_block = running_statistics.read_block_statistics
    monkeypatch.setattr(
        running_statistics, "read_block_statistics", lambda *where: found_read.append(where[-1]) or read_block(*where)
    )
    running, found = RunningStatistics(folder, record), []
    for n_committed, number in enumerate(order):
        if n_committed == resumed_after:
            running = RunningStatistics(folder, record)
        commit(folder, record, number, blocks[number])
        running.add(commit_record(record, number), blocks[number].narrowed())
        found.append(running.n_blocks)
    assert (found, found_read) == (added, read)
    running.advance(checkpoint=True)
    assert same(running.total, plain_sum(record, blocks))
    by_reading = folder.read(folded_statistics_key(record.name))
    folder.delete(folded_statistics_key(record.name))
    RunningStatistics(folder, record).advance(checkpoint=True)
    assert by_reading == folder.read(folded_statistics_key(record.name))


@pytest.mark.parametrize("committed", [(), (0,), (1,), (0, 2), (1, 2), (0, 1, 3), (2, 3), (0, 1, 2, 3)])
def test_a_sum_with_holes(folder, record, statistics_of, committed):
    blocks = {number: statistics_of(number) for number in committed}
    for number, block in blocks.items():
        commit(folder, record, number, block)
    assert same(sum_statistics(folder, record), plain_sum(record, blocks.values()))


def test_a_block_committed_while_summing_is_added_the_next_time(folder, record, statistics_of, monkeypatch):
    """A reader beside a writer: the list of blocks grows between two looks at it."""
    blocks = [statistics_of(number) for number in range(3)]
    commit(folder, record, 0, blocks[0])
    read = capture_statistics.read_block_statistics

    def read_then_commit(folder, record, block):
        for number in (1, 2):
            commit(folder, record, number, blocks[number])
        return read(folder, record, block)

    monkeypatch.setattr(capture_statistics, "read_block_statistics", read_then_commit)
    assert same(sum_statistics(folder, record), plain_sum(record, blocks[:1]))
    assert same(sum_statistics(folder, record), plain_sum(record, blocks))
    assert same(sum_statistics(folder, record, (0, 2)), plain_sum(record, [blocks[0], blocks[2]]))


def test_a_checkpoint_of_a_block_taken_away_is_not_used(folder, record, statistics_of, monkeypatch):
    monkeypatch.setattr(running_statistics, "CHECKPOINT_BLOCKS", 2)
    blocks = [statistics_of(number) for number in range(3)]
    for number, block in enumerate(blocks):
        commit(folder, record, number, block)
    RunningStatistics(folder, record).advance(checkpoint=True)
    assert folder.exists(folded_statistics_key(record.name))
    folder.delete(commit_key(record.name, 1))
    assert same(sum_statistics(folder, record), plain_sum(record, [blocks[0], blocks[2]]))


def test_finished_statistics_round_trip(folder, record, statistics_of):
    blocks = [statistics_of(number) for number in range(record.plan.n_blocks)]
    for number, block in enumerate(blocks):
        commit(folder, record, number, block)
    total = plain_sum(record, blocks)
    assert not is_finished(folder, record)
    write_finished(folder, record, total)
    assert is_finished(folder, record)
    for number in range(record.plan.n_blocks):
        folder.delete(block_statistics_key(record.name, number))  # only the finished arrays are left to read
    assert same(sum_statistics(folder, record), total)


def test_finished_statistics_stand_only_for_all_blocks(folder, record, statistics_of):
    blocks = [statistics_of(number) for number in range(record.plan.n_blocks)]
    for number, block in enumerate(blocks):
        commit(folder, record, number, block)
    write_finished(folder, record, plain_sum(record, blocks))
    folder.delete(commit_key(record.name, 0))
    assert not is_finished(folder, record)
    assert same(sum_statistics(folder, record), plain_sum(record, blocks[1:]))


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize(
    "name", ["mean", "minimum", "count", "non_finite", "histogram", "positives", "exemplar_tokens"]
)
def test_a_missing_chunk_of_finished_statistics_is_an_error(folder, record, statistics_of, name, has_checksums):
    """Also of exemplars' tokens, which may be -1 throughout, and where an earlier version wrote no checksums."""
    finish(folder, record, statistics_of)
    key = f"captures/{record.name}/statistics/mlp.post/{name}"
    if not has_checksums:
        metadata = folder.read_json(f"{key}/zarr.json")
        del metadata["attributes"]["checksums"], metadata["attributes"]["digest"]
        folder.write_json(f"{key}/zarr.json", metadata)
        sum_statistics(folder, record)
    (chunk,) = [file for file, _ in folder.sizes(f"{key}/c")]
    folder.delete(chunk)
    with pytest.raises(FormatError, match=rf"statistics of capture 'corpus' of .* are damaged: .*{name}"):
        sum_statistics(folder, record)


def finish(folder, record, statistics_of):
    """Commit every block, and write the finished statistics."""
    blocks = [statistics_of(number) for number in range(record.plan.n_blocks)]
    for number, block in enumerate(blocks):
        commit(folder, record, number, block)
    write_finished(folder, record, plain_sum(record, blocks))


@pytest.mark.parametrize("file", ["mean", "m2"])
def test_finished_statistics_of_another_capture_are_an_error(folder, record, statistics_of, file):
    """They are whole and of the same shape; also in the place of another statistic of the same capture."""
    record = dataclasses.replace(record, identity="1" * 32)
    finish(folder, record, statistics_of)
    sum_statistics(folder, record)
    key = f"captures/{record.name}/statistics/mlp.post/{file}"
    other = dataclasses.replace(record, identity="2" * 32) if file == "mean" else record
    write_array(folder, key.replace("m2", "mean"), np.zeros(45), ("neuron",), identity=other.identity)
    if file == "m2":
        for name in ("zarr.json", "c/0"):
            folder.write(f"{key}/{name}", folder.read(f"{key.replace('m2', 'mean')}/{name}"))
    with pytest.raises(FormatError, match=rf"are damaged: .*{file} is damaged: its metadata"):
        sum_statistics(folder, record)


@pytest.mark.parametrize("damage", ["recommitted", "another capture's", "flipped", "cut", "of an earlier version"])
def test_a_stale_or_damaged_checkpoint_is_not_used(folder, record, statistics_of, monkeypatch, damage):
    monkeypatch.setattr(running_statistics, "CHECKPOINT_BLOCKS", 2)
    record = dataclasses.replace(record, identity="1" * 32)
    blocks = [statistics_of(number) for number in range(3)]
    writer = dataclasses.replace(record, identity="2" * 32) if damage == "another capture's" else record
    for number, block in enumerate(blocks):
        commit(folder, writer, number, block)
    RunningStatistics(folder, writer).advance(checkpoint=True)
    for number, block in enumerate(blocks):
        commit(folder, record, number, block)
    key = folded_statistics_key(record.name)
    data = folder.read(key)
    if damage == "recommitted":  # by another device, say, whose sums differ
        blocks[1] = statistics_of(7)
        folder.write(block_statistics_key(record.name, 1), blocks[1].encode())
        folder.write_json(commit_key(record.name, 1), commit_record(record, 1, seconds=1.0).to_json())
    elif damage == "flipped":
        folder.write(key, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "cut":
        folder.write(key, data[:100])
    elif damage == "of an earlier version":
        folder.write(key, plain_sum(record, blocks[1:]).encode(2))
    assert RunningStatistics(folder, record).n_blocks == 0
    assert same(sum_statistics(folder, record), plain_sum(record, blocks))


def test_damaged_finished_statistics_are_named(folder, record, statistics_of):
    blocks = [statistics_of(number) for number in range(record.plan.n_blocks)]
    for number, block in enumerate(blocks):
        commit(folder, record, number, block)
    write_finished(folder, record, plain_sum(record, blocks))
    folder.delete(f"captures/{record.name}/statistics/mlp.post/m2")
    with pytest.raises(FormatError, match=r"statistics of capture 'corpus' of .* are damaged: .*m2"):
        sum_statistics(folder, record)


# The table of neurons, against numpy on the values themselves.


def read_table(path):
    capture = Store(path).capture()
    return capture, neuron_table(capture.record, capture.statistics())


def odd(values, layer):
    """Values with what needs care: NaN, infinities, a neuron without any finite value, a constant one, huge ones."""
    values = values.copy()
    values[0, ::5] = np.nan
    values[1, 3], values[1, 40] = np.inf, -np.inf
    values[2] = np.nan
    values[3] = -2.5
    values[4] *= 1e5
    return values


@pytest.mark.parametrize("change", [lambda values, layer: values, odd], ids=["ordinary", "odd"])
def test_the_table_says_what_numpy_says(somewhere, planting, change):
    planting(somewhere, values=change)
    capture, table = read_table(somewhere)
    tokens, documents = capture.tokens(), capture.documents()
    counted = np.array([m != "special" for m in tokens["modality"].to_pylist()])
    language = documents["language"].to_numpy()[tokens["document"].to_numpy()]
    assert table.num_rows == 45
    for row in table.to_pylist():
        values = capture.activations(row["layer"], row["neuron"])
        finite = counted & np.isfinite(values)
        kept = values[finite].astype(np.float64)
        assert (row["name"], row["site"]) == (f"L{row['layer']}.N{row['neuron']}", "mlp.post")
        assert row["count"] == len(kept)
        assert row["non_finite"] == counted.sum() - len(kept)
        if not len(kept):
            assert {
                row[name]
                for name in ("mean", "std", "min", "max", "q50", "quantile_error", "positive", "top_value", "top_token")
            } == {None}
            continue
        np.testing.assert_allclose(row["mean"], kept.mean(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(row["std"], kept.std(), rtol=1e-9, atol=1e-9)
        assert (row["min"], row["max"]) == (kept.min(), kept.max())
        assert row["positive"] == (kept > 0).mean()
        for label in ("en", "fr"):
            here = finite & (language == label)
            expected = (values[here] > 0).sum() / (counted & (language == label)).sum()
            assert dict(row["positive_by_label"])[f"language={label}"] == expected
        for q in QUANTILES:
            true, estimate = np.quantile(kept, q, method="inverted_cdf"), row[f"q{round(q * 100):02d}"]
            bin_ = np.searchsorted(HISTOGRAM_EDGES, true, side="right" if true >= 0 else "left") - 1
            assert HISTOGRAM_EDGES[bin_] <= estimate <= HISTOGRAM_EDGES[bin_ + 1]
            assert kept.min() <= estimate <= kept.max()
            assert abs(true - estimate) <= row["quantile_error"] <= HISTOGRAM_EDGES[-2] + abs(kept).max()
        best = np.flatnonzero(finite)[kept.argmax()]
        assert (row["top_value"], row["top_token"]) == (kept.max(), tokens["token"][int(best)].as_py())


def test_gates_are_counted_by_label(somewhere, planting):
    planting(somewhere)
    capture, table = read_table(somewhere)
    tokens, documents = capture.tokens(), capture.documents()
    counted = np.array([m != "special" for m in tokens["modality"].to_pylist()])
    french = documents["language"].to_numpy()[tokens["document"].to_numpy()] == "fr"
    for row in table.to_pylist():
        opened = capture.activations(row["layer"], row["neuron"]) < 0  # as planted
        assert row["gate_positive"] == opened[counted].mean()
        assert dict(row["gate_positive_by_label"])["language=fr"] == opened[counted & french].mean()


def test_without_gates_and_exemplars_the_columns_are_null(somewhere, planting):
    planting(somewhere, gate_sign=False, n_exemplars=0)
    _, table = read_table(somewhere)
    for name in ("gate_positive", "gate_positive_by_label", "top_token", "top_value"):
        assert table[name].null_count == table.num_rows, name


def test_the_finished_table_is_the_same(somewhere, planting):
    planting(somewhere, values=odd)
    capture, table = read_table(somewhere)
    assert is_finished(capture.folder, capture.record)
    assert capture.neurons().equals(table)


def test_an_unfinished_capture_has_a_table(somewhere, planting):
    planting(somewhere, blocks=(0, 2), finish=False)
    folder = Folder(somewhere)
    assert committed_blocks(folder, "corpus") == [0, 2]
    assert not is_finished(folder, read_capture(folder, "corpus"))
    capture = Store(folder).capture()
    (row,) = [r for r in capture.neurons().to_pylist() if r["name"] == "L0.N2"]
    counted = np.array([m != "special" for m in capture.tokens()["modality"].to_pylist()])
    values = capture.activations(0, 2)[counted].astype(np.float64)
    assert row["count"] == len(values)
    np.testing.assert_allclose(row["mean"], values.mean(), rtol=1e-12)
