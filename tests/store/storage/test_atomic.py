"""Files beside a store: whole or not at all."""

import errno
import os
import subprocess
import sys

import pytest

from actstore.store.storage.atomic import replacing

pytestmark = pytest.mark.usefixtures("waits_for_the_disk")


def test_what_was_written_takes_the_place_of_what_was_there(tmp_path):
    target = tmp_path / "picture.png"
    target.write_bytes(b"old")
    with replacing(target) as partial:
        partial.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_a_failure_leaves_what_was_there_and_names_the_file(tmp_path, error):
    target = tmp_path / "picture.png"
    target.write_bytes(b"old")

    def fail():
        with replacing(target) as partial:
            partial.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    if isinstance(error, OSError):
        assert caught.value.filename == str(target)


def test_it_is_safe_from_a_power_cut(tmp_path, recorded_disk):
    with replacing(tmp_path / "picture.png") as partial:
        partial.write_bytes(b"new")
    recorded_disk.check()


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    with replacing(tmp_path / "a.npy") as one, replacing(tmp_path / "a.npy") as two:
        one.write_bytes(b"one")
        two.write_bytes(b"two")
    assert (tmp_path / "a.npy").read_bytes() == b"one"


def test_a_failed_sync_leaves_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "picture.png"
    target.write_bytes(b"old")

    def failing(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error") as caught, replacing(target) as partial:
        partial.write_bytes(b"new")
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_of_a_file_goes_with_the_next(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".a.npy.{dead.pid}-0123456789abcdef.partial"
    others = [
        tmp_path / f".b.npy.{dead.pid}-0123456789abcdef.partial",  # of another file
        tmp_path / f".a.npy.{os.getppid()}-0123456789abcdef.partial",  # of a process that lives
    ]
    for path in (left, *others):
        path.write_bytes(b"half")
    with replacing(tmp_path / "a.npy") as partial:
        partial.write_bytes(b"whole")
    assert (tmp_path / "a.npy").read_bytes() == b"whole"
    assert (left.exists(), [path.exists() for path in others]) == (False, [True, True])
