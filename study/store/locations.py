"""Where files lie: a folder of this machine, or any place that fsspec has a protocol for (s3://bucket/folder, ...)."""

from __future__ import annotations

import ftplib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from study.store.url import shown
from vae.errors import FailureError, UserError
from vae.files import try_folder, write_bytes


class Location(Protocol):
    """A file or a folder, which needn't be there. As text, `locate` reads it again, anywhere once it is `absolute`.

    Every method raises FailureError, in a line, where the place can't be reached or does not allow it."""

    @property
    def name(self) -> str:
        """Its last part."""

    def __truediv__(self, part: str) -> Self:
        """What is called so in this folder."""

    def absolute(self) -> Self:
        """The same, whatever the working folder."""

    def exists(self) -> bool:
        """Whether there is a file."""

    def files(self) -> Iterator[Self]:
        """Every file under this folder, at any depth; none where there is no folder."""

    def local(self) -> AbstractContextManager[Path]:
        """The file as one of this machine, to be read; a path without a file where there is none."""

    def save(self, write: Callable[[Path], object]) -> None:
        """Make the file of what `write(path)` writes, whole (as `vae.files.write_whole`) or not at all; folders on the
        way are made."""

    def create(self, content: bytes) -> bool:
        """Make the file where there is none; False, with nothing changed, where there is one."""

    def delete(self) -> None:
        """Take the file away, if there is one."""

    def require_writable(self, what: str) -> None:
        """Raises FailureError where no file can be written to this folder, which is there or would be made; leaves
        nothing. `what` is how the message begins: "--artifacts"."""


def locate(text: str) -> Location:
    """The folder that `--artifacts` names, a path or a URL. Nothing is reached for yet.

    Raises UserError for a protocol that isn't known or whose package isn't there, and for a URL with a secret."""
    protocol, separator, rest = text.partition("://")
    if not separator:
        return Local(Path(text))
    if shown(text) != text:
        raise UserError(
            f"--artifacts {shown(text)}: workers are given it on their command line, so it has neither a password nor "
            f"a '?' with options in it. Give them in the environment, as FSSPEC_{protocol.upper()}_PASSWORD=..., or "
            "where the protocol's own tools look for them."
        )
    if protocol in ("file", "local"):
        # Not through fsspec, which writes elsewhere first and moves: across disks that leaves half a file.
        if not rest.startswith("/"):
            raise UserError(f"--artifacts {text}: write the whole path, {protocol}:///folder.")
        return Local(Path(rest))
    _require_protocol(text, protocol)
    return Remote(text.rstrip("/"))


def _require_protocol(url: str, protocol: str) -> None:
    try:
        import fsspec
    except ImportError:
        raise UserError(f"--artifacts {url}: a URL needs fsspec: pip install 'vae-study[fsspec]'.") from None
    try:
        for part in protocol.split("::"):
            fsspec.get_filesystem_class(part)
    except ImportError as error:
        raise UserError(
            f"--artifacts {url}: {protocol}:// needs a package beside 'vae-study[fsspec]': {_line(error)}."
        ) from None
    except ValueError:
        raise UserError(
            f"--artifacts {url}: fsspec knows no {protocol}://. Give a folder, file:///folder, s3://bucket/folder or "
            "another of its protocols."
        ) from None


@dataclass(frozen=True)
class Local:
    """A file or folder of this machine."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def __truediv__(self, part: str) -> Local:
        return Local(self.path / part)

    def __str__(self) -> str:
        return str(self.path)

    def absolute(self) -> Local:
        return Local(self.path.absolute())

    def exists(self) -> bool:
        with self._explained("be read"):
            return self.path.is_file()

    def files(self) -> Iterator[Local]:
        with self._explained("be read"):
            found = [path for path in sorted(self.path.rglob("*")) if path.is_file()]
        return (Local(path) for path in found)

    @contextmanager
    def local(self) -> Iterator[Path]:
        yield self.path

    def save(self, write: Callable[[Path], object]) -> None:
        write(self.path)

    def create(self, content: bytes) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("xb") as file:
                file.write(content)
        except OSError as error:
            if isinstance(error, FileExistsError) and self.exists():
                return False
            raise FailureError(f"{self.path.parent} can't be written to: {error.strerror}.") from None
        return True

    def delete(self) -> None:
        with self._explained("be deleted"), suppress(FileNotFoundError, NotADirectoryError):
            self.path.unlink()

    def require_writable(self, what: str) -> None:
        try:
            try_folder(self.path)
        except OSError as error:
            raise FailureError(f"{what} can't be written to: {self.path}: {error.strerror}.") from None

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FailureError(f"{self.path} can't {what}: {error.strerror}.") from None


@dataclass(frozen=True)
class Remote:
    """A file or folder that fsspec reaches: the `parts` below the folder at `url`."""

    url: str
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "/".join((self.url, *self.parts)).rpartition("/")[2]

    def __truediv__(self, part: str) -> Remote:
        return Remote(self.url, (*self.parts, part))

    def __str__(self) -> str:
        return "/".join((self.url, *self.parts))

    def absolute(self) -> Remote:
        return self

    def exists(self) -> bool:
        with self._explained("be read"):
            fs, path = self._reach()
            try:
                return bool(fs.info(path)["type"] == "file")
            except (FileNotFoundError, NotADirectoryError):
                return False

    def files(self) -> Iterator[Remote]:
        with self._explained("be read"):
            fs, path = self._reach()
            found = fs.find(path)
        below = (file.removeprefix(f"{path}/").split("/") for file in found)
        return (Remote(self.url, (*self.parts, *parts)) for parts in below)

    @contextmanager
    def local(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="vae-study-") as folder:
            path = Path(folder) / self.name
            if self.exists():
                with self._explained("be read"):
                    fs, source = self._reach()
                    fs.get_file(source, str(path))
            with self._in_place_of(path):
                yield path

    def save(self, write: Callable[[Path], object]) -> None:
        with self._explained("be written to"), tempfile.TemporaryDirectory(prefix="vae-study-") as folder:
            path = Path(folder) / self.name
            with self._in_place_of(path):
                write(path)

            def upload(fs: Any, target: str) -> None:
                # A file of a transaction appears once it is all there.
                with fs.transaction, fs.open(target, "wb") as remote, path.open("rb") as file:
                    shutil.copyfileobj(file, remote, 2**20)

            self._write(upload)

    def create(self, content: bytes) -> bool:
        with self._explained("be written to"):
            try:
                self._write(lambda fs, target: fs.pipe_file(target, content, mode="create"))
            except Exception:
                # Not FileExistsError alone: of what speaks S3, only Amazon's own says which condition of the write did
                # not hold.
                if self.exists():
                    return False
                raise
        return True

    def delete(self) -> None:
        if self.exists():
            with self._explained("be written to"):
                fs, path = self._reach()
                fs.rm_file(path)

    def require_writable(self, what: str) -> None:
        probe = self / f".probe-{secrets.token_hex(4)}"
        try:
            probe.save(lambda path: write_bytes(path, b"vae-study"))
            probe.delete()
        except FailureError as error:
            raise FailureError(f"{what} {error}") from None

    def _reach(self) -> tuple[Any, str]:
        """The file system, one for each thread, and the path in it."""
        import fsspec

        fs, root = fsspec.core.url_to_fs(self.url)
        fs.invalidate_cache()  # others write there too
        return fs, "/".join((root.rstrip("/"), *self.parts))

    def _write(self, write: Callable[[Any, str], object]) -> None:
        """Write once more with the folders made where there are none, as on what has folders; a bucket is not made."""
        fs, path = self._reach()
        try:
            write(fs, path)
        except FileExistsError:
            raise
        except (OSError, ftplib.Error):
            first = path[: path.find("/", 1)]
            if not fs.exists(first):
                raise
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            write(fs, path)

    @contextmanager
    def _in_place_of(self, path: Path) -> Iterator[None]:
        """What is said of the copy at `path` is meant of this."""
        try:
            yield
        except UserError as error:
            error.args = (str(error).replace(str(path), str(self)), *error.args[1:])
            raise

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except FileExistsError:
            raise FailureError(f"{self.url} can't {what}: a file stands where a folder would be.") from None
        except Exception as error:  # each protocol's package has errors of its own
            raise FailureError(f"{self.url} can't {what}: {_line(error)}.") from None


def _line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text[:300].rstrip(".") or type(error).__name__
