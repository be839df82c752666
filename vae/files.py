"""Files written whole or not at all: a reader, a kill or a full disk never meets half of one."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from vae.errors import FailureError


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a new file beside `path` and rename it to `path`; the path, for the caller's message.

    Folders on the way are made; a link stays one. However `write` ends, a file that was there before is whole
    and nothing is left beside it. Raises FailureError for an OSError and where `path` is anything but a file.
    """
    # Through links, or the link itself would be replaced.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:200]}-{secrets.token_hex(4)}")
    try:
        _require_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        try:
            write(temporary)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FailureError(f"{path} can't be written: {error.strerror or error}.") from None
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """`write_whole` of bytes. Raises FailureError."""
    return write_whole(path, lambda temporary: temporary.write_bytes(content))


def require_writable(path: Path) -> None:
    """Raises FailureError where `write_whole` could write no `path`; tried with a file that leaves nothing."""
    target = Path(os.path.realpath(path))
    try:
        _require_file(target)
        try_folder(target.parent)
    except OSError as error:
        raise FailureError(f"{path} can't be written: {error.strerror or error}.") from None


def try_folder(folder: Path) -> None:
    """Raises OSError where no file can be written to a folder, which is there or would be made; leaves nothing."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    with tempfile.TemporaryFile(dir=there):
        pass


def _require_file(target: Path) -> None:
    # A rename would put a file in the place of a device.
    if target.exists() and not target.is_file():
        raise OSError("it is a directory" if target.is_dir() else "it is no regular file")
