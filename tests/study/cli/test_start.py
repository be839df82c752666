"""What a command loads before it does anything: a list of techniques needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
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
from study.cli.app import run
for command in sys.argv[1:]:
    sys.argv = ["study", *command.split()]
    try:
        run()
    except SystemExit as end:
        assert not end.code, command
    print("loaded", *sys.modules, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def compared(one_arm: fake_training.Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished comparison in its optuna.db."""
    return one_arm.copy(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search in its optuna.db, of enough complete trials for importances, and its models."""
    folder = tmp_path_factory.mktemp("searched")
    session = fake_training.prepare_search(folder, LEAST_TRIALS, pruner="none", sampler="random")
    with session.store:
        session.run_here()
    return folder


def loaded(folder: Path, commands: Iterable[str]) -> dict[str, set[str]]:
    """Command -> the heavy libraries that it and those before it have loaded when it ends, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *commands],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [set(line.split()) for line in done.stderr.splitlines() if line.startswith("loaded ")]
    assert all("study.cli.app" in modules for modules in lines)
    return {command: modules & set(HEAVY) for command, modules in zip(commands, lines, strict=True)}


#: What reading a database and judging it takes; tables to write and to draw from take pandas as well.
READING = {"optuna", "pydantic", "sqlalchemy", "scipy"}
REPORTING = READING | {"pandas", "scipy.stats", "plotly"}
#: Where Optuna reads the database for itself, its models of its own tables and the look at their version.
BY_OPTUNA = {"alembic", "sqlalchemy.orm"}


def test_a_command_loads_what_it_needs(compared: Path) -> None:
    """Reading a database loads neither torch nor scikit-learn, showing it not pandas, listing techniques no Optuna.
    Each command needs all that the one before it does, so one process may run them in turn."""
    needed: dict[str, set[str]] = {
        "--help": set(),
        "run --help": {"pydantic"},
        "techniques": {"pydantic"},
        "show": READING,
        "show --json": READING,
        "export": READING | {"pandas"},
        "report --artifacts none": REPORTING,
    }
    assert loaded(compared, needed) == needed


def test_importances_need_forests_and_pictures_torch(searched: Path) -> None:
    """A search's tables need neither; its report loads scikit-learn, and torch only where a model can be drawn."""
    needed: dict[str, set[str]] = {
        "show": READING,
        "export": READING | {"pandas"},
        "report --artifacts none": REPORTING | BY_OPTUNA | {"sklearn"},
        "report": REPORTING | BY_OPTUNA | {"sklearn", "torch"},
    }
    assert loaded(searched, needed) == needed
