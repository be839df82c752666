"""`study analyse` and `study.analyse`: from files and frames to the table, the page and the public face's object."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from command_line import Call
from fake_training import Finished

import study
from vae.errors import UserError

#: What an arm may be called by whoever wrote the file.
HOSTILE = "<img src=x onerror=window.pwned=1> %{x} **b**"


def frame(hostile: bool = False) -> pd.DataFrame:
    """Three arms of eight seeds with known speeds."""
    speeds = {"adam": 1.0, (HOSTILE if hostile else "muon"): 2.0, "sgd": 0.6}
    rows = []
    for own, (arm, speed) in enumerate(speeds.items()):
        for seed in range(8):
            luck = math.exp(0.1 * np.random.default_rng([seed, own]).standard_normal())
            for epoch in range(1, 31):
                loss = 60.0 - 10.0 * math.log(epoch * speed * luck)
                rows.append(
                    {"optimizer": arm, "seed": seed, "epoch": epoch, "val_loss": loss, "seconds": 2.0 * epoch}
                )
    return pd.DataFrame(rows)


MAPPING = ("--arm-from", "optimizer", "--value-from", "val_loss")


def test_a_file_is_judged(call: Call, tmp_path: Path) -> None:
    """What was read, the sentences, the table, the notes and one page; no database."""
    frame().to_csv(tmp_path / "runs.csv", index=False)
    done = call("analyse", "runs.csv", "--baseline", "adam", "--target", "35", *MAPPING)
    assert done.code == 0, done.err
    assert "3 arms (seeds): adam (8), muon (8), sgd (8)" in done.out
    assert (
        "720 evaluations of val_loss (lower is better), clock: epochs to 30; seconds in 24 of 24 runs"
        in done.out
    )
    said = " ".join(done.out.split())
    assert re.search(
        r"On runs\.csv, muon reaches 35 in val_loss [\d.]+x \[.*\] sooner in epochs than adam", said
    )
    assert re.search(r"^muon +8/8 [\d.]+x \[[\d., ]+\] faster", done.out, re.MULTILINE)
    assert "not that of tuning" in said
    page = (tmp_path / "reports" / "runs-curves.html").read_text()
    for part in (
        "Kaplan-Meier curves",
        "Speed-up against the target level",
        "The choice of budget",
        "sustained hit",
    ):
        assert part in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reports", "runs.csv"]


def test_our_own_database_is_judged(call: Call, compared: Finished, tmp_path: Path) -> None:
    """By --name, at its own target or at another; what was begun before has no luck of tuning in it."""
    url = f"sqlite:///{compared.folder / 'optuna.db'}"
    done = call("analyse", "--name", "fake", "--storage", url)
    assert done.code == 0, done.err
    assert "experiment fake, confirm trials" in done.out
    assert "not that of tuning" in " ".join(done.out.split())
    assert (tmp_path / "reports" / "fake-curves.html").exists()
    harder = call("analyse", "--name", "fake", "--storage", url, "--target", "20", "--out", "20.html")
    assert harder.code == 0, harder.err
    assert "a validation loss of 20.00 nats" in " ".join(harder.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs.csv",), "Give --baseline ARM"),
        (("runs.csv", "--baseline", "adam", "--target", "35"), "no column 'arm'. Name it with --arm-from"),
        (("runs.csv", "--baseline", "adm", "--target", "35", *MAPPING), "Did you mean 'adam'"),
        (("runs.csv", "--baseline", "adam", *MAPPING), "Give --target, or --target-at"),
        (("--baseline", "adam", "--target", "1"), "Give files or folders"),
        (("runs.csv", "--name", "x"), "--name goes with our own database"),
        (
            ("runs.csv", "--baseline", "adam", "--target", "35", "--where", "x", *MAPPING),
            "write COLUMN=VALUE",
        ),
        (
            ("runs.csv", "--baseline", "adam", "--target", "35", "--at-zero", "x", *MAPPING),
            "choose before or after",
        ),
        (("runs.csv", "--baseline", "adam", "--target", "35", "--out", ".", *MAPPING), "--out . is a folder"),
    ],
)
def test_wrong_input_is_one_line(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Exit code 2 and nothing written."""
    frame().to_csv(tmp_path / "runs.csv", index=False)
    done = call("analyse", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_names_from_a_file_are_text(call: Call, tmp_path: Path) -> None:
    """Markup in an arm's name is shown letter by letter in the page, and starts no script."""
    frame(hostile=True).to_parquet(tmp_path / "runs.parquet")
    done = call("analyse", "runs.parquet", "--baseline", "adam", "--target", "35", *MAPPING)
    assert done.code == 0, done.err
    page = (tmp_path / "reports" / "runs-curves.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=window.pwned=1&gt;" in page


def test_a_frame_in_python() -> None:
    """The object of the public face: verdicts, sentences, a table and figures that a notebook shows."""
    answer = study.analyse(frame(), baseline="adam", target=35.0, arm="optimizer", value="val_loss")
    assert {arm: str(word) for arm, word in answer.verdicts.items()} == {"muon": "faster", "sgd": "slower"}
    assert answer.arms["arm"].tolist() == ["adam", "muon", "sgd"]
    assert answer.target == 35.0
    assert "sooner in epochs than adam" in answer.sentences[0]
    assert answer.notes[0].startswith("Intervals hold the luck of the seeds, not that of tuning")
    assert "muon" in answer._repr_html_()
    assert "seconds" in answer._repr_html_()
    untimed = frame().drop(columns="seconds")
    without = study.analyse(untimed, baseline="adam", target=35.0, arm="optimizer", value="val_loss")
    assert "seconds" not in without._repr_html_()
    assert {"forest", "curves-examples", "survival-curves", "by-target"} <= set(answer.figures)
    assert all(isinstance(figure, go.Figure) for figure in answer.figures.values())


def test_a_cell_without_a_value_in_python() -> None:
    """None and NA are no evaluation, NaN is a breakdown, and a role that isn't one is named."""
    few = frame()
    few["val_loss"] = few["val_loss"].astype("Float64").mask(few["epoch"] == 7)
    answer = study.analyse(few, baseline="adam", target=35.0, arm="optimizer", value="val_loss")
    assert "24 rows without a val_loss were left out." in answer.notes
    broken = frame()
    broken.loc[(broken["optimizer"] == "muon") & (broken["epoch"] > 2), "val_loss"] = math.nan
    answer = study.analyse(broken, baseline="adam", target=35.0, arm="optimizer", value="val_loss")
    assert answer.verdicts["muon"] == "never reaches the target"
    partly = frame().assign(ended=None)
    partly.loc[partly["seed"] == 3, "seconds"] = math.nan
    answer = study.analyse(partly, baseline="adam", target=35.0, arm="optimizer", value="val_loss")
    assert answer.verdicts["muon"] == "faster"
    with pytest.raises(UserError, match="Did you mean 'value'"):
        study.analyse(frame(), baseline="adam", target=35.0, vale="val_loss")
