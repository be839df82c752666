"""Curves are read as they were recorded: by the columns that are told, and what is no learning curve is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_training import Finished

from study.curves.read import called, read
from study.curves.recorded import Curves, Ended, Recorded, described
from study.curves.stored import read_stored
from study.curves.table import Columns
from study.store import records
from study.terms import Outcome, Phase
from vae.errors import UserError


def long_table(arms: tuple[str, ...] = ("adam", "muon"), seeds: int = 2, n: int = 4) -> pd.DataFrame:
    """Evaluations of each seed, at 100, 200, ... examples."""
    rows = [
        {"arm": arm, "seed": s, "examples": 100 * i, "value": 12.0 / i + k + s / 8, "seconds": 0.5 * i}
        for k, arm in enumerate(arms)
        for s in range(seeds)
        for i in range(1, n + 1)
    ]
    return pd.DataFrame(rows)


def written(frame: pd.DataFrame, path: Path) -> str:
    """The frame in a file of the format that its ending says."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    return str(path)


def rows(curves: Curves) -> list[tuple[Any, ...]]:
    """All that a record holds, run by run."""
    return [
        (
            run.arm,
            run.label,
            run.clock.tolist(),
            run.value.tolist(),
            None if run.seconds is None else run.seconds.tolist(),
        )
        for run in curves
    ]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_file_is_read_whole(tmp_path: Path, ending: str) -> None:
    """Each format holds the same table, and reading gives it back exactly."""
    frame = long_table()
    curves = read([written(frame, tmp_path / f"curves.{ending}")], Columns())
    expected = [
        (arm, str(seed), part["examples"].tolist(), part["value"].tolist(), part["seconds"].tolist())
        for (arm, seed), part in frame.groupby(["arm", "seed"], sort=False)
    ]
    assert rows(curves) == expected
    assert (curves.clock, curves.value, curves.paired, curves.maximise) == ("examples", "value", True, False)
    assert {run.ended for run in curves} == {Ended.COMPLETE}


def test_what_was_read_is_said(tmp_path: Path) -> None:
    """The source, arms with their runs, evaluations, clock and seconds, and runs that aren't complete."""
    frame = long_table().drop(columns="seconds")
    frame.loc[frame.index[-1], "value"] = math.inf
    path = written(frame, tmp_path / "c.parquet")
    assert described(read([path], Columns())) == [
        f"Read {path} (parquet)",
        "2 arms (seeds): adam (2), muon (2)",
        "16 evaluations of value (lower is better), clock: examples to 400; without seconds",
        "How runs ended: 3 complete, 1 diverged",
    ]


def test_columns_are_told_and_never_guessed(tmp_path: Path) -> None:
    """Other names are mapped; a name that is missing, or one of several clocks, is asked for."""
    frame = long_table().rename(columns={"arm": "config.optimizer", "value": "val/loss", "seconds": "t"})
    path = written(frame, tmp_path / "c.csv")
    with pytest.raises(UserError, match=r"no column 'arm'\. Name it with --arm-from\. Columns: 'config\.opt"):
        read([path], Columns())
    with pytest.raises(UserError, match=r"no column 'config.optimiser'.*Did you mean 'config.optimizer'"):
        read([path], Columns(arm="config.optimiser"))
    curves = read([path], Columns(arm="config.optimizer", value="val/loss"))
    assert curves.arms == ["adam", "muon"]
    assert all(run.seconds is None for run in curves)
    path = written(frame.assign(step=frame["examples"] // 10), tmp_path / "c.csv")
    with pytest.raises(UserError, match=r"several clocks \(examples, step\)\. Name one with --clock-from"):
        read([path], Columns(arm="config.optimizer", value="val/loss"))
    curves = read(
        [path], Columns(arm="config.optimizer", value="val/loss", clock="step", seconds="t", maximise=True)
    )
    assert curves.clock == "steps"
    assert curves.runs[0].clock.tolist() == [10, 20, 30, 40]
    assert curves.runs[0].value.tolist() == [-12.0, -6.0, -4.0, -3.0]
    assert curves.shown(curves.runs[0].value[0]) == 12.0


def test_rows_are_chosen(tmp_path: Path) -> None:
    """`where` keeps what has the value, whole numbers however they are written."""
    frame = long_table(seeds=3)
    path = written(frame, tmp_path / "c.csv")
    curves = read([path], Columns(where=[("seed", "2"), ("arm", "muon")]))
    assert [(run.arm, run.label) for run in curves] == [("muon", "2")]
    with pytest.raises(UserError, match="no row with --where seed=7"):
        read([path], Columns(where=[("seed", "7")]))


def test_an_empty_cell_is_no_evaluation_and_nan_is_a_breakdown(tmp_path: Path) -> None:
    """A tracker leaves a cell empty where it logged something else; NaN was logged, and the run ends there."""
    path = tmp_path / "c.csv"
    path.write_text(
        "arm,seed,step,value\n"
        "adam,0,1,9\nadam,0,2,\nadam,0,3,8\n"
        "adam,1,1,9\nadam,1,2,nan\nadam,1,3,8\nadam,1,4,7\n"
    )
    curves = read([str(path)], Columns())
    whole, broken = curves.runs
    assert (whole.clock.tolist(), whole.ended) == ([1, 3], Ended.COMPLETE)
    assert (broken.clock.tolist(), broken.ended) == ([1, 2], Ended.DIVERGED)
    assert curves.notes == ["1 rows without a value were left out."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adam,0,2,9\nadam,0,1,8\n", "row 2: the clock of adam, 0 goes from 2 to 1"),
        ("adam,0,1,9\nadam,0,1,8\n", "row 2: the clock of adam, 0 goes from 1 to 1"),
        ("adam,0,-1,9\n", "the clock is -1"),
        ("adam,0,1,9\nadam,0,x,8\n", "step is 'x', which is no number"),
        ("adam,0,,9\n", "row 1: no step"),
        (",0,1,9\n", "row 1: arm is ''"),
        ("a\x1b[31m,0,1,9\n", r"arm is 'a\\x1b"),
        ("adam,0,0,9\nadam,0,1,8\n", "--at-zero before.*--at-zero after"),
        ("", "no row in it"),
    ],
)
def test_what_is_no_curve_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """In one line with the file, the row, the value and the way out."""
    path = tmp_path / "c.csv"
    path.write_text("arm,seed,step,value\n" + text)
    with pytest.raises(UserError, match=message) as refused:
        read([str(path)], Columns())
    assert "\n" not in str(refused.value)


def test_a_clock_from_zero_is_explained_not_guessed(tmp_path: Path) -> None:
    """Before training it is left out; epochs counted from 0 become epochs."""
    path = tmp_path / "c.csv"
    path.write_text("arm,seed,epoch,value\nadam,0,0,9\nadam,0,1,8\nadam,0,2,7\n")
    before = read([str(path)], Columns(at_zero="before"))
    after = read([str(path)], Columns(at_zero="after"))
    assert (before.runs[0].clock.tolist(), before.runs[0].value.tolist()) == ([1, 2], [8, 7])
    assert (after.runs[0].clock.tolist(), after.runs[0].value.tolist()) == ([1, 2, 3], [9, 8, 7])
    assert before.notes == ["Evaluations before training, at 0, were left out."]


def test_trials_that_are_named_are_meant(tmp_path: Path) -> None:
    """Also beside a column of seeds, of which one may stand for several trials: compared without pairs."""
    table = long_table(arms=("adam",)).assign(trial=lambda rows: "t" + rows["seed"].astype(str), seed=0)
    path = written(table, tmp_path / "runs.csv")
    with pytest.raises(UserError, match=r"adam, 0 is there twice: .*\(--trial-from\)"):
        read([path], Columns())
    curves = read([path], Columns(trial="trial"))
    assert [run.label for run in curves] == ["t0", "t1"]
    assert not curves.paired


def test_a_seed_counts_once(tmp_path: Path) -> None:
    """Two files with one (arm, seed) are refused by name, as are two trials with one seed."""
    first = written(long_table(), tmp_path / "a.csv")
    second = written(long_table(), tmp_path / "b.csv")
    with pytest.raises(UserError, match=r"adam, 0 is there twice: .*a\.csv.*b\.csv"):
        read([first, second], Columns())
    frame = long_table(seeds=1)
    twice = pd.concat([frame.assign(trial=1), frame.assign(trial=2)])
    path = written(twice, tmp_path / "trials.csv")
    with pytest.raises(UserError, match=r"adam, 0 is there twice: 1 of .* and 2 of"):
        read([path], Columns())
    curves = read([written(twice.drop(columns="seed"), tmp_path / "c.csv")], Columns())
    assert [run.label for run in curves.of("adam")] == ["1", "2"]
    assert not curves.paired


def test_a_folder_of_one_file_a_run(tmp_path: Path) -> None:
    """The pattern reads arm and seed from the path below the folder; a file that doesn't fit is named."""
    for (arm, seed), part in long_table(seeds=12).groupby(["arm", "seed"]):
        (tmp_path / str(arm)).mkdir(exist_ok=True)
        written(part[["examples", "value"]], tmp_path / str(arm) / f"run-seed{seed}.csv")
    columns = Columns(run="{arm}/*seed{seed}.csv")
    curves = read([str(tmp_path)], columns)
    assert [run.label for run in curves.of("adam")] == [str(seed) for seed in range(12)]
    assert rows(curves)[0][3] == [12.0, 6.0, 4.0, 3.0]
    (tmp_path / "other.csv").write_text("examples,value\n1,2\n")
    with pytest.raises(UserError, match=r"the run 'other\.csv' has no such name"):
        read([str(tmp_path)], columns)
    for wrong in ("seed3", "{arm}{arm}", "{recipe}"):
        with pytest.raises(UserError, match=r"--run .*: write the run's name with"):
            read([str(tmp_path)], Columns(run=wrong))


def test_nested_objects_have_dotted_names(tmp_path: Path) -> None:
    """As trackers write what a run was configured with."""
    path = tmp_path / "c.jsonl"
    lines = [{"config": {"optimizer": "muon", "seed": 3}, "step": i, "value": 1.0 / i} for i in (1, 2)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    curves = read([str(path)], Columns(arm="config.optimizer", seed="config.seed"))
    assert [(run.arm, run.label, len(run)) for run in curves] == [("muon", "3", 2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"\x93NUMPY\x01\x00", "no column 'arm'|is no CSV"),
        ("c.csv", b"arm,arm\n1,2\n", "two columns 'arm'"),
        ("c.parquet", b"arm,seed\n", "is no Parquet file"),
        ("c.jsonl", b"{", "line 1: no JSON"),
        ("c.jsonl", b"[1]", "line 1: a row is an object"),
        ("c.jsonl", b"\xff\xfe", "no text in UTF-8"),
        ("c.pkl", b"cos\nsystem\n", "--format is one of csv, parquet"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Nothing of a file is run: a pickle is no format."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read([str(path)], Columns())
    assert "\n" not in str(refused.value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    """A missing file, an empty folder, no source and an unknown format are told apart."""
    with pytest.raises(UserError, match=r"There is no .*gone\.csv"):
        read([str(tmp_path / "gone.csv")], Columns())
    with pytest.raises(UserError, match=r"There is no x{200}\.$"):
        read(["x" * 300], Columns())
    with pytest.raises(UserError, match=r"has no file that ends with \.csv or"):
        read([str(tmp_path)], Columns())
    with pytest.raises(UserError, match="Give files or folders"):
        read([], Columns())
    with pytest.raises(UserError, match="--format xlsx: choose csv, parquet, jsonl"):
        read([str(tmp_path)], Columns(), "xlsx")


def test_how_a_run_ended(tmp_path: Path) -> None:
    """A column may say it, in the record's words or in our outcomes'; every outcome of ours has one."""
    path = tmp_path / "c.csv"
    path.write_text("arm,seed,step,value,outcome\nadam,0,1,9,pruned\nadam,1,1,9,hit\nadam,2,1,9,completed\n")
    curves = read([str(path)], Columns(ended="outcome"))
    assert [run.ended for run in curves] == [Ended.CENSORED, Ended.HIT, Ended.COMPLETE]
    path.write_text("arm,seed,step,value,ended\nadam,0,1,9,prunned\n")
    with pytest.raises(UserError, match="Did you mean 'pruned'"):
        read([str(path)], Columns())
    assert {Ended.of(outcome) for outcome in Outcome} == set(Ended)


def test_seconds_at_a_clock() -> None:
    """Linear between evaluations from 0 on; beyond the last at the run's mean speed."""
    run = Recorded("a", "0", np.array([10.0, 20.0]), np.array([2.0, 1.0]), np.array([1.0, 3.0]))
    assert [run.seconds_at(at) for at in (5.0, 10.0, 15.0, 20.0, 40.0)] == [0.5, 1.0, 2.0, 3.0, 6.0]


def test_our_own_database(compared: Finished) -> None:
    """Every finished confirmation run by seed, with its recorded evaluations and how it ended; other phases when
    asked for, and a phase that has none is named."""
    with compared.open() as (store, state):
        curves = read_stored(store, "fake")
        table = records.curves(store, "fake")
        runs = {
            (run.arm, str(run.recipe.seed)): run
            for run in state.runs
            if run.phase == "confirm" and run.recipe
        }
        tuned = read_stored(store, "fake", [Phase.TUNE])
        with pytest.raises(UserError, match="has no finished trial of search"):
            read_stored(store, "fake", [Phase.SEARCH])
    assert {(run.arm, run.label) for run in curves} == set(runs)
    assert len(curves) == len(runs)
    for run in curves:
        trial = runs[run.arm, run.label]
        mine = table[table["trial_id"] == trial.trial_id]
        assert run.clock.tolist() == mine["examples"].tolist()
        assert run.value.tolist() == mine["valid_loss"].tolist()
        assert trial.outcome is not None
        assert run.ended is Ended.of(trial.outcome)
    assert {run.phase for run in tuned} == {"tune"}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("logs/runs.csv", "runs.csv"),
        ("logs/", "logs"),
        ("logs/../", "work"),
        ("/", "curves"),
        ("sqlite:///other.db", "other.db"),
        ("postgresql+psycopg://me:hunter22@host/db?password=hunter22", "db"),
        ("postgresql+psycopg://me:hunter22@host", "host"),
    ],
)
def test_what_a_source_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    """In titles and files' names: its last part, and no password."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert called(source) == name
