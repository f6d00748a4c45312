"""What stands before every storage: JSON records, and which locations are folders. The rest is in the contract of storages."""

from __future__ import annotations

from pathlib import Path

import pytest

import actstore
from actstore.store.errors import FormatError, InvalidInputError
from actstore.store.storage.folder import Folder


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "should hold JSON, but"),
        (b"{", "should hold JSON, but"),
        (b"\xff\xfe", "should hold JSON, but"),
        (b"[" * 100_000, "should hold JSON, but"),
        (b"[1]", "should hold a JSON object, found list"),
        (b"null", "should hold a JSON object, found NoneType"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    folder = Folder(tmp_path, read_only=False)
    folder.write("record.json", data)
    with pytest.raises(FormatError, match=message):
        folder.read_json("record.json")


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "gs://bucket/x", "hf://datasets/me/x", "https://host/x", "memory://x"]
)
def test_a_url_of_which_pathlib_made_a_path_is_no_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (Folder, actstore.open, lambda location: actstore.copy(tmp_path, location)):
        with pytest.raises(InvalidInputError, match=f"Give {url} as a text: as a `Path` it loses a slash"):
            use(Path(url))
    assert not list(tmp_path.iterdir())
    (tmp_path / url.split("/")[0]).mkdir()  # whose folder has such a name means it
    assert Folder(Path(url)).local_path() == Path(url)


@pytest.mark.parametrize("path", ["a:b/c", "C:/stores/x", "here/s3:/x", "/s3:/x"])
def test_paths_with_colons_are_paths(path: str) -> None:
    assert Folder(path).local_path() == Path(path)
