"""Code of the user's own by name, `file.py:NAME` or `package.module:NAME`: found and hashed, and only then run.

A file is run as it was hashed. Of a package, every .py file in it is hashed; what a file imports from elsewhere is not:
what belongs together is one file, or a package.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from vae.errors import UserError, did_you_mean

#: Bytes of a file or of all files of a package: a factory is no data.
MAX_BYTES = 64 * 2**20
#: What anybody's code may raise that is told in a line: sys.exit() too, which would end the program without a word.
RAISED = (Exception, SystemExit)
#: Characters of a name, and of an error of the user's own code that are shown.
MAX_NAME, SHOWN = 300, 300

_MODULE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_REFERENCE = re.compile(rf"(?P<where>[^\x00-\x1f\x7f]+\.py|{_MODULE}):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Source:
    """Where a name leads, before any of it is run."""

    reference: str
    path: Path
    """The file, or the package's folder; absolute."""
    sha256: str

    @property
    def absolute(self) -> str:
        """The reference as it is found from any folder; a module's is that already."""
        where, _, name = self.reference.rpartition(":")
        return f"{self.path}:{name}" if where.endswith(".py") else self.reference


def is_reference(text: str) -> bool:
    """Whether a text is `file.py:NAME` or `package.module:NAME`, whatever is there."""
    return len(text) <= MAX_NAME and _REFERENCE.fullmatch(text) is not None


def label(reference: str) -> str:
    """A short name: code-flowers of some/code.py:flowers."""
    where, _, name = reference.rpartition(":")
    return f"{Path(where).stem if where.endswith('.py') else where.rpartition('.')[2]}-{name}"


def find(reference: str) -> Source:
    """Where a reference leads and the SHA-256 of what would be run; nothing is. Raises UserError where nothing is
    there, and for Python's own modules: nothing in those is a network, an optimizer or data."""
    return _read(reference)[0]


def load(reference: str, sha256: str | None = None) -> Callable[..., Any]:
    """What a reference names, run and ready to be called.

    sha256: that of what may be run; anything else is refused (UserError), and so is what isn't there, fails as it is
    read or isn't callable."""
    source, text = _read(reference)
    if sha256 is not None and source.sha256 != sha256:
        raise changed(source, sha256)
    where, _, name = reference.rpartition(":")
    module = _module(where, source) if text is None else _run(str(source.path), source.sha256, text)
    found = getattr(module, name, None)
    if found is None:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{where} has no '{name}'. {did_you_mean(name, names)}")
    if not callable(found):
        raise UserError(f"{reference} is a {type(found).__name__}: name a function or a class.")
    return found  # type: ignore[no-any-return]


def require_same(references: Iterable[str], sources: Mapping[str, str]) -> dict[str, str]:
    """Reference -> SHA-256 as it is here. Raises UserError for one that `sources` has with another."""
    found = {}
    for reference in references:
        source = find(reference)
        expected = sources.get(reference, source.sha256)
        if source.sha256 != expected:
            raise changed(source, expected)
        found[reference] = source.sha256
    return found


def find_again(reference: str, path: str, sha256: str) -> Source:
    """What was hashed then: by its name, or for a file where it was. Raises UserError where neither is the same."""
    where, _, name = reference.rpartition(":")
    places = [reference] if not where.endswith(".py") else [reference, f"{path}:{name}"]
    missing, other = None, None
    for place in places:
        try:
            source = find(place)
        except UserError as error:
            missing = missing or error
            continue
        if source.sha256 == sha256:
            return source
        other = other or replace(source, reference=reference)
    if other is not None:
        raise changed(other, sha256)
    assert missing is not None
    raise missing


def changed(source: Source, expected: str) -> UserError:
    """The refusal of other code under the same name."""
    return UserError(
        f"{source.reference} has SHA-256 {source.sha256[:12]}... here, not {expected[:12]}... as when this was begun: "
        "bring that code back, or begin anew under another name."
    )


def told(error: BaseException, of: str = "") -> str:
    """An error of the user's own code in one line; with the line of its file `of` in which it arose."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == of]
    if isinstance(error, SyntaxError):
        frames = []
    at = f"line {frames[-1].lineno}: " if frames else ""
    line = " ".join(str(error).split())
    line = line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
    return f"{at}{type(error).__name__}{': ' if line else ''}{line}"


def _read(reference: str) -> tuple[Source, bytes | None]:
    """A source, and the text of a file; None for a module, which Python imports."""
    if not is_reference(reference):
        raise UserError(
            f"{reference[:MAX_NAME]!r}: name code of your own as file.py:NAME or package.module:NAME."
        )
    where, _, _ = reference.rpartition(":")
    if not where.endswith(".py"):
        path = _module_path(where)
        return Source(reference, path, _hash(path)), None
    path = Path(where).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{reference}: there is no file {where} here.")
    text = _bytes(path)
    return Source(reference, path, hashlib.sha256(text).hexdigest()), text


def _module_path(name: str) -> Path:
    """A module's file, or a package's folder, without importing anything: `importlib.util.find_spec` would import
    the packages round it. The working folder is looked in last, for a worker too."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        raise UserError(
            f"'{name}' is a module of Python itself: it has nothing that could be trained or trained on."
        )
    places: Sequence[str] = [*sys.path, str(Path.cwd())]
    origin = None
    for depth in range(name.count(".") + 1):
        spec = PathFinder.find_spec(".".join(name.split(".")[: depth + 1]), places)
        if spec is None:
            raise UserError(
                f"There is no module '{name}' here: install it, or name a file of your own as file.py:NAME."
            )
        places, origin = list(spec.submodule_search_locations or ()), spec.origin
    if origin is None or not origin.endswith(".py"):
        raise UserError(f"'{name}' has no Python source that could be hashed.")
    path = Path(origin).resolve()
    return path.parent if path.name == "__init__.py" else path


def _hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's .py files: their names and bytes, sorted by name."""
    if path.is_file():
        return hashlib.sha256(_bytes(path)).hexdigest()
    digest, total = hashlib.sha256(), 0
    for file in sorted(path.rglob("*.py")):
        text = _bytes(file)
        total += len(text)
        if total > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes of Python: name a file of it.")
        digest.update(f"{file.relative_to(path).as_posix()} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes: that is no Python file.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None


@lru_cache(maxsize=64)
def _run(path: str, sha256: str, text: bytes) -> ModuleType:
    """The module of a file, run once as it was hashed: of a file that has changed since, the new text is another."""
    module = ModuleType(f"own_{Path(path).stem}_{sha256[:12]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and torch.compile look a class's module up
    _see(str(Path(path).parent))
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except RAISED as error:
        del sys.modules[module.__name__]
        raise UserError(f"{path} fails as it is read: {told(error, path)}") from error
    return module


def _module(name: str, source: Source) -> ModuleType:
    _see(str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except RAISED as error:
        raise UserError(f"The module '{name}' fails as it is imported: {told(error)}") from error
    file = Path(module.__file__ or "").resolve()
    if file not in (source.path, source.path / "__init__.py"):
        raise UserError(f"The module '{name}' is {file} in this process, not {source.path}: rename yours.")
    return module


def _see(folder: str) -> None:
    """Let what stands beside a file be imported by it; last, so that it takes no other module's place."""
    if folder not in sys.path:
        sys.path.append(folder)
