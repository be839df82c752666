"""Files: whole or not at all, in one way for everything that is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vae.errors import FailureError
from vae.files import require_writable, write_bytes, write_whole


def test_folders_are_made_and_nothing_else(tmp_path: Path) -> None:
    """The file alone, with the rights that any new file has."""
    path = write_bytes(tmp_path / "a" / "b.txt", b"whole")
    assert path.read_bytes() == b"whole"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()]
)
def test_an_end_in_the_middle_leaves_the_file_before(tmp_path: Path, error: BaseException) -> None:
    """A full disk is a FailureError of one line that names the path; anything else passes as it is."""
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    if isinstance(error, OSError):
        with pytest.raises(FailureError, match=r"file can't be written: No space left on device\.$"):
            write_whole(path, half)
    else:
        with pytest.raises(type(error)):
            write_whole(path, half)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    """And what it leads to is written."""
    (tmp_path / "real").write_bytes(b"before")
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link", b"after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"after"


def test_only_a_file_is_written_over(tmp_path: Path) -> None:
    """Neither a folder nor a pipe or device, whose place a file would take; it is noticed before anything is made, and
    the look itself leaves nothing."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken").write_text("")
    for name, reason in (
        ("pipe", "it is no regular file"),
        ("folder", "it is a directory"),
        ("taken/file", "(Not a directory|File exists)"),
    ):
        for attempt in (lambda path: write_bytes(path, b""), require_writable):
            with pytest.raises(FailureError, match=rf"{name} can't be written: {reason}\.$"):
                attempt(tmp_path / name)
    require_writable(tmp_path / "new" / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe", "taken"]
