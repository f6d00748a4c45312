import numpy as np
import pytest

from actstore.store import sql
from actstore.store.capture import captures
from actstore.store.capture.reader import Capture
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.reader import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory, planting):
    """Three captures: the default one, one with a dash, one unfinished."""
    path = tmp_path_factory.mktemp("catalog") / "store's folder"
    planting(path, "corpus")
    planting(path, "more-text", seed=5, lengths=(9, 9))
    planting(path, "more_text", seed=6, blocks=(1,), finish=False)
    return Store(path)


def one(store, query, capture=None):
    """The single value that a query gives."""
    table = store.sql(query, capture)
    assert table.shape == (1, 1)
    return table.column(0)[0].as_py()


def test_tables_of_the_chosen_capture(store):
    assert one(store, "select count(*) from tokens") == 135
    assert one(store, "select count(*) from tokens", "more-text") == 18
    assert one(store, "select count(*) from windows", "more-text") == 2
    assert one(store, "select count(*) from neurons") == 45
    assert one(store, "select count(*) from documents") == 4
    assert one(store, "select count(*) from vocabulary") == 100
    assert one(store, "select count(*) from model") == 45


def test_each_captures_own_tables(store):
    for name, n in (("corpus", 135), ('"more-text"', 18), ("more_text", 64)):
        assert one(store, f"select count(*) from {name}.tokens") == n, name
        expected = store.capture(name.strip('"')).neurons()["mean"].to_pylist()
        assert store.sql(f"select mean from {name}.neurons")["mean"].to_pylist() == expected, name


def test_captures_compared(store):
    found = store.sql(
        'select a.name, a.mean - b.mean as difference from corpus.neurons a join "more-text".neurons b using (layer, neuron) '
        "order by layer, neuron"
    )
    means = [np.array(store.neurons(name)["mean"].to_pylist()) for name in ("corpus", "more-text")]
    assert found["name"].to_pylist() == store.neurons("corpus")["name"].to_pylist()
    np.testing.assert_array_equal(found["difference"].to_numpy(), means[0] - means[1])


def test_joins_from_tokens_to_words_and_labels(store):
    found = store.sql(
        "select v.text, d.language, w.n_inputs, t.position from tokens t join vocabulary v on v.token = t.id "
        "join documents d using (document) join windows w on w.window = t.window order by t.token"
    ).to_pylist()
    capture = store.capture("corpus")
    expected = capture.tokens().to_pylist()
    windows = capture.windows()["n_inputs"].to_pylist()
    assert len(found) == len(expected) == 135
    for row, token in zip(found, expected, strict=True):
        assert row["text"] == f" w{token['id']}"
        assert row["language"] == ("en", "fr")[token["document"] % 2]
        assert (row["n_inputs"], row["position"]) == (windows[token["window"]], token["position"])


def test_the_top_token_of_a_neuron(store):
    found = store.sql(
        "select n.name, n.top_value, v.text from neurons n join tokens t on t.token = n.top_token "
        "join vocabulary v on v.token = t.id where n.layer = 1 order by n.neuron limit 3"
    ).to_pylist()
    for neuron, row in enumerate(found):
        (exemplar,) = store.neuron(1, neuron).exemplars(1, "corpus").to_pylist()
        assert (row["name"], row["top_value"], row["text"]) == (f"L1.N{neuron}", exemplar["value"], exemplar["token"])


def test_maps_by_label(store):
    share = one(store, "select positive_by_label['language=en'] from neurons where name = 'L0.N1'")
    assert share == dict(store.neuron(0, 1).statistics("corpus")["positive_by_label"])["language=en"]


def test_an_unfinished_capture_has_its_committed_blocks(store):
    capture = store.capture("more_text")
    assert not capture.is_complete
    assert one(store, "select count(*) from tokens", "more_text") == capture.tokens().num_rows
    assert one(store, "select max(count) from neurons", "more_text") == max(capture.neurons()["count"].to_pylist())


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("select", "without selection list"),
        ("select * from nowhere", "nowhere"),
        ("select colour from neurons", "colour"),
        ("select cast(name as integer) from neurons", "Could not convert string 'L"),
        ("select * from captions.tokens", "captions"),
    ],
)
def test_a_bad_query_is_one_sentence(store, query, reason):
    with pytest.raises(InvalidInputError) as caught:
        store.sql(query)
    message = str(caught.value)
    assert message.startswith("The query cannot be run: ")
    assert reason in message
    assert "\n" not in message


def test_a_table_that_is_not_there_is_not_guessed_but_all_are_named(store):
    tables = "documents, model, neurons, tokens, vocabulary, windows"
    with pytest.raises(InvalidInputError, match=f"nosuch does not exist! Tables: {tables}; of a capture") as caught:
        store.sql("select * from nosuch")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("copy (select 1) to 'out.csv'", "COPY"),
        ("create table a as select 1", "CREATE"),
        ("select 1; drop view neurons", "DROP"),
        ("attach 'x.db'", "ATTACH"),
        ("install httpfs", "LOAD"),
    ],
)
def test_a_query_only_reads(store, tmp_path, monkeypatch, query, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=f"A query only reads, and this is one of {kind}"):
        store.sql(query)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "query",
    ["describe neurons", "explain select 1", "from neurons limit 1", "pivot (from neurons) on layer using count(*)"],
)
def test_other_words_for_reading_are_understood(store, query):
    assert store.sql(query).num_rows


@pytest.mark.parametrize("query", ["", " ;", "-- nothing"])
def test_what_gives_no_table_is_refused(store, query):
    with pytest.raises(InvalidInputError, match="The query gives no table"):
        store.sql(query)


def test_an_unknown_capture(store):
    with pytest.raises(
        NotFoundError, match=r"has no capture 'captions'\. Its captures are: corpus, more-text, more_text"
    ):
        store.sql("select 1", "captions")


def test_without_a_default_capture_its_tables_are_named(somewhere, planting):
    for name in ("captions", "questions"):
        planting(somewhere, name)
    store = Store(somewhere)
    assert one(store, "select count(*) from questions.tokens") == 135
    with pytest.raises(InvalidInputError, match="tokens"):
        store.sql("select count(*) from tokens")
    assert one(store, "select count(*) from tokens", "captions") == 135


@pytest.mark.parametrize("name", ["main", "information_schema", "select", "a.b", "neurons"])
def test_awkward_capture_names(somewhere, planting, name):
    planting(somewhere, "corpus")
    planting(somewhere, name, seed=9, lengths=(30,))
    store = Store(somewhere)
    assert one(store, "select count(*) from tokens") == 135
    assert one(store, "select count(*) from corpus.tokens") == 135
    assert one(store, "select count(*) from tokens", name) == 30
    assert store.sql("select mean from neurons", name)["mean"].to_pylist() == store.neurons(name)["mean"].to_pylist()


def test_names_that_sql_takes_for_one(somewhere, planting):
    """Neither answers to its name, rather than one to both."""
    planting(somewhere, "corpus")
    planting(somewhere, "Corpus", seed=9, lengths=(30,))
    store = Store(somewhere)
    assert one(store, "select count(*) from tokens") == 135
    assert one(store, "select count(*) from tokens", "Corpus") == 30
    with pytest.raises(InvalidInputError):
        store.sql("select count(*) from corpus.tokens")


def test_only_what_a_query_names_is_read(store, monkeypatch):
    """A store of many captures is as quick to ask as one of a single capture."""
    opened = []
    read = captures.read_capture
    for module in (captures, sql):
        monkeypatch.setattr(module, "read_capture", lambda folder, name: opened.append(name) or read(folder, name))
    monkeypatch.setattr(Capture, "neurons", lambda self: pytest.fail("nobody asks about neurons"))
    store = Store(store.folder.location)
    assert opened == ["corpus"]  # which settles that the root is theirs
    assert one(store, "select count(*) from vocabulary") == 100
    assert opened == ["corpus"]
    assert one(store, "select count(*) from tokens") == 135
    assert one(store, "select count(*) from more_text.tokens") == 64
    assert set(opened) == {"corpus", "more_text"}
    opened.clear()
    store.capture("corpus")
    assert opened == []
    store.capture("more_text")
    assert opened == ["more_text"]


@pytest.mark.parametrize("query", ["show all tables", "select schema, name from (show all tables)", "describe"])
def test_every_table_is_listed(store, query):
    listed = store.sql(query).to_pylist()
    assert {"documents", "model", "neurons", "vocabulary", "windows"} <= {row["name"] for row in listed}


def test_a_capture_that_another_process_adds_is_seen(somewhere, planting):
    planting(somewhere, "corpus")
    store = Store(somewhere)
    assert store.captures == ("corpus",)
    assert store.capture().is_complete
    planting(somewhere, "later", seed=9, lengths=(30,))
    assert store.captures == ("corpus", "later")
    assert store.capture("later").record.plan.n_tokens == 30
    assert one(store, "select count(*) from later.tokens") == 30
