"""The file in which a stream of proposals is written down: what was judged, at which level, with which outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import filelock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from study.statistics.spending import next_level
from vae.errors import FailureError, UserError
from vae.files import require_writable, write_bytes

#: Seconds for which another process may hold the ledger.
PATIENCE_SECONDS = 60.0


def _printable(text: str) -> str:
    """The text, which goes to a terminal."""
    if not text.isprintable():
        raise ValueError("a text with characters that can't be printed")
    return text


Words = Annotated[str, AfterValidator(_printable)]


class Entry(BaseModel):
    """One judgement. Its level isn't written down: it follows from the entries before."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    arm: Words
    require: Literal["faster", "not-slower"]
    evidence: str
    """A hash of all that the judgement rests on: the same evidence is not judged twice."""
    p: float = Field(ge=0.0, le=1.0)
    ruling: Literal["yes", "no", "undecided"]
    line: Words
    """Why, as it was said."""


class Ledger(BaseModel):
    """All judgements of a stream in their order."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1] = 1
    entries: list[Entry] = []

    @property
    def next_level(self) -> float:
        """The level that the next proposal is judged at."""
        return next_level([entry.ruling == "yes" for entry in self.entries])

    def find(self, evidence: str) -> Entry | None:
        """The judgement of that evidence; None before it."""
        return next((entry for entry in self.entries if entry.evidence == evidence), None)


def judged_once(path: Path, evidence: str, judge: Callable[[float], Entry]) -> tuple[Entry, bool]:
    """(the judgement of this evidence, whether it is an earlier one). A new one is made by `judge(level)`, and is in
    the file before it is told to anybody; processes take turns.

    Raises UserError for a file that is no ledger; FailureError where it can't be read, written or had in a minute."""
    if path.is_dir():
        raise UserError(f"--ledger {path} is a folder: name a file, for example {path / 'ledger.json'}.")
    require_writable(path)
    with _alone(path):
        ledger = _read(path)
        known = ledger.find(evidence)
        if known is not None:
            return known, True
        entry = judge(ledger.next_level)
        ledger.entries.append(entry)
        write_bytes(path, f"{ledger.model_dump_json(indent=1)}\n".encode())
        return entry, False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock, timeout=PATIENCE_SECONDS):
            yield
    except filelock.Timeout:
        raise FailureError(f"--ledger {path}: another process has held it for a minute ({lock}).") from None
    except OSError as error:
        raise FailureError(f"--ledger {path} can't be used: {error.strerror or error}.") from None


def _read(path: Path) -> Ledger:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Ledger()
    try:
        return Ledger.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"--ledger {path} is no ledger of this program ({where + ': ' if where else ''}{first['msg']}); a new file "
            "begins a new stream, with an error level of its own."
        ) from None
