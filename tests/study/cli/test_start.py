"""What a command loads before it does anything: a list of techniques needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fake_training
import pytest

from study.analysis.search import LEAST_TRIALS

ROOT = Path(__file__).resolve().parents[3]
#: Seconds of processor time are in these imports, more than in all that the commands below do themselves.
HEAVY = (
    "torch", "sklearn", "scipy.stats", "plotly", "pandas", "alembic", "sqlalchemy.orm", "sqlalchemy", "scipy", "optuna",
    "pydantic",
)  # fmt: skip
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
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished comparison in its optuna.db."""
    return fake_training.finish(tmp_path_factory.mktemp("compared"), tune_trials=2, seeds=4).folder


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search in its optuna.db, of enough complete trials for importances, and its models."""
    folder = tmp_path_factory.mktemp("searched")
    session = fake_training.prepare_search(folder, LEAST_TRIALS, pruner="none", sampler="random")
    with session.store:
        session.run_here()
    return folder


def loaded(folder: Path, command: str) -> set[str]:
    """The heavy libraries that a command has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command.split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stderr.splitlines()[-1].split())
    assert "study.cli.app" in modules
    return modules & set(HEAVY)


#: What reading a database and judging it takes; tables to write and to draw from take pandas as well.
READING = {"optuna", "pydantic", "sqlalchemy", "scipy"}
REPORTING = READING | {"pandas", "scipy.stats", "plotly"}
#: Where Optuna reads the database for itself, its models of its own tables and the look at their version.
BY_OPTUNA = {"alembic", "sqlalchemy.orm"}


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("--help", set()),
        ("run --help", {"pydantic"}),
        ("techniques", {"pydantic"}),
        ("show", READING),
        ("show --json", READING),
        ("export", READING | {"pandas"}),
        ("report --artifacts none", REPORTING),
    ],
)
def test_a_command_loads_what_it_needs(compared: Path, command: str, needed: set[str]) -> None:
    """Reading a database loads neither torch nor scikit-learn, showing it not pandas, listing techniques no Optuna."""
    assert loaded(compared, command) == needed


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("show", READING),
        ("export", READING | {"pandas"}),
        ("report --artifacts none", REPORTING | BY_OPTUNA | {"sklearn"}),
        ("report", REPORTING | BY_OPTUNA | {"sklearn", "torch"}),
    ],
)
def test_importances_need_forests_and_pictures_torch(searched: Path, command: str, needed: set[str]) -> None:
    """A search's tables need neither; its report loads scikit-learn, and torch only where a model can be drawn."""
    assert loaded(searched, command) == needed
