"""A/A comparisons leave no process behind. What they compare is tested with the comparison."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_training
import pytest

from study.aa import Family, Said, _line, measure
from study.design.build import Request
from study.place import Place
from study.statistics.verdicts import Verdict
from study.store.locations import Local
from vae.errors import UserError

PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from study.aa import _end_with_parent

def task(_):
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_end_with_parent) as pool:
        list(pool.map(task, range(3)))
"""


def test_a_killed_launcher_leaves_no_process(tmp_path: Path) -> None:
    """However it ends, by kill -9 too: its processes don't go on with what is queued."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _runs(child)
        os.kill(parent.pid, signal.SIGKILL)
        parent.stdout.close()
    deadline = time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def test_no_blocks_and_bad_values_are_refused_before_anything_runs(tmp_path: Path) -> None:
    """A number of blocks that is none is no 1, a seed of a file may be anything, and nothing is written."""
    place = Place(f"sqlite:///{tmp_path / 'optuna.db'}", Local(tmp_path / "artifacts"), None, "cpu", 1)
    request = Request({"data": fake_training.pixels(tmp_path), "name": "aa", "recipe": {"batch_size": 8}})
    said: list[str] = []
    for field, value in (("blocks", 0), ("seed", "x"), ("seed", -1)):
        with pytest.raises(UserError, match=f"{field} = {value!r}"):
            measure(place, request.having(**{field: value}), 1, 1, said.append)
    assert said == []
    assert [path.name for path in tmp_path.iterdir()] == ["pixels.npy"]


def test_three_blocks_err_as_one_measures(tmp_path: Path) -> None:
    """A/A at R = 3: every null arm is tuned and confirmed in each of three splits, and one line a family says what was
    found, one the share of false verdicts."""
    place = Place(f"sqlite:///{tmp_path / 'optuna.db'}", Local(tmp_path / "artifacts"), None, "cpu", 1)
    values = {"data": fake_training.pixels(tmp_path), "name": "aa", "recipe": {"batch_size": 8}}
    values |= {"budget": 2.0, "tune_trials": 2, "seeds": 3, "blocks": 3}
    said: list[str] = []
    measure(place, Request(values), 1, 1, said.append)
    assert said[0] == "1 A/A comparison of 1 null arm, R = 3"
    assert said[1].startswith("  seed 0: ")
    assert said[2].startswith("families with a false verdict: ")


def _runs(pid: int) -> bool:
    """Not as a zombie, which nobody may be there to wait for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_arm_without_a_ratio_has_no_figures() -> None:
    """A lone null arm that misses the target is told by its verdict."""
    nan = float("nan")
    assert _line(Family(3, (Said(nan, nan, Verdict.UNRELIABLE),))) == "seed 3: unreliable"
    assert (
        _line(Family(3, (Said(1.01, 0.5, Verdict.UNDECIDED),)))
        == "seed 3: 1.010x, p 0.500, not distinguishable"
    )
