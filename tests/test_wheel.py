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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip builds it, from a copy: a build leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in ("study", "vae"):
        shutil.copytree(
            ROOT / package, folder / "source" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", folder / "out", folder / "source"], check=True, capture_output=True)
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

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    where = run(
        "-c", "import study.session, vae.training; print(study.session.__file__, vae.training.__file__)"
    )
    assert all(path.startswith(str(tmp_path / "site")) for path in where.split())
    assert "output-bias" in run("-m", "study", "techniques")
    assert "trials" in run("-m", "study", "compare", "--arms", "cosine", "--dry-run")
