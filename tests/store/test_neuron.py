import numpy as np
import pytest

from actstore.kernels.pack.statistics import HISTOGRAM_EDGES
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.neuron import EXEMPLARS
from actstore.store.reader import Store


def by_hand(capture, row):
    """(value, slot) of every window's best counted, finite token: descending, ties to the earlier token."""
    tokens = capture.tokens()
    slots, windows = tokens["token"].to_numpy(), tokens["window"].to_numpy()
    fit = np.isfinite(row) & (np.array(tokens["modality"].to_pylist()) != "special")
    best = []
    for window in np.unique(windows):
        here = np.flatnonzero(fit & (windows == window))
        if len(here):
            at = here[row[here].argmax()]
            best.append((-float(row[at]), int(slots[at])))
    return [(-value, slot) for value, slot in sorted(best)]


def pairs(table):
    return list(zip(table["value"].to_pylist(), table["slot"].to_pylist(), strict=True))


def awkward(values, layer):
    """Ties within a window, across windows and blocks; a special token that is highest; no value, infinite values."""
    values = np.round(values, 1)
    values[0] = 1
    values[1, [0, 20, 50]] = 99  # the first tokens of the first three windows are special
    values[2, ::2] = np.nan
    values[3, 5], values[3, 6] = np.inf, -np.inf
    values[4] = np.nan
    return values


@pytest.mark.parametrize("change", [lambda values, layer: values, awkward], ids=["ordinary", "awkward"])
@pytest.mark.parametrize("n_exemplars", [0, 3, 20])
def test_exemplars_are_the_best_of_each_window(somewhere, planting, change, n_exemplars):
    """However many were recorded: what is found beyond them is what recording more would have given."""
    planting(somewhere, values=change, n_exemplars=n_exemplars)
    store = Store(somewhere)
    capture = store.capture()
    for neuron in range(5):
        expected = by_hand(capture, capture.activations(0, neuron))
        for k in (1, 4, 50):
            assert pairs(store.neuron(0, neuron).exemplars(k)) == expected[:k], f"neuron {neuron}, k {k}"


@pytest.mark.parametrize("precision", ["half", "int8", "sparse"])
def test_what_is_recorded_comes_first_and_exact(somewhere, planting, precision):
    """Stored values are rounded or dropped, recorded ones are not: asking for more must not change the first."""
    planting(f"{somewhere}/exact", n_exemplars=3)
    planting(f"{somewhere}/lossy", n_exemplars=3, precision=precision)
    exact, lossy = Store(f"{somewhere}/exact"), Store(f"{somewhere}/lossy")
    for neuron in range(4):
        expected = pairs(exact.neuron(1, neuron).exemplars(3))
        assert pairs(lossy.neuron(1, neuron).exemplars(3)) == expected
        table = lossy.neuron(1, neuron).exemplars(50)
        found, windows = pairs(table), table["window"].to_pylist()
        assert found[:3] == expected
        assert len(set(windows)) == len(windows)
        assert [value for value, _ in found[3:]] == sorted((value for value, _ in found[3:]), reverse=True)
        if precision == "sparse":
            assert all(value != 0 for value, _ in found), "a dropped value is not known to be 0"


def test_an_exemplar_tells_where_it_comes_from(planted):
    store, values = planted
    capture = store.capture()
    tokens, windows = capture.tokens().to_pylist(), capture.windows().to_pylist()
    inputs = capture.plan.array("inputs/ids")
    place = {row["token"]: i for i, row in enumerate(tokens)}
    for layer in (0, 1):
        for row in store.neuron(layer, 2).exemplars(6, context=4).to_pylist():
            i = place[row["slot"]]
            window = windows[row["window"]]
            ids = inputs[window["input_start"] : window["input_start"] + window["n_inputs"]]
            first, last = max(0, row["position"] - 4), min(len(ids), row["position"] + 5)
            assert row["value"] == values[layer][2][i]
            assert (row["window"], row["position"], row["document"]) == tuple(
                tokens[i][name] for name in ("window", "position", "document")
            )
            assert row["source"] == f"corpus.jsonl:{row['document'] + 1}"
            assert row["token"] == f" w{tokens[i]['id']}"
            assert row["tokens"] == [f" w{t}" for t in ids[first:last]]
            assert row["text"] == "".join(row["tokens"])
            assert row["tokens"][row["pivot"]] == row["token"]
            # Every token of a window is stored here, so the window's values lie side by side.
            start = i - row["position"]
            assert row["activations"] == values[layer][2][start + first : start + last].tolist()


def test_context_ends_with_the_window(planted):
    """What another window holds was not read by the model at that token."""
    store, _ = planted
    lengths = (20, 30, 14, 40, 24, 7)
    for row in store.neuron(1, 2).exemplars(6, context=1000).to_pylist():
        assert len(row["tokens"]) == len(row["activations"]) == lengths[row["window"]]
        assert row["pivot"] == row["position"]
    for row in store.neuron(1, 2).exemplars(6, context=0).to_pylist():
        assert row["tokens"] == [row["token"]]
        assert row["activations"] == [row["value"]]


def test_tokens_that_are_not_stored_have_no_activation(somewhere, planting):
    values = planting(somewhere, kept=lambda n: np.array([n // 2, n - 1], np.int32))
    store = Store(somewhere)
    for row in store.neuron(0, 1).exemplars(6, context=100).to_pylist():
        n = len(row["tokens"])
        kept = {n // 2, n - 1}
        assert row["position"] in kept
        assert {at for at, value in enumerate(row["activations"]) if value is not None} == kept
        mine = values[0][1][2 * row["window"] : 2 * row["window"] + 2].tolist()
        assert [row["activations"][at] for at in sorted(kept)] == mine
        assert row["value"] == max(mine)


def test_last_positions_are_their_windows_exemplars(captured):
    table = captured.neuron(0, 3).exemplars(100, "in-int8", context=8)
    capture = captured.capture("in-int8")
    assert table.num_rows == capture.record.plan.n_windows
    n_inputs = capture.windows()["n_inputs"].to_numpy()
    for row in table.to_pylist():
        assert row["position"] == n_inputs[row["window"]] - 1
        assert row["pivot"] == len(row["tokens"]) - 1
        assert [value is not None for value in row["activations"]] == [False] * row["pivot"] + [True]


def test_special_tokens_are_no_exemplars(captured):
    for neuron in range(0, 24, 5):
        table = captured.neuron(1, neuron).exemplars(100, "corpus")
        assert min(table["position"].to_pylist()) > 0
        assert "<s>" not in set(table["token"].to_pylist())


def test_text_is_text_again(captured, corpus):
    import json

    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()[:30]]
    for row in captured.neuron(0, 0).exemplars(5, "corpus", context=3).to_pylist():
        assert row["text"].removeprefix("<s>").strip("\N{REPLACEMENT CHARACTER}") in texts[row["document"]]


def test_an_experts_holes_have_no_activation(somewhere, planting):
    def holes(values, layer):
        values = values.copy()
        values[:, 3::4] = np.nan
        return values

    planting(somewhere, values=holes)
    for row in Store(somewhere).neuron(0, 0).exemplars(20, context=6).to_pylist():
        assert row["activations"][row["pivot"]] == row["value"]
        assert None in row["activations"]
        assert not any(value != value for value in row["activations"] if value is not None)


def test_histogram_counts_every_counted_value(planted):
    store, values = planted
    special = np.array(store.capture().tokens()["modality"].to_pylist()) == "special"
    counts, edges = store.neuron(1, 9).histogram()
    np.testing.assert_array_equal(edges, HISTOGRAM_EDGES)
    row = values[1][9][~special]
    positive = row[row > 0]
    at = np.searchsorted(edges, positive, side="right") - 1
    assert counts.sum() == len(row)
    np.testing.assert_array_equal(counts[50:], np.bincount(at, minlength=len(counts))[50:])


def test_statistics_are_the_row_of_the_table(planted):
    store, _ = planted
    (row,) = [row for row in store.neurons().to_pylist() if row["name"] == "L1.N17"]
    assert store.neuron("L1.N17").statistics() == row


def test_the_schema_is_kept_even_without_exemplars(somewhere, planting):
    planting(somewhere, values=lambda values, layer: values * np.nan)
    table = Store(somewhere).neuron(0, 0).exemplars(5)
    assert table.num_rows == 0
    assert table.schema.equals(EXEMPLARS)


def test_bad_questions(planted_path):
    store = Store(planted_path[0])
    with pytest.raises(InvalidInputError, match="At least one exemplar must be asked for, found 0"):
        store.neuron(0, 0).exemplars(0)
    with pytest.raises(InvalidInputError, match=r'store\.neuron\(3, 17\), store\.neuron\("L3\.N17"\)'):
        store.neuron(3)


def test_without_a_block_there_are_no_exemplars(planting, tmp_path):
    planting(tmp_path / "store", "corpus", blocks=(), finish=False, n_exemplars=0)
    assert Store(tmp_path / "store").neuron(1, 3).exemplars(5).num_rows == 0


def test_excerpts_are_the_text_around_any_token(planted):
    store, _ = planted
    neuron, capture = store.neuron(0, 1), store.capture()
    exemplars = neuron.exemplars(3, context=5)
    assert neuron.excerpts(exemplars["slot"].to_pylist(), context=5) == exemplars
    slots, values = capture.tokens()["token"].to_pylist(), neuron.activations()
    found = neuron.excerpts([slots[-1], slots[3]], context=2).to_pylist()
    assert [row["slot"] for row in found] == [slots[-1], slots[3]]
    assert [row["value"] for row in found] == [pytest.approx(values[-1]), pytest.approx(values[3])]


def test_excerpts_need_values_and_tokens_that_are_there(somewhere, planting, planted):
    for token in (-1, 10**9):
        with pytest.raises(NotFoundError, match="has no token"):
            planted[0].neuron(0, 1).excerpts([token])
    planting(somewhere, precision="none")
    with pytest.raises(InvalidInputError, match="precision none"):
        Store(somewhere).neuron(0, 1).excerpts([0])
