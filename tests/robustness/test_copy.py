"""`actstore copy`: a store of every kind from disk, S3 and HTTP to disk and S3, byte by byte; stopped, damaged, and refused."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import planted_stores
import pytest
from counting_proxy import Fault
from planted_stores import Planted, plant
from static_server import StaticServer

import actstore
from actstore.store.errors import CaptureError, FormatError, InvalidInputError, ReadOnlyError
from actstore.store.files.records import CommitRecord
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own
from actstore.store.storage.objects import connect, storage
from actstore.store.transfer import captures

if TYPE_CHECKING:
    from collections.abc import Callable

    from counting_proxy import CountingProxy, Request

LEFT = ("claims/", "writer.lock", "verified.json")
"""What of a store is not copied."""
INDEXES = ("captures.json", "graphs.json", "edits.json")
"""What is written at the target from what it lists."""


def contents(location: object) -> dict[str, bytes]:
    """Every key that a copy should have, with its bytes."""
    folder = Folder(str(location))
    return {key: folder.read(key) for key, _ in folder.sizes() if not any(part in key for part in LEFT)}


def check_same(src: object, dst: object) -> None:
    """The same keys and bytes: the indexes of names too, as every capture of the store has a record."""
    expected, found = contents(src), contents(dst)
    assert expected.keys() == found.keys()
    assert [key for key in expected if expected[key] != found[key]] == []


def test_a_copy_on_disk_has_the_same_bytes(cli: Callable[..., Any], whole_store: Path, tmp_path: Path) -> None:
    copied = cli("copy", whole_store, tmp_path / "copy", "--json", "--quiet").json
    check_same(whole_store, tmp_path / "copy")
    assert copied["captures"] == ["another", "bundled", "corpus", "images", "questions", "unfinished"]
    assert (copied["graphs"], copied["edits"], copied["n_blocks"], copied["n_copied"]) == (
        ["graphs"],
        ["double"],
        13,
        13,
    )
    files = [data for key, data in contents(whole_store).items() if key not in INDEXES]
    assert (copied["n_files"], copied["nbytes"]) == (len(files), sum(map(len, files)))
    assert actstore.open(tmp_path / "copy").verify() == []
    again = actstore.copy(whole_store, tmp_path / "copy", captures=["corpus"])
    assert (again.n_blocks, again.n_copied, again.n_files) == (3, 0, 0)
    shown = cli("copy", whole_store, tmp_path / "copy", "--capture", "unfinished", "--quiet").out
    assert shown == f"{tmp_path / 'copy'}: 1 capture of 2 blocks, 0 of them copied now; 0 files written, 0 B.\n"


def test_through_s3_and_back(whole_store: Path, s3_location: str, tmp_path: Path) -> None:
    actstore.copy(whole_store, s3_location)
    check_same(whole_store, s3_location)
    actstore.copy(s3_location, tmp_path / "back")
    check_same(whole_store, tmp_path / "back")


def test_bundles_are_copied_whole_and_checked(s3_location: str, tmp_path: Path) -> None:
    plant(tmp_path / "store", what=Planted(bundled=True, precision="int8"))
    actstore.copy(tmp_path / "store", s3_location)
    actstore.copy(s3_location, tmp_path / "copy")
    check_same(tmp_path / "store", tmp_path / "copy")
    assert actstore.open(tmp_path / "copy").verify() == []
    bundle = tmp_path / "store/captures/corpus/bundles/1"
    for damage, what in ((flip, "is damaged"), (Path.unlink, "bundles/1 is damaged, .* it is missing")):
        damage(bundle)
        copied = tmp_path / f"copy of {what[:3]}"
        with pytest.raises(FormatError, match=what):
            actstore.copy(tmp_path / "store", copied)
        assert not (copied / "captures/corpus/blocks/1.json").exists()
        assert not (copied / "captures/corpus/bundles/1").exists()


def test_from_a_web_server(whole_store: Path, tmp_path: Path) -> None:
    """Which lists nothing: a capture without an index, whose blocks nobody can name there, is refused."""
    server = StaticServer(whole_store.parent)
    url = f"{server.url}/{whole_store.name}"
    with pytest.raises(FormatError, match=r"blocks of capture '\w+' of http.* cannot be listed there"):
        actstore.copy(url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    report = actstore.copy(url, tmp_path / "copy", captures=["corpus"])
    server.close()
    assert (report.captures, report.graphs, report.edits) == (("corpus",), ("graphs",), ("double",))
    others = tuple(f"captures/{name}/" for name in ("another", "bundled", "images", "questions", "unfinished"))
    expected = {key: data for key, data in contents(whole_store).items() if not key.startswith(others)}
    found = contents(tmp_path / "copy")
    assert found.keys() == expected.keys()
    assert [key for key in found if found[key] != expected[key]] == ["captures.json"]


def test_chosen_captures_come_one_after_another(whole_store: Path, tmp_path: Path) -> None:
    first = actstore.copy(whole_store, tmp_path / "copy", captures=["questions"])
    assert (first.captures, first.graphs, first.edits) == (("questions",), (), ("double",))
    assert actstore.open(tmp_path / "copy").captures == ("questions",)
    actstore.copy(whole_store, tmp_path / "copy")
    check_same(whole_store, tmp_path / "copy")


def flip(path: Path) -> None:
    """Change a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


DAMAGE = {
    "captures/corpus/values/mlp.post/0/c/0/1": "blocks/1.json",
    "captures/corpus/blocks/2.statistics.safetensors.zst": "blocks/2.json",
    "captures/corpus/tokens/ids/c/0": "zarr.json",
    "captures/corpus/windows.parquet": "zarr.json",
    "captures/corpus/statistics/mlp.post/mean/c/0": "committed.json",
    "captures/corpus/exemplars.parquet": "committed.json",
    "captures/corpus/neurons.parquet": "committed.json",
    "weights/layer-1.safetensors": "zarr.json",
    "tokenizer/tokenizer.json": "zarr.json",
    "tokenizer/vocabulary.parquet": "zarr.json",
    "neurons.parquet": "zarr.json",
    "graphs/graphs/nodes.arrow": "graphs/graphs/graph.json",
    "edits/double/delta.safetensors": "edits/double/edit.json",
}
"""What is damaged → the record that is then not written."""


def test_what_is_damaged_is_named_and_not_committed(
    whole_store: Path, every_kind: dict[str, bytes], refused: Callable[..., str], tmp_path: Path
) -> None:
    for number, (key, record) in enumerate(DAMAGE.items()):
        target = tmp_path / str(number)
        flip(whole_store / key)
        sentence = refused("copy", whole_store, target, "--capture", "corpus", "--quiet", "--no-sync")
        (whole_store / key).write_bytes(every_kind[key])
        name = key if "/values/" in key else key.partition("/c/")[0]  # of a plain array's chunk, the array
        assert sentence.startswith(f"{whole_store}/{name} is damaged"), sentence
        assert not (target / key).is_file() or ("/c/" in key and "/values/" not in key)
        place = "captures/corpus/" if key.startswith("captures/") else ""
        assert not (target / f"{place}{record}").exists(), key
    actstore.copy(whole_store, target)
    check_same(whole_store, target)


def test_what_is_missing_is_named(whole_store: Path, every_kind: dict[str, bytes], tmp_path: Path) -> None:
    missing = (
        "captures/corpus/values/mlp.post/0/c/0/1",
        "captures/corpus/tokens/ids/c/0",
        "weights/final_norm.safetensors",
    )
    for number, key in enumerate(missing):
        (whole_store / key).unlink()
        with pytest.raises(FormatError, match=rf"{key.partition('/c/0')[0]}.* missing"):
            actstore.copy(whole_store, tmp_path / str(number), captures=["corpus"], sync=False)
        (whole_store / key).write_bytes(every_kind[key])


def test_another_target_is_left_alone(whole_store: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    planted_stores.plant(tmp_path / "other")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)
    assert "holds another store than" in refused("copy", whole_store, tmp_path / "other")
    assert "folder with other content (letter.txt, …)" in refused("copy", whole_store, tmp_path / "folder")
    assert "is a file. Name another path." in refused("copy", whole_store, tmp_path / "file")
    itself = refused("copy", whole_store, f"{whole_store}/")
    assert itself == f"A store cannot be copied onto itself: SRC and DST are both {whole_store}/."
    assert "There is no store at" in refused("copy", tmp_path / "none", tmp_path / "copy")
    assert "has no capture 'none'" in refused("copy", whole_store, tmp_path / "copy", "--capture", "none")
    server = StaticServer(tmp_path)
    assert "a web server lists nothing" in refused("copy", whole_store, f"{server.url}/store")
    server.close()
    assert contents(tmp_path) == before
    with pytest.raises(InvalidInputError, match=r"captures is a sequence of texts .*, found the text 'corpus'"):
        actstore.copy(whole_store, tmp_path / "copy", captures="corpus")


def test_what_the_target_has_of_its_own_is_not_replaced(whole_store: Path, tmp_path: Path) -> None:
    """A capture, graphs or an edit of the same name, and another writer."""
    target = tmp_path / "copy"
    actstore.copy(whole_store, target, captures=["corpus"], sync=False)
    with own(Folder(target, read_only=False), "images"), pytest.raises(ReadOnlyError, match="Capture 'images' of"):
        actstore.copy(whole_store, target, captures=["images"])
    for key, what in (
        ("graphs/graphs/graph.json", "graphs 'graphs' of its own"),
        ("edits/double/edit.json", "an edit 'double' of its own"),
        ("captures/corpus/zarr.json", "a capture 'corpus', and it is another"),
    ):
        data = (target / key).read_bytes()
        (target / key).write_bytes(data + b"\n")
        with pytest.raises(InvalidInputError, match=what):
            actstore.copy(whole_store, target)
        (target / key).write_bytes(data)
    assert actstore.open(target).captures == ("corpus",)


def test_blocks_that_the_target_has_computed_itself(whole_store: Path, tmp_path: Path) -> None:
    """With the same values they stay, and a damaged record is replaced; with others they are refused."""
    target = Folder(tmp_path / "copy", read_only=False)
    actstore.copy(whole_store, tmp_path / "copy", captures=["unfinished"], sync=False)
    keys = [f"captures/unfinished/blocks/{block}.json" for block in (0, 2)]
    record = CommitRecord.from_json(target.read_json(keys[0]), "")
    target.write_json(keys[0], dataclasses.replace(record, seconds=7.5).with_checksum().to_json())
    target.write(keys[1], b"{")
    assert actstore.copy(whole_store, tmp_path / "copy", captures=["unfinished"]).n_copied == 1
    assert target.read_json(keys[0])["seconds"] == 7.5
    assert target.read(keys[1]) == (whole_store / keys[1]).read_bytes()
    shards = {**record.shards, "values/mlp.post/0/c/0/0": (1, "00000000")}
    target.write_json(keys[0], dataclasses.replace(record, shards=shards).with_checksum().to_json())
    with pytest.raises(InvalidInputError, match="Block 0 of capture 'unfinished' has other values in"):
        actstore.copy(whole_store, tmp_path / "copy", captures=["unfinished"])


def cut_after(n: int) -> Callable[[Request], Fault | None]:
    """A network that is cut for good after n requests that write."""
    seen = iter(range(n))
    return lambda request: Fault(cut_after=-1) if request.method == "PUT" and next(seen, None) is None else None


def test_a_network_that_is_cut_and_comes_back(
    whole_store: Path, s3: CountingProxy, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "MAX_RETRIES", 0)
    monkeypatch.setattr(storage, "MAX_RETRIES", 0)
    for n in (3, 45, 85):  # in the root, in the plan or a block, in the statistics
        target = f"s3://bucket/{uuid.uuid4()}/store"
        s3.fault = cut_after(n)
        sentence = refused("copy", whole_store, target, "--capture", "corpus", "--quiet")
        assert sentence.startswith(f"{target} cannot be written: the connection to {s3.endpoint} was cut")
        s3.clear()
        assert not Folder(target).exists("captures/corpus/committed.json")
        report = actstore.copy(whole_store, target, captures=["corpus", "unfinished"])
        assert report.n_copied == (2 if n == 85 else 5 if n == 3 else report.n_copied)
    actstore.copy(whole_store, target)
    check_same(whole_store, target)


def test_an_interrupted_copy_says_how_to_go_on(whole_store: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(CaptureError) as caught:
        actstore.copy(whole_store, tmp_path / "copy", captures=["corpus"], sync=False, on_block=interrupt)
    assert str(caught.value) == (
        f"The copy to {tmp_path / 'copy'} was interrupted. What was copied stays: run the same copy again, and it goes on."
    )
    blocks = actstore.open(tmp_path / "copy").capture().blocks
    assert blocks in ((0, 1), (0, 1, 2))  # the last may have been under way
    assert actstore.copy(whole_store, tmp_path / "copy", captures=["corpus"]).n_copied == 3 - len(blocks)


def test_a_store_that_is_rewritten_meanwhile_is_not_mixed(
    whole_store: Path, every_kind: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is another `committed.json` than when the copy began, nothing says of the copy that it is whole."""
    index = whole_store / "captures/corpus/committed.json"
    index.unlink()

    def rewrite(*arguments: Any) -> None:
        index.write_bytes(every_kind["captures/corpus/committed.json"])
        copy_array(*arguments)

    copy_array = captures.copy_array
    monkeypatch.setattr(captures, "copy_array", rewrite)
    with pytest.raises(
        FormatError, match=r"corpus/committed\.json is damaged, or is being rewritten: it was written anew"
    ):
        actstore.copy(whole_store, tmp_path / "copy", captures=["corpus"], sync=False)
    assert not (tmp_path / "copy/captures/corpus/committed.json").exists()
    actstore.copy(whole_store, tmp_path / "copy")
    check_same(whole_store, tmp_path / "copy")
