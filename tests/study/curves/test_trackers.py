"""Curves that trackers keep, from files that the trackers themselves have written here; W&B's in its exports' form."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from study.curves.read import read
from study.curves.recorded import Curves, Ended
from study.curves.table import Columns
from vae.errors import FailureError, UserError

#: A message of a dependency about another: MLflow's models are of an older SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

STEPS = (10, 20, 40)
ARMS = ("adam", "muon")
SEEDS = (0, 1)


def value(arm: str, seed: int, step: int) -> float:
    """Exact in a float of 32 bits, which is what TensorBoard keeps."""
    return 8.0 / step * (1 + ARMS.index(arm)) + seed / 4.0


def expected() -> list[tuple[str, str, list[int], list[float]]]:
    """What was written, run by run."""
    return [
        (arm, str(seed), list(STEPS), [value(arm, seed, s) for s in STEPS]) for arm in ARMS for seed in SEEDS
    ]


def rows(curves: Curves) -> list[tuple[str, str, list[int], list[float]]]:
    """What was read, by arm and seed."""
    found = [(run.arm, run.label, [int(c) for c in run.clock], run.value.tolist()) for run in curves]
    return sorted(found, key=lambda row: row[:2])


def close(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(
        a[:3] == b[:3] and a[3] == pytest.approx(b[3], rel=1e-6) for a, b in zip(found, wanted, strict=True)
    )


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs by torch's writer."""
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path_factory.mktemp("tb")
    for arm in ARMS:
        for seed in SEEDS:
            writer = SummaryWriter(str(folder / arm / f"seed{seed}"))
            for step in STEPS:
                writer.add_scalar("loss/val", value(arm, seed, step), step, walltime=1e9 + step)
                writer.add_scalar("lr", 0.1, step)
            writer.close()
    return folder


def test_tensorboard(tensorboard: Path) -> None:
    """Every point of the tag that was named, arm and seed by the runs' folders, the time since the first record."""
    columns = Columns(run="{arm}/seed{seed}", value="loss/val", seconds="wall_seconds")
    curves = read([str(tensorboard)], columns)
    assert close(rows(curves), expected())
    assert curves.runs[0].seconds is not None
    assert curves.runs[0].seconds.tolist() == [0.0, 10.0, 30.0]
    assert curves.clock == "steps"
    assert curves.sources == [f"{tensorboard} (tensorboard): 4 runs"]
    with pytest.raises(
        UserError, match=r"which values\? Name them with --value-from\. There are: loss/val, lr"
    ):
        read([str(tensorboard)], Columns(run="{arm}/seed{seed}"))
    with pytest.raises(UserError, match="Did you mean 'loss/val'"):
        read([str(tensorboard)], Columns(run="{arm}/seed{seed}", value="loss/vall"))


def test_what_tensorboard_holds_beside_numbers_is_refused(tmp_path: Path) -> None:
    """Such as a text under the tag."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "adam" / "seed0"))
    writer.add_text("note", "words", 1)
    writer.close()
    columns = Columns(run="{arm}/seed{seed}", value="note/text_summary")
    with pytest.raises(UserError, match=r"'note/text_summary' \(--value-from\) is not one number a step"):
        read([str(tmp_path)], columns)


def test_mlflow_makes_no_store_of_what_is_none(tmp_path: Path) -> None:
    """A folder or a file that is named as its store by mistake stays as it is."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "other.db").touch()
    for name in ("runs", "other.db"):
        with pytest.raises(UserError, match="is no store of MLflow's"):
            read([str(tmp_path / name)], Columns(value="loss"), "mlflow")
    assert not list((tmp_path / "runs").iterdir())
    assert (tmp_path / "other.db").read_bytes() == b""


def test_a_tensorboard_run_that_went_back_is_refused(tmp_path: Path) -> None:
    """A second start wrote over the first one's steps: TensorBoard would drop some in silence."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "adam" / "seed0"))
    for step in (10, 20, 10, 20, 30):
        writer.add_scalar("loss", 1.0, step)
    writer.close()
    with pytest.raises(UserError, match="the clock of adam, 0 goes from 20 to 10"):
        read([str(tmp_path)], Columns(run="{arm}/seed{seed}", value="loss"))


def test_mlflow(tmp_path: Path) -> None:
    """A SQLite store that MLflow's client wrote: parameters by their names, how runs ended, and nothing is changed."""
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    path = tmp_path / "mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{path}")
    experiment = client.create_experiment("mine", artifact_location=str(tmp_path))
    for arm, seed, steps, values in expected():
        run = client.create_run(experiment, run_name=f"{arm}-{seed}").info.run_id
        client.log_param(run, "optimizer", arm)
        client.log_param(run, "seed", seed)
        metrics = [Metric("val_loss", v, 1_000_000 + 1000 * s, s) for v, s in zip(values, steps, strict=True)]
        client.log_batch(run, metrics=metrics)
        client.set_terminated(run, "KILLED" if (arm, seed) == ("muon", "1") else "FINISHED")
    columns = Columns(
        arm="params.optimizer", seed="params.seed", value="val_loss", where=[("experiment", "mine")]
    )
    before = path.read_bytes()
    curves = read([str(path)], columns)
    assert path.read_bytes() == before
    assert close(rows(curves), expected())
    assert {(run.arm, run.label): run.ended for run in curves}["muon", "1"] is Ended.CENSORED
    assert sum(run.ended is Ended.COMPLETE for run in curves) == 3
    assert rows(read([str(path)], Columns(run="{arm}-{seed}", value="val_loss"))) == rows(curves)
    with pytest.raises(UserError, match="There are: val_loss"):
        read([str(path)], Columns(run="{arm}-{seed}"))


def test_optuna(tmp_path: Path) -> None:
    """The intermediate values of any study; a pruned trial is cut; a study that maximises wants the word."""
    url = f"sqlite:///{tmp_path / 'other.db'}"
    for arm in ARMS:
        study = optuna.create_study(storage=url, study_name=arm, pruner=optuna.pruners.NopPruner())
        for seed in SEEDS:
            trial = study.ask({"lr": optuna.distributions.FloatDistribution(0.1, 1.0)})
            trial.set_user_attr("seed", seed)
            for step in STEPS:
                trial.report(value(arm, seed, step), step)
            pruned = (arm, seed) == ("adam", 1)
            study.tell(trial, None if pruned else 1.0, optuna.trial.TrialState.PRUNED if pruned else None)
        study.ask()
    columns = Columns(arm="study", seed="user_attrs.seed")
    curves = read([str(tmp_path / "other.db")], columns)
    assert rows(curves) == expected()
    assert rows(read([url], columns)) == expected()
    odd = tmp_path / "100%25 {0} {b}?.db"
    shutil.copy(tmp_path / "other.db", odd)
    assert rows(read([str(odd)], columns)) == expected()
    assert [run.ended for run in curves] == [Ended.COMPLETE, Ended.CENSORED, Ended.COMPLETE, Ended.COMPLETE]
    trials = read([url], Columns(arm="study"))
    assert [run.label for run in trials.of("muon")] == ["0", "1"]
    assert not trials.paired
    with pytest.raises(UserError, match="study 'adam' minimises: leave out --maximise"):
        read([url], Columns(arm="study", maximise=True))


def test_an_optuna_journal(tmp_path: Path) -> None:
    """Known by its first line whatever it is called, and read as the same study in a database; what is half-written at
    its end is not there yet, and a damaged one is named."""
    path = tmp_path / "journal.jsonl"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    for arm in ARMS:
        study = optuna.create_study(storage=storage, study_name=arm)
        for seed in SEEDS:
            trial = study.ask()
            trial.set_user_attr("seed", seed)
            for step in STEPS:
                trial.report(value(arm, seed, step), step)
            study.tell(trial, 1.0)
    columns = Columns(arm="study", seed="user_attrs.seed")
    curves = read([str(path)], columns)
    assert rows(curves) == expected()
    assert curves.sources == [f"{path} (optuna): 4 runs"]
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 5, "wor')
    assert rows(read([str(path)], columns)) == expected()
    assert sorted(tmp_path.iterdir()) == [path]
    path.write_bytes(whole + b"no operation\n" + whole)
    with pytest.raises(FailureError, match="can't be read as an Optuna database or journal"):
        read([str(path)], columns)


def test_optuna_databases_that_are_none(tmp_path: Path) -> None:
    """A file that isn't there isn't made; a database of something else and a wrong URL are named, no password said."""
    with pytest.raises(UserError, match="There is no sqlite:///"):
        read([f"sqlite:///{tmp_path / 'gone.db'}"], Columns(arm="study"))
    assert not (tmp_path / "gone.db").exists()
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(FailureError, match="can't be read as an Optuna database"):
        read([f"sqlite:///{tmp_path / 'text.db'}"], Columns(arm="study"))
    with pytest.raises(UserError, match="which format is it"):
        read([str(tmp_path / "text.db")], Columns(arm="study"))
    with pytest.raises(FailureError) as refused:
        read(["postgresql+psycopg://me:hunter22@127.0.0.1:1/x"], Columns(arm="study"))
    assert "hunter22" not in str(refused.value)


def test_wandb_line_plot(tmp_path: Path) -> None:
    """The CSV file of a line plot: a column a run over a common step, empty where a run has none there."""
    table: dict[str, Any] = {"Step": STEPS}
    for arm in ARMS:
        for seed in SEEDS:
            name = f"{arm}-s{seed} - val/loss"
            table[name] = [value(arm, seed, step) for step in STEPS]
            table |= {f"{name}__MIN": table[name], f"{name}__MAX": table[name]}
    table["adam-s0 - val/loss"][1] = None
    pd.DataFrame(table).to_csv(tmp_path / "wandb_export.csv", index=False)
    columns = Columns(run="{arm}-s{seed}", value="val/loss")
    curves = read([str(tmp_path / "wandb_export.csv")], columns, "wandb")
    assert [run.clock.tolist() for run in curves.of("adam")] == [[10, 40], [10, 20, 40]]
    assert rows(curves)[1:] == expected()[1:]
    with pytest.raises(UserError, match=r"There are: val/loss"):
        read([str(tmp_path / "wandb_export.csv")], Columns(run="{arm}-s{seed}"), "wandb")
    (tmp_path / "other.csv").write_text("arm,value\n")
    with pytest.raises(UserError, match="is no export of a W&B line plot"):
        read([str(tmp_path / "other.csv")], columns, "wandb")


def test_wandb_run_history(tmp_path: Path) -> None:
    """The Parquet files of runs' histories: _step and _runtime, null where a row logged something else."""
    for arm, seed, steps, values in expected():
        history = pd.DataFrame({"_step": steps, "_runtime": [s / 10 for s in steps], "val/loss": values})
        other = pd.DataFrame({"_step": [s + 1 for s in steps], "_runtime": [s / 10 + 0.05 for s in steps]})
        both = pd.concat([history, other]).sort_values("_step")
        both["val/loss"] = both["val/loss"].astype(object).where(both["val/loss"].notna(), None)
        both.to_parquet(tmp_path / f"{arm}-{seed}.parquet", index=False)
    columns = Columns(run="{arm}-{seed}.parquet", clock="_step", value="val/loss", seconds="_runtime")
    curves = read([str(tmp_path)], columns)
    assert rows(curves) == expected()
    assert curves.runs[0].seconds is not None
    assert curves.runs[0].seconds.tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("tensorboard", "tensorboard.backend.event_processing.event_accumulator"),
        ("mlflow", "mlflow.tracking"),
    ],
)
def test_a_missing_extra_is_named(
    kind: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line with what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "meta.yaml").touch()
    with pytest.raises(UserError, match=rf"pip install 'vae-study\[{kind}\]'"):
        read([str(tmp_path)], Columns(value="loss"), kind)


def test_a_value_that_is_nan_is_a_breakdown(tmp_path: Path) -> None:
    """In TensorBoard too."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "adam" / "seed0"))
    for step, loss in ((10, 1.0), (20, math.nan)):
        writer.add_scalar("loss", loss, step)
    writer.close()
    (run,) = read([str(tmp_path)], Columns(run="{arm}/seed{seed}", value="loss"))
    assert (run.ended, len(run)) == (Ended.DIVERGED, 2)
