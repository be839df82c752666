"""Both command lines are run in one way: one version, one look, one line for an error, one set of exit codes."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae.command import command_line, run
from vae.errors import FailureError, UserError

PROGRAMS = ["vae", "study"]


def called(program: str, *args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", program, *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
def test_both_commands_look_alike(program: str, tmp_path: Path) -> None:
    """--version names the same versions; an unknown command is one line and exit code 2; without arguments there is
    help; none of it has a frame or a colour."""
    version = called(program, "--version", folder=tmp_path)
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("vae-study ")
    assert version.stdout == called("vae", "--version", folder=tmp_path).stdout
    mistake = called(program, "frobnicate", folder=tmp_path)
    assert (mistake.returncode, mistake.stdout) == (2, "")
    assert mistake.stderr == "Error: No such command 'frobnicate'. See --help.\n"
    helped = called(program, folder=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--version" in helped.stdout
    assert "\x1b" not in helped.stdout
    assert "─" not in helped.stdout


def outcome_of(error: BaseException | None, monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Exit code of a command that ends with that error."""
    app = command_line("test", "A test.")

    @app.command("go")
    def go(debug: bool = False) -> None:  # noqa: ARG001
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["test", "go", *args])
    with pytest.raises(SystemExit) as end:
        run(app)
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (None, "", 0),
        (UserError("no"), "Error: no\n", 2),
        (FailureError("full"), "Error: full\n", 1),
        (UserError("no 'a\x1b[31m\nb'"), r"Error: no 'a\x1b[31m\nb'" + "\n", 2),
        (KeyboardInterrupt(), "", 130),
        (MemoryError("4 TB"), "Error: There is not enough memory for this (4 TB).\n", 1),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.\nat"),
            "Error: There is not enough memory for this (DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4 bytes).\n",
            1,
        ),
    ],
)
def test_an_error_is_a_line_and_a_code(
    error: BaseException | None,
    line: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """2 for usage, 1 for failure, 130 where it was stopped; no traceback. The terminal obeys nothing in it."""
    assert outcome_of(error, monkeypatch) == code
    assert capsys.readouterr().err.lstrip("\n") == line


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does an error of the program's own, which no line could explain."""
    with pytest.raises(UserError):
        outcome_of(UserError("no"), monkeypatch, "--debug")
    with pytest.raises(ZeroDivisionError):
        outcome_of(ZeroDivisionError(), monkeypatch)


def test_a_reader_that_has_gone_is_no_traceback(tmp_path: Path) -> None:
    """`... | head -0`: nothing is said twice."""
    line = f"{sys.executable} -m vae --help | true"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("> /dev/full", "Error: The output can't be written: No space left on device.\n"),
        (">&-", ""),
    ],
)
def test_an_output_that_takes_nothing_is_no_traceback(to: str, said: str, tmp_path: Path) -> None:
    """A full disk is a line and exit code 1; no output at all is none and 0, as for a service."""
    line = f"{sys.executable} -m vae --help {to}"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == (said, 1 if said else 0)


def test_a_character_that_the_output_has_not_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on stderr, where the output's encoding is another than UTF-8."""
    app = command_line("test", "A test.")

    @app.command("go")
    def go() -> None:
        print("é")

    written = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["test", "go"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with pytest.raises(SystemExit):
        run(app)
    assert written.getvalue() == b"\\xe9\n"


def test_stopped_by_hand(tmp_path: Path) -> None:
    """Ctrl-C in a training: exit code 130, no traceback, no file."""
    command = [
        sys.executable,
        "-m",
        "vae",
        "train",
        "--set",
        "hidden=[8]",
        "--budget",
        "2000",
        "--out",
        "m.safetensors",
    ]
    # Started in the background a process may have been told to ignore the signal: here it is as in a terminal.
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error.strip()) == (130, "")
    assert list(tmp_path.iterdir()) == []
