import hashlib

import numpy as np
import pytest

from actstore.engine.inputs.documents import CorpusDigest, CorpusOptions, Document
from actstore.store.errors import InvalidInputError


def digest(*documents: Document) -> str:
    whole = CorpusDigest()
    for document in documents:
        whole.update(document)
    return whole.hexdigest()


def test_sha256_is_of_the_utf8_text():
    assert Document("a", text="né\r\n").sha256 == hashlib.sha256(b"n\xc3\xa9\r\n").hexdigest()


def test_sha256_is_of_the_ids_as_little_endian_int64():
    ids = np.array([1, 258])
    assert Document("a", ids=ids).sha256 == hashlib.sha256(b"\1\0\0\0\0\0\0\0\2\1\0\0\0\0\0\0").hexdigest()


def test_sha256_of_a_strided_view_is_that_of_its_values():
    assert Document("a", ids=np.arange(6)[::2]).sha256 == Document("a", ids=np.array([0, 2, 4])).sha256


@pytest.mark.parametrize("content", [{}, {"text": "a", "ids": np.array([1])}])
def test_document_is_text_or_ids(content):
    with pytest.raises(InvalidInputError, match=r"one of the two: here has both or neither\."):
        Document("here", **content)


def test_document_refuses_ids_that_are_not_int64():
    with pytest.raises(InvalidInputError, match=r"int64 along one axis: here has int32 of shape \(2,\)\."):
        Document("here", ids=np.array([1, 2], dtype=np.int32))


def test_only_a_document_of_length_nothing_is_empty():
    assert Document("a", text="").is_empty
    assert Document("a", ids=np.array([], dtype=np.int64)).is_empty
    assert not Document("a", text=" \n").is_empty


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"errors": "ignore"}, "`errors` is one of strict, replace: found 'ignore'."),
        ({"stdin_format": "csv"}, "`stdin_format` is one of text, jsonl: found 'csv'."),
        ({"max_documents": 0}, "`max_documents` is at least 1, found 0."),
    ],
)
def test_options_refuse_values_that_mean_nothing(wrong, message):
    with pytest.raises(InvalidInputError) as caught:
        CorpusOptions(**wrong)
    assert str(caught.value) == message


def test_digest_ignores_the_source():
    assert digest(Document("here/a", text="x", labels={"l": "1"})) == digest(Document("b", text="x", labels={"l": "1"}))


def test_digest_ignores_the_order_of_labels():
    assert digest(Document("a", text="x", labels={"l": "1", "m": "2"})) == digest(
        Document("a", text="x", labels={"m": "2", "l": "1"})
    )


def test_digest_tells_order_labels_borders_and_kind_apart():
    x, y = Document("a", text="x"), Document("a", text="y")
    ids = np.array([1])
    same_bytes = Document("a", text=ids.tobytes().decode())
    assert same_bytes.sha256 == Document("a", ids=ids).sha256
    digests = [
        digest(x, y),
        digest(y, x),
        digest(x),
        digest(Document("a", text="xy")),
        digest(Document("a", text="x", labels={"l": ""})),
        digest(Document("a", text="x", labels={"l": "y"})),
        digest(Document("a", ids=ids)),
        digest(same_bytes),
        digest(),
    ]
    assert len(set(digests)) == len(digests)


def test_digest_goes_on_after_it_was_read():
    whole = CorpusDigest()
    whole.update(Document("a", text="x"))
    whole.hexdigest()
    whole.update(Document("a", text="y"))
    assert whole.hexdigest() == digest(Document("a", text="x"), Document("a", text="y"))


def test_digest_does_not_change_between_releases():
    document = Document("a", text="naïve", labels={"language": "français"})
    assert digest(document) == "258321d036d8f96b6bcbbb9494393e7ddf6206d8167e9345ea8e3b884a5e4a15"
