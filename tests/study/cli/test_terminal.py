"""The terminal at 80 columns: the plan, progress with every arm that has ended, the table of the answer."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import fake_training
import pytest
from rich.console import Console

from study.analysis.evidence import read
from study.analysis.words import speed_up_of
from study.cli.progress import Progress, arms_table
from study.cli.tables import forest_table, print_plan
from study.design.build import Request
from study.place import Place
from study.session import check, finished_trials
from study.store.locations import Local
from study.store.records import Count
from study.store.store import Store


def shown(one_arm: fake_training.Finished, terminal: bool) -> str:
    """What is printed of the comparison by one look."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, height=30, color_system=None)
    with (
        Store.open(f"sqlite:///{one_arm.folder / 'optuna.db'}", read_only=True) as store,
        one_arm.open() as (_, state),
        Progress(console, store, state.experiment) as progress,
    ):
        progress.update()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_count_what_is_planned(one_arm: fake_training.Finished) -> None:
    """Not on a terminal: one line with n of N."""
    line = shown(one_arm, terminal=False)
    n = int(line.split()[0])
    assert line.startswith(f"{n} of {n} trials finished, 0 running, 0 waiting, ")
    assert line.count("\n") == 1


def test_a_terminal_keeps_the_arms_that_have_ended(one_arm: fake_training.Finished) -> None:
    """On a terminal the last picture stays, with every arm, within 80 columns."""
    picture = shown(one_arm, terminal=True)
    last = picture[picture.rindex("fake: ") :]
    for arm in ("baseline", "twice"):
        assert f"\n{arm} " in last
    assert "done" in last
    assert max(map(len, last.splitlines())) <= 80


def test_many_arms_fit_a_low_terminal() -> None:
    """Arms at work come first, then those that ended last; the others are counted. No heading is cut."""
    counts = [Count(f"arm-{i:02}", "tune", 8, int(i == 3), 0, 1_234_567, 24.5) for i in range(12)]
    counts.append(Count("combined-without-gradient-clipping", "confirm", 10, 2, 3, 1_000, None))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(arms_table(counts, "digits: 106 of 297 trials", room=5))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for word in ("arm-03", "arm-11", "arm-10", "arm-09", "and 8 more", "evaluations", "best loss", "running"):
        assert word in text
    assert "arm-08" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_plan_counts_what_is_done(tmp_path: Path, one_arm: fake_training.Finished) -> None:
    """A dry run of a top-up tells how many of its trials an earlier run has done, and changes nothing."""
    folder = one_arm.copy(tmp_path / "again")
    before = (folder / "optuna.db").read_bytes()
    place = Place(f"sqlite:///{folder / 'optuna.db'}", Local(folder / "artifacts"), None, "cpu", 1)
    experiment, data = check(
        place, Request({"data": fake_training.pixels(folder), "name": "fake", "seeds": 8})
    )
    done = finished_trials(place, experiment.name)
    console = Console(file=io.StringIO(), width=200)
    print_plan(console, experiment, data, place, 10.0, done)
    assert isinstance(console.file, io.StringIO)
    # 2 arms and the article's, 4 of 8 seeds each; tuning and calibration are done.
    assert (
        "33 trials (4 tune, 5 calibration, 24 confirm); 21 of them are done, the others take at most about"
        in (console.file.getvalue())
    )
    assert (folder / "optuna.db").read_bytes() == before


@pytest.mark.parametrize(
    "longest", ["gradient-clipping", "a-technique-of-the-users-with-a-name-of-48-letters"[:48]]
)
def test_the_answers_table_is_whole_at_80_columns(one_arm: fake_training.Finished, longest: str) -> None:
    """No heading and no figure of the forest table is cut, however long the arms' names are."""
    with Store.open(f"sqlite:///{one_arm.folder / 'optuna.db'}", read_only=True) as store:
        comparison = read(store, "fake").comparison
    assert comparison is not None
    twice = next(arm for arm in comparison.arms if arm.arm == "twice")
    comparison = replace(comparison, arms=[*comparison.arms, replace(twice, arm=longest)])
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(forest_table(comparison, wide=False))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "…" not in console.file.getvalue()
    assert max(map(len, lines)) <= 80
    assert "speed-up, examples" in lines[0]
    assert "speed-up, seconds" in lines[0]
    assert twice.examples is not None
    assert sum(speed_up_of(twice.examples) in line for line in lines) == 2
