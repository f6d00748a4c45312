"""The pages' documents say what commands say, and what a store lacks is said in a sentence."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import actstore
from actstore.explorer.pages.documents import NEURONS
from actstore.explorer.pages.numbers import packed, short
from actstore.explorer.pages.table import LANES, PAGES, Address
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import SPECIAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Result  # type: ignore[import-not-found]

    Cli = Callable[..., Result]
    PageOf = Callable[..., dict[str, Any]]


def numbers_of(document: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(document["values"]), "<f4")


def close(found: Any, expected: Any) -> bool:
    """The same document, but for the digits that pages leave out."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == (pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected)


def test_numbers_are_short_and_nothing_is_infinite() -> None:
    assert short({"a": [1.23456789, float("nan"), float("inf"), 3, True, None], "b": ("x", 1e-9)}) == {
        "a": [1.2346, None, None, 3, True, None],
        "b": ["x", 1e-9],
    }
    assert np.frombuffer(base64.b64decode(packed(np.array([1.5, np.nan]))), "<f4").tolist()[0] == 1.5


def test_the_store_is_described_as_by_info(text: actstore.Store, page: PageOf, cli: Cli) -> None:
    found, told = page(text, "store"), cli("info", text.folder, "--json").json
    assert {name: found[name] for name in told if name != "captures"} == {n: told[n] for n in told if n != "captures"}
    for name, capture in told["captures"].items():
        assert {key: found["captures"][name][key] for key in capture} == capture
    assert found["captures"]["questions"]["questions"]
    assert not found["captures"]["statistics"]["keeps_values"]
    assert found["graphs"][0] == "graphs"
    assert "boost" in found["edits"]


def test_a_neuron_is_as_top_prints_it(text: actstore.Store, page: PageOf, cli: Cli) -> None:
    found = page(text, "neuron/corpus/mlp.post/L1.N3")
    told = cli("top", text.folder, "L1.N3", "--capture", "corpus", "-k", 20, "--json").json
    assert close(found["exemplars"], told["exemplars"])
    statistics = {
        k: v for k, v in told["statistics"].items() if k not in ("positive_by_label", "gate_positive_by_label")
    }
    assert close(found["statistics"], statistics)
    shares = dict(told["statistics"]["positive_by_label"])
    languages = [{"value": value, "share": shares[f"language={value}"]} for value in ("en", "fr", "py")]
    assert close(found["labels"], [{"label": "language", "values": languages}])
    assert sum(one["count"] for one in found["histogram"]) == found["statistics"]["count"]
    assert (found["before"], found["after"]) == ("L1.N2", "L1.N4")
    assert page(text, "neuron/corpus/mlp.post/L1.N0")["before"] == "L0.N11"
    assert page(text, "neuron/corpus/mlp.post/L1.N11")["after"] is None


def test_promoted_tokens_are_those_of_the_weights(text: actstore.Store, page: PageOf) -> None:
    writes = page(text, "neuron/corpus/mlp.post/L1.N3")["writes"]
    row = text.sql("select * from model where name = 'L1.N3'").to_pylist()[0]
    assert [one["text"] for one in writes["promoted"]] == row["top_texts"]
    assert [one["token"] for one in writes["suppressed"]] == row["bottom_tokens"]
    assert "residual" in page(text, "neuron/corpus/resid.post/L1.N3")["writes"]["reason"]


def test_edits_name_their_neurons(text: actstore.Store, page: PageOf) -> None:
    """Those that replace its write vector, and those that act on it while the model runs."""
    for name, edit in (("L1.N7", "boost"), ("L0.N2", "operations"), ("L1.N5", "least-norm")):
        assert {"name": edit, "form": text.edits[edit].record.form} in page(text, f"neuron/corpus/mlp.post/{name}")[
            "edits"
        ]
    assert page(text, "neuron/corpus/mlp.post/L1.N1")["edits"] == []


def test_others_are_the_lowest_and_the_same_random_ones(text: actstore.Store, page: PageOf) -> None:
    found = page(text, "others/corpus/mlp.post/L1.N3")
    values, tokens = text.neuron("L1.N3").activations("corpus"), text.capture("corpus").tokens()
    counted = tokens["modality"].to_numpy() != SPECIAL
    assert found["lowest"][0]["value"] == pytest.approx(float(values[counted].min()), rel=1e-4)
    lowest = [one["value"] for one in found["lowest"]]
    assert lowest == sorted(lowest)
    assert len({one["window"] for one in found["lowest"]}) == len(lowest)
    by_slot = dict(zip(tokens["token"].to_pylist(), values.tolist(), strict=True))
    assert all(close(one["value"], by_slot[one["slot"]]) for one in found["random"])
    assert found == page(text, "others/corpus/mlp.post/L1.N3")
    assert "lowest" not in page(text, "others/sparse/mlp.post/L1.N3")
    with pytest.raises(InvalidInputError, match="precision none"):
        page(text, "others/statistics/mlp.post/L1.N3")


def test_columns_are_those_of_the_table_of_neurons(text: actstore.Store, page: PageOf) -> None:
    overview = page(text, "overview/corpus/mlp.post")
    rows = [row for row in text.neurons("corpus").to_pylist() if row["site"] == "mlp.post"]
    for name in ("max", "positive", "q99"):
        expected = np.array([np.nan if row[name] is None else row[name] for row in rows], np.float32)
        np.testing.assert_array_equal(numbers_of(page(text, f"column/corpus/mlp.post/{name}")), expected)
    stands_out = [(row["max"] - row["mean"]) / row["std"] if row["std"] else np.nan for row in rows]
    found = numbers_of(page(text, "column/corpus/mlp.post/(max - mean) %2F std"))
    np.testing.assert_allclose(found, stands_out, rtol=1e-6)
    shares = [dict(row["positive_by_label"])["language=fr"] for row in rows]
    np.testing.assert_allclose(numbers_of(page(text, "column/corpus/mlp.post/positive at language=fr")), shares)
    assert sum(layer["neurons"] for layer in overview["layers"]) == len(rows)
    for one in overview["statistics"]:
        assert page(text, str(Address("column", ("corpus", "mlp.post", one["name"]))))["n"] == len(rows)


def test_an_unfinished_capture_is_shown_as_far_as_it_is(text: actstore.Store, page: PageOf) -> None:
    overview = page(text, "overview/begun/mlp.post")
    assert (overview["finished"], overview["blocks"]) == (False, {"planned": 2, "committed": 1})
    assert page(text, "column/begun/mlp.post/max")["n"] == 12
    assert page(text, "neuron/begun/mlp.post/L0.N3")["exemplars"]
    assert page(text, "token/begun/mlp.post/282")["token"] == 282


def test_a_text_has_the_values_of_its_neurons(text: actstore.Store, page: PageOf) -> None:
    found = page(text, "text/corpus/mlp.post/2?neurons=L1.N3,L0.N1")
    tokens = text.capture("corpus").tokens().to_pylist()
    here = [i for i, row in enumerate(tokens) if row["document"] == 2]
    assert [one["token"] for one in found["tokens"]] == [tokens[i]["id"] for i in here]
    for one in found["neurons"]:
        values = text.neuron(one["neuron"]).activations("corpus")
        assert close(one["values"], [float(values[i]) for i in here])
    part = page(text, "text/corpus/mlp.post/2?neurons=L1.N3&first=5")
    assert part["tokens"] == found["tokens"][5:]
    assert part["neurons"][0]["values"] == found["neurons"][0]["values"][5:]
    slots = {tokens[i]["token"] for i in here}
    tops = {
        row["name"]
        for row in text.neurons("corpus").to_pylist()
        if row["site"] == "mlp.post" and row["top_token"] in slots
    }
    assert set(found["peaks"]) == tops


def test_what_a_text_cannot_show_is_said(text: actstore.Store, page: PageOf) -> None:
    with pytest.raises(InvalidInputError, match="precision none"):
        page(text, "text/statistics/mlp.post/0?neurons=L1.N3")
    with pytest.raises(NotFoundError, match="documents 0 to 8"):
        page(text, "text/corpus/mlp.post/9")
    names = ",".join(f"L0.N{i}" for i in range(NEURONS + 1))
    with pytest.raises(InvalidInputError, match=f"At most {NEURONS}"):
        page(text, f"text/corpus/mlp.post/0?neurons={names}")


def test_documents_are_found_by_their_source(text: actstore.Store, page: PageOf) -> None:
    found = page(text, "documents/corpus?search=JSONL:3")
    assert [row["source"] for row in found["documents"]] == ["corpus.jsonl:3"]
    assert found["documents"][0]["labels"] == {"language": "en"}
    assert page(text, "documents/corpus?first=4")["documents"][0]["document"] == 4


def test_a_token_has_the_neurons_of_the_tables(text: actstore.Store, page: PageOf) -> None:
    rows = [row for row in text.neurons("corpus").to_pylist() if row["site"] == "mlp.post"]
    ids = {row["token"]: row["id"] for row in text.capture("corpus").tokens().to_pylist()}
    model = text.sql("select * from model").to_pylist()
    for token in {ids[row["top_token"]] for row in rows if row["top_token"] is not None}:
        found = page(text, f"token/corpus/mlp.post/{token}")
        expected = {row["name"] for row in rows if row["top_token"] is not None and ids[row["top_token"]] == token}
        assert {one["neuron"] for one in found["peaks"]["neurons"]} == expected
        assert {one["neuron"] for one in found["promoted"]["neurons"]} == {
            row["name"] for row in model if token in row["top_tokens"]
        }
    with pytest.raises(NotFoundError, match="Token ids"):
        page(text, "token/corpus/mlp.post/9999999")


def test_tokens_are_found_as_by_graph_search(text: actstore.Store, page: PageOf) -> None:
    assert [one["text"] for one in page(text, "tokens?search=the&match=normalised")["tokens"]] == ["the", " the"]
    assert "No token" in page(text, "tokens?search=nothinglikethis")["reason"]
    assert page(text, "tokens?search=")["tokens"] == []


def test_a_graph_is_as_graphs_show_prints_it(text: actstore.Store, page: PageOf, cli: Cli) -> None:
    found = page(text, "graph/graphs/L1.N3")
    told = cli("graphs", "show", text.folder, "L1.N3", "--paths", 20, "--json").json
    assert close(found, {key: value for key, value in told.items() if key != "files"})
    assert page(text, "graph/graphs/L1.N3?picture=1")["svg"].startswith("<svg")


def test_similar_graphs_are_as_graphs_similar_ranks_them(
    text_path: Path, page: PageOf, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From all graphs prepared at once, and from those that have a token in common."""
    for pairs in (100_000_000, 1):
        monkeypatch.setattr("actstore.explorer.pages.sets.PAIRS", pairs)
        store, n_found = actstore.open(text_path), 0
        for name in ("L1.N3", "L0.N1", "L1.N7"):
            found = page(store, f"similar/graphs/{name}")["neurons"]
            told = cli("graphs", "similar", text_path, name, "-k", 10, "--json").json["neurons"]
            for mine, theirs in zip(found, told, strict=True):
                assert close(mine, {key: theirs[key] for key in mine})
            n_found += len(found)
        assert n_found > 2


def test_queries_are_answered_as_by_sql_and_read_only(text: actstore.Store, page: PageOf, cli: Cli) -> None:
    query = "select name, max from neurons order by name limit 3"
    found = page(text, str(Address("sql", (), (("query", query), ("capture", "corpus")))))
    told = cli("sql", text.folder, query, "--capture", "corpus", "--json").json
    assert found["columns"] == told["columns"]
    assert close(found["rows"], told["rows"])
    for refused in (
        "copy neurons to '/tmp/x'",
        "select * from read_text('/etc/passwd')",
        "select 1; select 2",
        "drop table x",
    ):
        with pytest.raises(InvalidInputError):
            page(text, str(Address("sql", (), (("query", refused),))))


def test_questions_are_as_naica_selects_them(text: actstore.Store, page: PageOf, cli: Cli) -> None:
    found = page(text, "questions/questions?by=animal&method=with-common")
    told = cli("naica", text.folder, "--by", "animal", "--method", "with-common", "-k", 20, "--json").json
    assert told["labels"]["fox"]
    for label, neurons in told["labels"].items():
        assert close(
            found["neurons"].get(label, []), [{"neuron": one["neuron"], "score": one["score"]} for one in neurons]
        )
    assert found["labels"] == ["fox", "dog"]
    assert page(text, "prompts/questions/0")["prompts"][0]["answer"] == "B"


def test_two_captures_on_one_plan_are_compared(text: actstore.Store, copy: Path) -> None:
    address = Address.parse("change/corpus/mlp.post?other=1&other_capture=corpus")
    found = address.document(text, lambda number: actstore.open(copy))
    assert found["n"] == 24
    assert all(one["score"] == 0 for one in found["neurons"])
    assert "same" in " ".join(found["warnings"])
    with pytest.raises(InvalidInputError, match="actstore serve"):
        address.document(text)


def test_images_have_a_box_and_a_value_per_patch(image_path: Any, page: PageOf) -> None:
    store = actstore.open(image_path)
    capture = store.capture("corpus")
    layer = min(capture.record.layers("mlp.post"))
    found = page(store, f"maps/corpus/mlp.post/L{layer}.N3")
    values = store.neuron(layer, 3).activations("corpus")
    of_slot = dict(zip(capture.tokens()["token"].to_pylist(), values.tolist(), strict=True))
    patches = [row for row in capture.patches().to_pylist() if row["token"] >= 0 and row["row"] >= 0]
    document_of = dict(
        zip(capture.windows()["window"].to_pylist(), capture.windows()["document"].to_pylist(), strict=True)
    )
    assert found["maps"]
    for one in found["maps"]:
        expected = [
            [row["left"], row["top"], row["right"], row["bottom"], of_slot[row["token"]]]
            for row in patches
            if document_of[row["window"]] == one["document"]
        ]
        boxes = found["grids"][one["grid"]]
        assert close([[*box, value] for box, value in zip(boxes, one["values"], strict=True)], expected)
        assert not one["image"]  # the files are not kept with the store


def test_addresses_are_read_as_they_are_written() -> None:
    address = Address("column", ("corpus", "mlp.post", "a/b ü?&#"), (("x", "1&2=3"),))
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nothing", "There is no page"),
        ("neuron/corpus", "Expected CAPTURE/SITE/NAME"),
        ("neuron/corpus/mlp.post/L1.N3?size=3", "Unknown options: size"),
        ("text/corpus/mlp.post/-1", "whole number"),
        ("text/corpus/mlp.post/²", "whole number"),
        ("neuron/corpus/mlp.post/L1.N99", "Layer 1 has neurons 0 to 11"),
        ("neuron/nothing/mlp.post/L1.N3", "no capture"),
        ("column/corpus/mlp.post/name", "no statistic"),
        ("overview/corpus/mlp.pre", "no site"),
        ("graph/nothing/L1.N3", "no graphs|No graphs|has no"),
        ("prompts/questions/99", "queries 0 to"),
        ("questions/corpus", "no attributions"),
        ("maps/corpus/mlp.post/L1.N3", "one of text"),
    ],
)
def test_what_is_not_there_is_said(text: actstore.Store, page: PageOf, address: str, reason: str) -> None:
    with pytest.raises((InvalidInputError, NotFoundError), match=reason):
        page(text, address)


def test_every_page_is_in_a_lane() -> None:
    assert {one.lane for one in PAGES.values()} <= set(LANES)
