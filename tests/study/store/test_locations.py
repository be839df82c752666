"""Where files lie: one contract for a folder of this machine and for what fsspec reaches."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from command_line import Call
from fsspec.implementations.memory import MemoryFileSystem

from study.store.artifacts import Artifacts
from study.store.locations import Local, Location, Remote, locate
from vae.errors import FailureError, UserError
from vae.files import write_bytes


@pytest.fixture(params=["folder", "file", "fsspec-local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder that isn't there yet."""
    return {
        "folder": lambda: locate(str(tmp_path / "a folder")),
        "file": lambda: locate(f"file://{tmp_path}/a folder"),
        # Real files through fsspec: `locate` takes the shorter way.
        "fsspec-local": lambda: Remote(f"local://{tmp_path}/a folder"),
        "memory": lambda: locate(f"memory://{tmp_path.name}/a folder"),
        "s3": lambda: locate(f"{request.getfixturevalue('s3_url')}/a folder"),
    }[request.param]()


def put(file: Location, content: bytes) -> None:
    file.save(lambda path: write_bytes(path, content))


def got(file: Location) -> bytes | None:
    with file.local() as path:
        return path.read_bytes() if path.exists() else None


def test_what_is_saved_is_found_read_listed_and_deleted(place: Location) -> None:
    """Before, there is nothing and no error of it; folders on the way are made."""
    deep, hidden = place / "digits" / "search" / "trial-3.pt", place / "digits" / ".half"
    assert not deep.exists()
    assert got(deep) is None
    assert list(place.files()) == []
    deep.delete()
    put(deep, b"state")
    put(hidden, b"")
    assert deep.exists()
    assert not (place / "digits").exists()
    assert got(deep) == b"state"
    assert deep.name == "trial-3.pt"
    assert set((place / "digits").files()) == {deep, hidden}
    put(deep, b"later")
    assert got(deep) == b"later"
    deep.delete()
    assert not deep.exists()
    assert list(place.files()) == [hidden]


def test_a_write_that_fails_leaves_what_was_there(place: Location) -> None:
    """The file of before, whole, and nothing beside it."""
    file = place / "best.safetensors"
    put(file, b"before")

    def fail(path: Path) -> None:
        write_bytes(path, b"half")
        raise FailureError(f"{path} can't be written: No space left on device.")

    if isinstance(file, Remote):  # a folder's own writer is `write_whole`, which has its own tests
        with pytest.raises(FailureError, match=f"^{file} can't be written: No space"):
            file.save(fail)
    assert got(file) == b"before"
    assert list(place.files()) == [file]


def test_only_the_first_creates(place: Location) -> None:
    """The second changes nothing and is told."""
    mark = place / "digits" / "experiment-id"
    assert mark.create(b"first")
    assert not mark.create(b"second")
    assert got(mark) == b"first"


@pytest.mark.parametrize("place", ["folder", "file", "fsspec-local", "memory"], indirect=True)
def test_a_file_in_the_way_of_a_folder_is_one_line(place: Location) -> None:
    """Whatever is asked of what lies below it: nothing is there, and nothing can be written. A bucket has no folders
    that a file could be in the way of."""
    put(place, b"mine")
    below = place / "digits" / "experiment-id"
    assert not below.exists()
    assert got(below) is None
    below.delete()
    for write in (
        lambda: put(below, b"x"),
        lambda: below.create(b"x"),
        lambda: place.require_writable("--artifacts"),
    ):
        with pytest.raises(FailureError, match=r"can't be written") as caught:
            write()
        assert len(str(caught.value).splitlines()) == 1
    assert got(place) == b"mine"


def test_what_a_disk_refuses_is_one_line(tmp_path: Path) -> None:
    """Such as a name that is too long, or a folder in the place of a file."""
    for attempt in (
        Local.exists,
        Local.delete,
        lambda file: list(file.files()),
        lambda file: file.create(b""),
    ):
        with pytest.raises(FailureError, match="File name too long"):
            attempt(Local(tmp_path / ("x" * 300)))
    with pytest.raises(FailureError, match=r"can't be deleted: "):
        Local(tmp_path).delete()


def test_what_can_be_written_to_is_left_as_it_is(place: Location) -> None:
    """The try leaves no file."""
    place.require_writable("--artifacts")
    assert list(place.files()) == []


def test_a_location_travels(place: Location) -> None:
    """To another process, and as a worker's option: both mean the same files."""
    put(place / "a", b"1")
    assert got(pickle.loads(pickle.dumps(place)) / "a") == b"1"
    if not str(place).startswith("local:"):
        assert locate(str(place.absolute())) == place


def test_experiments_take_their_folders_anywhere(place: Location) -> None:
    """As on a disk: the second of a name gets a folder of its own, each knows its own, and a foreign one is refused."""
    first, second = Artifacts.make(place, "digits"), Artifacts.make(place, "digits")
    assert first.path == place / "digits"
    assert second.path.name.startswith("digits-")
    for made in (first, second):
        found = Artifacts.of(place, "digits", made.to_store)
        assert found.are_ours()
        found.require()
    other = Artifacts.of(place, "digits", {"folder": "digits", "identity": "0" * 32})
    with pytest.raises(UserError, match="'digits' holds the files of another experiment"):
        other.require()


class Broken(MemoryFileSystem):  # type: ignore[misc]
    """A store that lets go in the middle of an upload, or can't be reached."""

    protocol = "broken"
    store: ClassVar[dict[str, Any]] = {}
    is_away = False

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if "w" in mode:
            file.write = self.pipe_file
        return file

    def pipe_file(self, *_: Any, **__: Any) -> None:
        raise TimeoutError("no answer from 10.0.0.7\nafter 60 s")

    def info(self, path: str, **options: Any) -> Any:
        if self.is_away:
            raise RuntimeError("Could not connect to the endpoint URL")
        return super().info(path, **options)


def test_a_store_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its package raises; a file half uploaded isn't there; one that can't be asked for isn't missing."""
    fsspec.register_implementation("broken", Broken, clobber=True)
    place = locate("broken://bucket/x")
    line = "broken://bucket/x can't be written to: no answer from 10.0.0.7 after 60 s."
    for attempt in (lambda: put(place / "a", b"half"), lambda: (place / "a").create(b"half")):
        with pytest.raises(FailureError, match=f"^{line}$"):
            attempt()
        assert list(place.files()) == []
    with pytest.raises(FailureError, match=f"^--artifacts {line}$"):
        place.require_writable("--artifacts")
    monkeypatch.setattr(Broken, "is_away", True)
    with pytest.raises(FailureError, match=r"^broken://bucket/x can't be read: Could not connect"):
        (place / "a").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sftp://me:hush@host/x", r"sftp://me:\*\*\*@host/x: .* FSSPEC_SFTP_PASSWORD="),
        ("s3://bucket/x?secret=hush", r"s3://bucket/x: .*neither a password nor a '\?'"),
        ("s4://bucket/x", r"s4://bucket/x: fsspec knows no s4://. Give a folder"),
        ("gs://bucket/x", r"gs://bucket/x: gs:// needs a package beside 'vae-study\[fsspec\]': .*gcsfs"),
        ("file://x/y", r"file://x/y: write the whole path, file:///folder"),
    ],
)
def test_wrong_urls_are_refused_in_a_line(
    url: str, message: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every command that takes one, before anything is read or trained; a secret is not said again."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=f"^--artifacts {message}"):
        locate(url)
    done = call("doctor", "--artifacts", url)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "hush" not in done.out + done.err
    assert not Path("optuna.db").exists()


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder needs none."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"pip install 'vae-study\[fsspec\]'"):
        locate("s3://bucket/x")
    assert locate("here") == Local(Path("here"))
