"""The command line as the tests call it: in this process, in an empty folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from study.cli import app as cli


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]


def caller(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """What runs the command line in a folder, as `python -m study ARGS` would, to its exit code and output."""
    monkeypatch.chdir(folder)

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["study", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run
