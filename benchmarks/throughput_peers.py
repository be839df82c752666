"""Who takes part in `python -m benchmarks throughput`, the processes they run in, and where those find packages."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from vae.devices import NO_BF16_UNITS, multiplies_bf16
from vae.errors import FailureError

ROOT = Path(__file__).parents[1]
#: An environment for contestants whose packages this one lacks; made by `--install`, ignored by git.
ENVIRONMENT = ROOT / ".bench" / "venv"
HOW_TO_INSTALL = "pip install -e '.[bench]', or --install for an environment of its own"
#: Seconds that a contestant which closed its output has for leaving.
GRACE = 10.0


@dataclass(frozen=True)
class Contestant:
    """A module to run, with its arguments and the packages it needs beyond ours."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    needs_bf16_units: bool = False
    """Means nothing on a processor without units that multiply bfloat16."""


CONTESTANTS = (
    Contestant("plain", "benchmarks.peers.plain"),
    Contestant("plain-tensors", "benchmarks.peers.plain", ("--tensors",)),
    Contestant("pythae", "benchmarks.peers.pythae_peer", packages=("pythae",)),
    Contestant("lightning", "benchmarks.peers.lightning_peer", packages=("lightning",)),
    Contestant("keras", "benchmarks.peers.keras_peer", packages=("keras", "tensorflow")),
    Contestant("jax", "benchmarks.peers.jax_peer", packages=("jax",)),
    Contestant("jax-bf16", "benchmarks.peers.jax_peer", ("--bf16",), packages=("jax",)),
    Contestant("ours", "benchmarks.peers.ours"),
    Contestant("ours-bf16", "benchmarks.peers.ours", ("--bf16",)),
    Contestant("ours-compiled", "benchmarks.peers.ours", ("--compile",)),
    Contestant("ours-bf16-compiled", "benchmarks.peers.ours", ("--bf16", "--compile")),
    Contestant("limit", "benchmarks.peers.limit"),
    Contestant("limit-bf16", "benchmarks.peers.limit", ("--bf16",), needs_bf16_units=True),
)


class CrashError(Exception):
    """A contestant's process ended, with the last line it wrote to stderr."""


class Process:
    """A contestant's process: ask, wait for the answer. Killed with its children when the context is left."""

    def __init__(self, contestant: Contestant, interpreter: str, options: Iterable[str]) -> None:
        self.name = contestant.name
        self._cache = tempfile.TemporaryDirectory()  # of compiled graphs: compiling is timed from nothing
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self._began = time.perf_counter()
        # A session of its own: Ctrl-C reaches this process only, which then ends the contestant's whole group.
        self._process = subprocess.Popen(
            [interpreter, "-m", contestant.module, *options, *contestant.arguments],
            cwd=ROOT,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": self._cache.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> dict[str, Any]:
        """Wait until it can train; what it said, with the seconds since its start."""
        answer = self.answer()
        return answer | {"startup_seconds": time.perf_counter() - self._began}

    def ask(self, command: str) -> None:
        """Send `train` or `loss` without waiting."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise CrashError(self._last_words()) from None

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer. Raises CrashError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            raise CrashError(self._last_words()) from None
        if not isinstance(answer, dict):
            raise CrashError(f"not an answer: {line.strip()}")
        return answer

    def _last_words(self) -> str:
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return f"closed its output and runs on; {self._last_line()}"
        if code < 0:  # no word of its own: out of memory, say
            return f"killed by {signal.Signals(-code).name}; {self._last_line()}"
        return self._last_line()

    def _last_line(self) -> str:
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines()]
        said = [line for line in lines if line]
        return said[-1] if said else f"status {self._process.returncode} without a word"

    def close(self) -> None:
        """Kill it and whatever it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._cache.cleanup()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:  # a command that was never read
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lacking(contestant: Contestant) -> str | None:
    """Why the contestant can't take part on this machine; None where it can."""
    if contestant.needs_bf16_units and not multiplies_bf16(torch.device("cpu")):
        return NO_BF16_UNITS
    if interpreter_for(contestant) is None:
        return f"{' and '.join(contestant.packages)} not installed: {HOW_TO_INSTALL}"
    return None


def interpreter_for(contestant: Contestant) -> str | None:
    """A Python that has the contestant's packages: this one, that of `.bench`, or None."""
    missing = [name for name in contestant.packages if importlib.util.find_spec(name) is None]
    if not missing:
        return sys.executable
    own = ENVIRONMENT / "bin" / "python"
    return str(own) if own.exists() and set(missing) <= _packages_of(own) else None


@cache
def _packages_of(interpreter: Path) -> frozenset[str]:
    """Those of the contestants' packages that the interpreter has."""
    wanted = sorted({name for contestant in CONTESTANTS for name in contestant.packages})
    code = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n)))"
    done = subprocess.run([interpreter, "-c", code, *wanted], capture_output=True, text=True, check=True)
    return frozenset(done.stdout.split())


def install() -> None:
    """Make `.bench` with the packages of the extra `[bench]`, this project's torch and its constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = ["torch", "numpy", *project["optional-dependencies"]["bench"]]
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-q", "-c", "constraints.txt"]
    for command in ([sys.executable, "-m", "venv", str(ENVIRONMENT)], [*pip, *wanted]):
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise FailureError(f"{' '.join(command)} failed; what it said stands above.")
    _packages_of.cache_clear()
