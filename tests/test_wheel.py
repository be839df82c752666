"""A built wheel holds all that the program needs, and runs away from the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import runpy, sys
sys.argv[0] = "study"
try:
    runpy.run_module("study", run_name="__main__")
finally:
    ours = [name for name in sys.modules if name.partition(".")[0] in ("study", "vae")]
    print(*(sys.modules[name].__file__ for name in ours), sep="\\n", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the hook that pip calls, without pip, from a copy: a build leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in ("study", "vae"):
        shutil.copytree(
            ROOT / package, folder / "source" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    (folder / "out").mkdir()
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder / "out")]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True)
    (built,) = (folder / "out").iterdir()
    return built


def test_a_wheel_holds_every_file(wheel: Path) -> None:
    """Each module and each file that a module reads: nothing is listed by hand, so nothing can be forgotten."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.startswith("vae_study-")}
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in ("study", "vae")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == ours


def test_a_wheel_runs_outside_of_the_clone(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, the catalogue is listed and a small comparison planned, by the unpacked code."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(command: str) -> tuple[str, list[str]]:
        """What `python -m study COMMAND` prints, and the files of ours that it has loaded."""
        done = subprocess.run(
            [sys.executable, "-c", RUN, *command.split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout, done.stderr.splitlines()

    assert "output-bias" in run("techniques")[0]
    planned, files = run("compare --arms cosine --dry-run")
    assert "trials" in planned
    assert {"study/session.py", "vae/training.py"} <= {
        Path(file).relative_to(tmp_path / "site").as_posix() for file in files
    }
