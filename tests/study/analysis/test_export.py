"""`show` and `export`: what is in a database, whole, and readable on 80 columns."""

from __future__ import annotations

import itertools
import runpy
import shutil
from pathlib import Path

import fake_training
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Call
from fake_training import FakeTraining, Finished, finish

from study.analysis.evidence import read
from study.protocol.stored import stored
from study.report.tables import details_table
from study.store import records
from study.store.store import Store
from vae.data.dataset import load
from vae.errors import UserError
from vae.evaluation import bits_per_dim
from vae.recipe import Recipe
from vae.training import train


@pytest.fixture
def fake_url(compared: Finished) -> str:
    return f"sqlite:///{compared.folder / 'optuna.db'}"


def test_show_fits_80_columns(call: Call, fake_url: str) -> None:
    """The forest table, the sentences and the notes, each within 80 columns; a command to copy is one line."""
    result = call("show", "--storage", fake_url)
    assert (result.code, result.err) == (0, "")
    shown = result.out.splitlines()
    commands = [line for line in shown if line.startswith("  python -m ")]
    assert len(commands) == 2
    assert max(len(line) for line in shown if line not in commands) <= 80
    lines = {line.split()[0]: line for line in shown if line.strip()}
    assert "faster" in lines["twice"]
    assert "6/6" in lines["twice"]
    assert "[" in lines["twice"]
    assert "n.d." in lines["same"]
    assert "never" in lines["never"]
    assert "unrel." in lines["flaky"]
    for words in ("Validity:", "Combined, on fresh seeds", "Adaptive capping saved", "tuned baseline"):
        assert words in result.out


def test_show_names_what_there_is(call: Call, fake_url: str) -> None:
    """A wrong name is told with those that are there."""
    result = call("show", "--storage", fake_url, "--name", "fke")
    assert result.code == 2
    assert "No experiment 'fke'" in result.err
    assert "Did you mean 'fake'" in result.err


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_export_is_complete(
    call: Call, compared: Finished, fake_url: str, tmp_path: Path, format: str
) -> None:
    """Trials, curves and arms can be read back whole, in either format."""
    result = call("export", "--storage", fake_url, "--format", format, "--out", "out")
    assert (result.code, result.err) == (0, "")
    read = pd.read_csv if format == "csv" else pd.read_parquet
    with compared.open() as (store, _):
        trials, curves = records.trials(store, "fake"), records.curves(store, "fake")
    tables = {path.stem: read(path) for path in (tmp_path / "out").glob(f"*.{format}")}
    assert len(tables["fake-trials"]) == len(trials)
    assert set(tables["fake-trials"].columns) == set(trials.columns)
    np.testing.assert_array_equal(tables["fake-curves"]["valid_loss"], curves["valid_loss"])
    assert list(tables["fake-arms"]["arm"])[:2] == ["baseline", "twice"]
    assert {str(path) for path in (tmp_path / "out").iterdir()} == {
        str(tmp_path / line) for line in result.out.splitlines()
    }


def test_a_recipe_is_exported_as_a_script(
    call: Call, compared: Finished, fake_url: str, tmp_path: Path
) -> None:
    """It stands beside the tables with the data that it takes, and its losses are those of the recipe's training with
    the experiment's data and budget."""
    result = call("export", "--storage", fake_url, "--out", "out", "--recipe", "fastest")
    assert result.code == 0
    command = result.err.splitlines()[-1].partition(": ")[2]
    assert command == "python out/fake-fastest.py out/fake-train.npy out/fake-valid.npy"
    assert {"out/fake-trials.csv", "out/fake-fastest.toml", *command.split()[1:]} <= set(
        result.out.splitlines()
    )
    with compared.open() as (store, _):
        kept = stored(store, "fake")
    data = load(kept.experiment.data, seed=kept.experiment.seed)
    ours = train(Recipe.load(tmp_path / "out/fake-fastest.toml"), data, kept.workload.tau)
    with torch.random.fork_rng(devices=[]):
        alone = runpy.run_path("out/fake-fastest.py")["train"]
        losses = alone(np.load("out/fake-train.npy"), np.load("out/fake-valid.npy"))
        for (examples, loss), evaluation in zip(itertools.islice(losses, 3), ours, strict=False):
            assert (examples, loss) == (evaluation.examples, pytest.approx(evaluation.valid_loss, rel=1e-4))


def test_a_recipe_that_is_not_there_is_refused(call: Call, fake_url: str, tmp_path: Path) -> None:
    """With what there is, and nothing is written; the same for data that isn't what was trained on."""
    result = call("export", "--storage", fake_url, "--out", "out", "--recipe", "quickest")
    assert (result.code, result.err) == (2, "Error: --recipe quickest: choose fastest, best or baseline.\n")
    shutil.copy(fake_url.removeprefix("sqlite:///"), tmp_path / "optuna.db")
    with Store.open(f"sqlite:///{tmp_path / 'optuna.db'}") as store:
        spec = store.load_experiment("fake")
        assert spec is not None
        store.save_experiment("fake", spec | {"data_fingerprint": "0" * 64})
    result = call("export", "--out", "out", "--recipe", "fastest")
    assert result.code == 2
    assert "Experiment 'fake' was begun with data of SHA-256 000000000000..., not " in result.err
    assert not (tmp_path / "out").exists()


def test_losses_of_whole_levels_are_told_in_bits_too(call: Call, compared: Finished, tmp_path: Path) -> None:
    """Beside the nats, in the terminal within its width and in the report's tables; not where they are no code
    lengths."""
    without = call("show", "--storage", f"sqlite:///{compared.folder / 'optuna.db'}").out
    assert "bits per" not in without
    compared.copy(tmp_path)
    with Store.open(f"sqlite:///{tmp_path / 'optuna.db'}") as store:
        spec = store.load_experiment("fake")
        assert spec is not None
        store.save_experiment("fake", spec | {"dimensions": 64})
        comparison = read(store, "fake").comparison
    assert comparison is not None
    assert comparison.target is not None
    told = f"{comparison.target:.2f} nats = {bits_per_dim(comparison.target, 64):.3f} bits per dimension"
    shown = call("show").out
    assert told in " ".join(shown.split())
    assert max(len(line) for line in shown.splitlines() if not line.startswith("  python -m ")) <= 80
    table = details_table(comparison, comparison.workload.tau)
    column = table.titles.index("final loss, bits per dim")
    assert [len(row) for row in table.rows] == [len(table.titles)] * len(table.rows)
    (baseline,) = (arm for arm in comparison.arms if arm.is_baseline)
    assert baseline.final_loss is not None
    assert table.rows[0][column].text == f"{bits_per_dim(baseline.final_loss, 64):.4f}"


def test_export_refuses_what_it_can_not_write(call: Call, fake_url: str, tmp_path: Path) -> None:
    """A wrong format is a mistake; a folder that can't be made is a failure."""
    assert call("export", "--storage", fake_url, "--format", "xlsx").code == 2
    (tmp_path / "taken").write_text("")
    result = call("export", "--storage", fake_url, "--out", "taken")
    assert result.code == 1
    assert "--out can't be written to: taken" in result.err


def test_several_experiments_are_listed(call: Call, tmp_path: Path, compared: Finished) -> None:
    """With several experiments `show` lists them and the other commands ask which."""
    compared.copy(tmp_path)
    with Store.open(f"sqlite:///{tmp_path / 'optuna.db'}") as store:
        spec = store.load_experiment("fake")
        assert spec is not None
        store.save_experiment("other", spec | {"experiment": spec["experiment"] | {"name": "other"}})
    result = call("show")
    assert "fake" in result.out
    assert "other" in result.out
    result = call("export")
    assert result.code == 2
    assert "Give --name. Experiments in optuna.db: fake, other" in result.err


def test_what_there_is_is_shown_when_everything_diverged(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline that always diverges gives no target and no verdict; `show` says why and how the trials ended, the
    report is written, and `export` has the trials and their curves."""

    monkeypatch.setattr(FakeTraining, "diverges", staticmethod(lambda _: True))
    monkeypatch.setattr(fake_training, "loss_at", lambda recipe, share: float("nan"))  # noqa: ARG005
    with pytest.raises(UserError, match="No target can be calibrated"):
        finish(tmp_path, seeds=2)
    shown = call("show")
    assert (shown.code, shown.err) == (0, "")
    assert "Nothing can be compared: " in shown.out
    assert "baseline, tune: 3 diverged" in shown.out
    assert call("report", "--out", "page.html").code == 0
    assert "Nothing can be compared: " in (tmp_path / "page.html").read_text()
    assert call("export", "--out", "out").code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"fake-trials.csv", "fake-curves.csv", "fake-arms.csv"} <= written
