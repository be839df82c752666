"""What a command loads before it does anything: a list of techniques needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fake_training
import pytest

ROOT = Path(__file__).resolve().parents[3]
#: Seconds of processor time are in these imports, more than in all that the commands below do themselves.
HEAVY = ("torch", "sklearn", "scipy.stats", "plotly", "pandas", "sqlalchemy", "scipy", "optuna", "pydantic")
CODE = """
import sys
sys.argv = ["study", *sys.argv[1:]]
from study.cli.app import run
try:
    run()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished comparison in its optuna.db."""
    return fake_training.finish(tmp_path_factory.mktemp("finished"), tune_trials=2, seeds=4).folder


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("--help", ()),
        ("run --help", ("pydantic",)),
        ("techniques", ("optuna", "pydantic")),
        ("show", ("optuna", "pydantic", "pandas", "sqlalchemy", "scipy")),
        ("export", ("optuna", "pydantic", "pandas", "sqlalchemy", "scipy")),
        ("report", ("optuna", "pydantic", "pandas", "sqlalchemy", "scipy", "scipy.stats", "plotly")),
    ],
)
def test_a_command_loads_no_more_than_it_needs(folder: Path, command: str, needed: tuple[str, ...]) -> None:
    """Reading a database loads neither torch nor scikit-learn, listing the techniques not even pandas."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command.split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "study.cli.app" in loaded
    assert {name for name in HEAVY if name in loaded} <= set(needed)
