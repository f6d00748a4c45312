import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from actstore.store.errors import ReadOnlyError
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import check_unowned, is_unlocked, own, own_graphs, own_root

HOLD = """
import sys
from actstore.store.storage.folder import Folder
from actstore.store.storage.lock import own, own_graphs
folder = Folder(sys.argv[1], read_only=False)
with own(folder, "corpus"), own_graphs(folder, "graphs"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the capture `corpus` and the graphs `graphs` until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path, read_only=False)


def test_a_second_writer_is_told_who_the_first_is(holder, folder):
    with pytest.raises(ReadOnlyError) as caught, own(folder, "corpus"):
        pass
    assert str(caught.value) == (
        f"Capture 'corpus' of {folder} is being written by process {holder.pid} on {os.uname().nodename}. "
        "Wait for it, or name another capture."
    )


def test_asking_who_owns_a_capture_leaves_nothing_behind(holder, folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ReadOnlyError, match=f"is being written by process {holder.pid} "):
        check_unowned(folder, "corpus")
    assert not is_unlocked(folder, "corpus")
    check_unowned(folder, "another")
    assert is_unlocked(folder, "another")
    assert sorted(tmp_path.rglob("*")) == before
    holder.communicate("")
    assert is_unlocked(folder, "corpus")


def test_another_capture_is_free(holder, folder):
    with own(folder, "another"):
        pass


def test_a_killed_owner_owns_nothing(holder, folder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with own(folder, "corpus"):
        pass


def test_an_owner_that_is_done_owns_nothing(holder, folder):
    holder.communicate("")
    with own(folder, "corpus"):
        pass


def test_one_process_is_no_exception(folder):
    with own(folder, "corpus"):
        with pytest.raises(ReadOnlyError, match=f"process {os.getpid()} "), own(folder, "corpus"):
            pass
        # The refused attempt must not have let go of the lock.
        with pytest.raises(ReadOnlyError), own(folder, "corpus"):
            pass


def test_an_exception_lets_go(folder):
    with pytest.raises(ZeroDivisionError), own(folder, "corpus"):
        1 / 0  # noqa: B018
    with own(folder, "corpus"):
        pass


def test_an_object_store_has_no_lock():
    folder = Folder("memory://lock/store", read_only=False)
    with own(folder, "corpus"), own(folder, "corpus"):
        assert list(folder.sizes()) == []


def test_graphs_are_owned_in_the_same_words(holder, folder):
    with pytest.raises(ReadOnlyError) as caught, own_graphs(folder, "graphs"):
        pass
    assert str(caught.value) == (
        f"Graphs 'graphs' of {folder} are being written by process {holder.pid} on {os.uname().nodename}. "
        "Wait for it, or name other graphs."
    )
    with own_graphs(folder, "others"), own(folder, "graphs"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with own_graphs(folder, "graphs"):
        pass


def test_the_root_is_waited_for(folder, caplog):
    """Whoever comes second waits, says so, and has it once the first is done."""
    held, done = threading.Event(), []

    def hold():
        with own_root(folder):
            held.set()
            while not caplog.messages:
                time.sleep(0.01)
            done.append("first")

    first = threading.Thread(target=hold)
    with caplog.at_level(logging.WARNING, "actstore"):
        first.start()
        held.wait()
        with own_root(folder, timeout_s=60):
            done.append("second")
        first.join()
    assert done == ["first", "second"]
    assert caplog.messages == [
        f"The root of {folder} is being written by process {os.getpid()} on {os.uname().nodename}: waiting for it."
    ]


def test_waiting_for_the_root_is_bounded(folder):
    with (
        own_root(folder),
        pytest.raises(ReadOnlyError, match=r"^The root of .* is being written by process"),
        own_root(folder, timeout_s=0.3),
    ):
        pass


def test_a_lock_whose_file_was_removed_is_taken_again(folder, tmp_path):
    """A first capture that fails removes its folder, with the lock that another process has just opened."""
    opened = os.open

    def open_then_remove(path, *rest):
        descriptor = opened(path, *rest)
        if removed and removed.pop():
            os.unlink(path)
        return descriptor

    removed = [False, True]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_then_remove)
        with own(folder, "corpus"):
            assert removed == []
            assert (tmp_path / "captures/corpus/writer.lock").is_file()
            patch.undo()
            with pytest.raises(ReadOnlyError), own(folder, "corpus"):
                pass


def test_a_finished_owner_does_not_tell_where_it_ran(folder, tmp_path):
    lock = tmp_path / "captures/corpus/writer.lock"
    with own(folder, "corpus"):
        assert lock.read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    assert lock.read_bytes() == b""
    with pytest.raises(ZeroDivisionError), own_graphs(folder, "graphs"):
        1 / 0  # noqa: B018
    assert (tmp_path / "graphs/graphs/writer.lock").read_bytes() == b""


def test_the_next_owner_removes_what_a_killed_one_left(holder, folder, tmp_path):
    left = [
        tmp_path / kind / name
        for kind in ("captures/corpus/values/mlp.post/0/c/0", "graphs/graphs/parts")
        for name in (f".0.{holder.pid}-0123456789abcdef.partial", "0.partial", f"zarr.{'0' * 32}.partial")
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with pytest.raises(ReadOnlyError), own(folder, "corpus"):
        pass
    assert all(path.exists() for path in left)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with own(folder, "corpus"):
        assert [path.exists() for path in left] == [False] * 3 + [True] * 3
    with own_graphs(folder, "graphs"):
        assert not any(path.exists() for path in left)


def test_a_lock_that_was_removed_keeps_others_out_all_the_same(folder, tmp_path, monkeypatch):
    """An owner that gives up removes its folder while others may have opened its lock already."""
    opened, flock = [], fcntl.flock

    def remove_first(descriptor, operation):
        if not opened:
            folder.delete("captures/corpus")
        opened.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with own(folder, "corpus"):
        assert len(opened) == 3  # the first again, and the root's
        with pytest.raises(ReadOnlyError), own(folder, "corpus"):
            pass
