"""Where a command works: workers and their threads, and folders that can't be written to."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from study.place import cores, default_threads, require_writable
from vae.errors import FailureError


@pytest.mark.parametrize(
    ("allowed", "threads"),
    [(None, 4), ("1", 1), ("3", 3), ("64", 4), ("2,1", 2), (" 2 ", 2), ("0", 4), ("many", 4), ("", 4)],
)
def test_threads_share_the_cores_and_respect_omp_num_threads(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, threads: int
) -> None:
    """Workers x threads are the cores at most; OMP_NUM_THREADS is a bound, as OpenMP reads it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if allowed is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    assert cores() == 8
    assert default_threads(2) == threads
    assert default_threads(100) == 1


def test_a_folder_that_can_be_written_to_is_left_as_it_is(tmp_path: Path) -> None:
    """A folder that isn't there yet is fine where one could be made, and isn't made."""
    require_writable(tmp_path / "a" / "b", "--artifacts")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in a folder's place, and a file system that refuses: the flag, the path and the system's reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FailureError, match=r"^--artifacts can't be written to: .*/file/a: Not a directory"):
        require_writable(tmp_path / "file" / "a", "--artifacts")

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(FailureError, match="Read-only file system"):
        require_writable(tmp_path, "--artifacts")
