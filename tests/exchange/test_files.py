"""Writing on a disk that is full: the system names no file there, so that fedelta has to."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedelta.exchange import files

FULL = Path("/dev/full")
"""A device of Linux that opens as a file and takes no byte."""

needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which Linux has")


@needs_full
@pytest.mark.parametrize("writes", [lambda path: files.write(path, b"x"), lambda path: files.append_line(path, "x")])
def test_an_error_of_a_full_disk_names_the_file(writes: Callable[[Path], None], tmp_path: Path):
    link = tmp_path / "rounds.jsonl"
    link.symlink_to(FULL)
    with pytest.raises(OSError, match=r"No space left on device: '.*rounds\.jsonl'"):
        writes(link)


@needs_full
def test_the_first_file_that_does_not_fit_is_named(tmp_path: Path):
    (tmp_path / "b").symlink_to(FULL)
    with pytest.raises(OSError, match=r"No space left on device: '.*/b'"):
        files.write_all(tmp_path, [("a", b"x"), ("b", b"x"), ("c", b"x")])


def test_a_line_goes_to_the_end_of_what_is_there(tmp_path: Path):
    path = tmp_path / "lines"
    files.append_line(path, "first")
    files.append_line(path, "second")
    assert path.read_bytes() == b"first\nsecond\n"
