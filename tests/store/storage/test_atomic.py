"""Files beside a store: whole or not at all."""

import errno

import pytest

from actstore.store.storage.atomic import replacing


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
