"""What a server or the network refuses is one sentence, and what passes is asked for again."""

from __future__ import annotations

import pickle
import uuid
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from counting_proxy import CountingProxy, Fault, Request
from s3_server import options
from written_captures import written

import actstore
from actstore.store.errors import InvalidInputError, NotFoundError, StorageError
from actstore.store.storage.folder import Folder
from actstore.store.storage.objects import connect, storage
from actstore.store.storage.objects.writer import PART_NBYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REFUSED = "http://127.0.0.1:1"


@pytest.fixture
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, of which the second waits for 0.2 s."""
    monkeypatch.setattr(connect, "MAX_RETRIES", 2)
    monkeypatch.setattr(storage, "MAX_RETRIES", 2)


def _answers(status: int, code: str) -> Callable[[Request], Fault]:
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    return lambda request: Fault(status, body)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "NoSuchBucket", "there is no such bucket. Create it, or correct the name."),
        (403, "AccessDenied", "access is denied (403): these credentials do not permit it. Check the credentials."),
        (
            403,
            "SignatureDoesNotMatch",
            "access is denied (403): the secret key does not belong to the access key. Check the credentials.",
        ),
        (403, "RequestTimeTooSkewed", "access is denied (403): this machine's clock is wrong. Check the credentials."),
        (
            400,
            "AuthorizationHeaderMalformed",
            "the bucket is in another region. Set AWS_REGION to the bucket's, or `storage_options={'region': …}`.",
        ),
        (
            301,
            "PermanentRedirect",
            "the bucket is in another region. Set AWS_REGION to the bucket's, or `storage_options={'region': …}`.",
        ),
        (503, "SlowDown", "{endpoint} answers 503 Service Unavailable. Try again later."),
    ],
)
@pytest.mark.usefixtures("few_retries")
def test_what_a_server_refuses_is_one_sentence(s3: CountingProxy, status: int, code: str, reason: str) -> None:
    folder = Folder("s3://bucket/store", read_only=False)
    s3.fault = _answers(status, code)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("read", lambda: folder.read("key")),
        ("read", lambda: folder.source("key")),
        ("read", lambda: actstore.open("s3://bucket/store")),
        ("written", lambda: folder.write("key", b"x")),
        ("written", lambda: folder.create("key", b"x")),
    ]
    for doing, call in calls[: 5 if status != 503 else 1]:  # each waits for its retries
        with pytest.raises(StorageError) as caught:
            call()
        assert str(caught.value) == f"s3://bucket/store cannot be {doing}: {reason.replace('{endpoint}', s3.endpoint)}"
    if status == 503:
        assert len(s3.requests) == 3


@pytest.mark.usefixtures("few_retries")
def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    for name, value in {"AWS_ENDPOINT_URL": REFUSED, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    expected = f"no server answers at {REFUSED}. Check the address and the network."
    assert refused("info", "s3://bucket/store") == f"s3://bucket/store cannot be read: {expected}"
    assert refused("info", f"{REFUSED}/store") == f"{REFUSED}/store cannot be read: {expected}"
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StorageError, match=r"its address is http://, which is not encrypted\. Set AWS_ALLOW_HTTP=true"):
        Folder("s3://bucket/store").read("key")


@pytest.mark.usefixtures("few_retries")
def test_without_credentials(s3: CountingProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no machine of AWS gives any: a proxy stands for the address at which it would."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", s3.endpoint)
    s3.fault = lambda request: Fault(404)
    with pytest.raises(StorageError, match=r"cannot be read: no credentials were found\. Set those of the environment"):
        Folder("s3://bucket/store").read("key")


def test_an_answer_that_is_cut_is_asked_for_again(s3: CountingProxy) -> None:
    folder, data = Folder("s3://bucket/cut", read_only=False), bytes(range(256)) * 4000
    folder.write("key", data)
    cuts = iter([-1, 100_000, 300_000])
    s3.fault = lambda request: Fault(cut_after=cut) if (cut := next(cuts, None)) is not None else None
    assert folder.read("key") == data
    s3.clear()
    answers = iter([500, 503])
    s3.fault = lambda request: Fault(status) if (status := next(answers, None)) is not None else None
    assert bytes(folder.source("key", tail=10).read(1_023_000, 1_024_000)) == data[1_023_000:]


@pytest.mark.usefixtures("few_retries")
def test_a_connection_that_is_always_cut(s3: CountingProxy) -> None:
    folder = Folder("s3://bucket/cut", read_only=False)
    folder.write("key", b"x" * 1000)
    s3.fault = lambda request: Fault(cut_after=-1)
    with pytest.raises(
        StorageError, match=r"^s3://bucket/cut cannot be read: the connection to http://127\.0\.0\.1:\d+ "
    ):
        folder.read("key")


@pytest.mark.usefixtures("few_retries")
def test_a_capture_whose_network_is_cut_is_resumed(
    s3: CountingProxy,
    refused: Callable[..., str],
    cli: Callable[..., Any],
    tiny_model: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    """To the bytes of one whose was not."""
    location = f"s3://bucket/{uuid.uuid4()}/store"
    settings = ("--context", 16, "--max-tokens", 400, "--memory", "32KB", "--quiet")
    is_cut: list[Request] = []

    def cut(request: Request) -> Fault | None:
        if is_cut or "/blocks/2.statistics" in request.path:
            is_cut.append(request)
            return Fault(cut_after=-1)
        return None

    s3.fault = cut
    sentence = refused("capture", tiny_model, corpus, location, *settings)
    assert sentence.startswith(
        f"{location} cannot be written: the connection to {s3.endpoint} was cut, again and again."
    )
    s3.clear()
    assert actstore.open(location).capture().blocks == (0, 1)
    assert cli("capture", tiny_model, corpus, location, *settings, "--resume").status == 0
    assert cli("capture", tiny_model, corpus, tmp_path / "whole", *settings).status == 0
    actstore.copy(location, tmp_path / "copy", sync=False)
    assert written(tmp_path / "copy") == written(tmp_path / "whole")


def test_a_lost_answer_to_a_condition_is_not_taken_for_another_writer(s3: CountingProxy) -> None:
    """The server creates the object, and the connection is cut before it says so: what is there is what was written."""
    folder = Folder("s3://bucket/lost", read_only=False)
    folder.delete("claim")

    def cut_the_first() -> None:
        cuts = iter([-1])
        s3.fault = lambda request: (
            Fault(cut_after=cut) if request.method == "PUT" and (cut := next(cuts, None)) is not None else None
        )

    cut_the_first()
    folder.create("claim", b"mine")
    with pytest.raises(FileExistsError):
        folder.create("claim", b"mine")
    cut_the_first()
    assert folder.swap("claim", b"mine, later", b"mine")
    cut_the_first()
    assert not folder.swap("claim", b"another's", b"not there")
    assert folder.read("claim") == b"mine, later"


def test_a_large_object_is_sent_while_it_is_written(s3: CountingProxy) -> None:
    folder, piece = Folder("s3://bucket/parts", read_only=False), bytes(range(256)) * 4096
    s3.clear()
    with folder.writer("large") as writer:
        for _ in range(17):
            writer.write(piece)
        assert len(s3.of("PUT")) <= 2
        assert writer.tell() == 17 << 20
        assert not folder.exists("large")
    assert folder.read("large") == piece * 17
    assert sorted(request.nbytes_sent for request in s3.of("PUT")) == [1 << 20, PART_NBYTES, PART_NBYTES]
    assert len(s3.of("POST")) == 2
    s3.clear()
    with folder.writer("small") as writer:
        writer.write(piece)
        writer.write(piece)
    assert [request.method for request in s3.requests] == ["PUT"]
    assert folder.read("small") == piece * 2


def test_an_upload_that_is_abandoned_is_dropped_by_the_server(s3: CountingProxy) -> None:
    folder = Folder("s3://bucket/dropped", read_only=False)

    def write_half() -> None:
        with folder.writer("large") as writer:
            writer.write(b"x" * (2 * PART_NBYTES + 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not folder.exists("large")
    assert len(s3.of("DELETE")) == len([request for request in s3.of("POST") if "uploads" in request.path]) == 1


@pytest.mark.usefixtures("few_retries")
def test_an_upload_that_the_server_refuses_stops_the_writer(s3: CountingProxy) -> None:
    folder = Folder("s3://bucket/refused", read_only=False)
    s3.fault = lambda request: (
        Fault(403, b"<Error><Code>AccessDenied</Code></Error>") if request.method == "PUT" else None
    )

    def write() -> None:
        with folder.writer("large") as writer:
            for _ in range(64):
                writer.write(b"x" * PART_NBYTES)

    with pytest.raises(StorageError, match=r"^s3://bucket/refused cannot be written: access is denied \(403\)"):
        write()
    s3.clear()
    assert not folder.exists("large")


def test_options_open_what_the_environment_does_not(s3: CountingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ALLOW_HTTP", "AWS_REGION"):
        monkeypatch.delenv(name)
    given = {**options(s3.endpoint), "client_options": {"allow_http": True}}
    folder = Folder("s3://bucket/options", read_only=False, storage_options=given)
    folder.write("key", b"x")
    assert pickle.loads(pickle.dumps(folder)).read("key") == b"x"
    assert Folder(folder).read("key") == b"x"
    assert "secret" not in f"{folder} {folder!r} {folder.storage!r} {actstore.RunOptions(storage_options=given)}"
    with pytest.raises(NotFoundError):
        actstore.open("s3://bucket/options", storage_options=given)
    for location, wrong, message in (
        ("s3://bucket/x", {"acess_key": "x"}, "'acess_key' is not valid for store 'S3'"),
        ("s3://", {}, r"it names no bucket\. Write it as s3://BUCKET/STORE"),
        ("https://host/x", {"region": "x"}, "storage_options of an HTTP server are client_options and retry_config"),
        ("https://host/x?token=1", {}, "^https://host/x is no URL of a store"),
        ("folder", {"region": "x"}, "storage_options are for stores at a URL, and folder is a folder"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Folder(location, storage_options=wrong)


def test_profiles_of_aws(s3: CountingProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = options(s3.endpoint)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "config").write_text(
        f"[profile work]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n[profile sso]\nsso_session = x\n"
    )
    (tmp_path / "credentials").write_text(
        f"[work]\naws_access_key_id = {given['access_key_id']}\naws_secret_access_key = {given['secret_access_key']}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "work")
    Folder("s3://bucket/profile", read_only=False).write("key", b"x")
    for name, message in (("none", "There is no profile 'none' of AWS"), ("sso", "has no access key of its own")):
        monkeypatch.setenv("AWS_PROFILE", name)
        with pytest.raises(InvalidInputError, match=message):
            Folder("s3://bucket/profile")


def test_the_driver_is_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("actstore.store.storage.objects.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, obstore.__name__, None)
    with pytest.raises(InvalidInputError) as caught:
        Folder("s3://bucket/store")
    assert str(caught.value) == (
        "s3://bucket/store needs the package obstore, which is not installed here: `pip install obstore`."
    )
