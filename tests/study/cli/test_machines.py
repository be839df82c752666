"""What machines read: exit codes of the gate, and documents that stand alone on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from command_line import Call, Result
from fake_training import FIVE_ARMS, Finished, prepare_search

from study.analysis.document import SCHEMA
from study.store import records
from study.store.store import Store
from study.workers.throughput import PAIRS


@pytest.fixture
def curves(tmp_path: Path) -> str:
    """A file with the curves of a baseline, a faster arm, its equal and a slower one."""
    rng = np.random.default_rng(0)
    lines = ["arm,seed,epoch,value,seconds"]
    for arm, speed in (("base", 1.0), ("fast", 1.5), ("same", 1.0), ("slow", 0.7)):
        for seed in range(8):
            rate = speed * np.exp(0.05 * rng.normal()) / 12.0
            lines += [f"{arm},{seed},{e},{10.0 * np.exp(-e * rate):.5f},{2 * e}" for e in range(1, 41)]
    (tmp_path / "curves.csv").write_text("\n".join(lines) + "\n")
    return "curves.csv"


def document(result: Result) -> Any:
    """All of stdout, which keeps to the schema."""
    assert result.code == 0, result.err
    found = json.loads(result.out)
    jsonschema.validate(found, json.loads(SCHEMA.read_text(encoding="utf-8")))
    return found


def test_the_gate_answers_with_its_exit_code(call: Call, curves: str, tmp_path: Path) -> None:
    """0, 3 or 4 with one line why; wrong usage is 2; a ledger remembers."""
    ask = ("gate", curves, "--baseline", "base", "--target", "3")
    codes = {arm: call(*ask, "--arm", arm) for arm in ("fast", "slow", "same")}
    assert {arm: result.code for arm, result in codes.items()} == {"fast": 0, "slow": 3, "same": 4}
    assert all(result.out.count("\n") == 1 for result in codes.values())
    assert call(*ask, "--arm", "fast", "--require", "not-slower").code == 0
    assert call(*ask, "--arm", "fsat").code == 2
    assert call("gate", "--arm", "fast").code == 2
    assert call("gate", curves, "--arm", "fast").code == 2
    assert (
        "An option such as --baseline or --target goes with files"
        in call("gate", "--arm", "fast", "--margin", "0.1").err
    )
    rows = (tmp_path / curves).read_text().splitlines()
    (tmp_path / "untimed.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows))
    untimed = call("gate", "untimed.csv", *ask[2:], "--arm", "fast", "--seconds")
    assert (untimed.code, "Name their column with --seconds-from" in untimed.err) == (2, True)
    assert "margin 40%" in call(*ask, "--arm", "fast", "--margin", "0.4").out
    assert "of 8 seeds" in call(*ask, "--arm", "slow", "--censored-at", "30", "--unpaired").out
    ledger = ("--ledger", "stream.json")
    first, second = (call(*ask, "--arm", "fast", *ledger) for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    assert "nothing was spent" in second.out
    assert len(json.loads((tmp_path / "stream.json").read_text())["entries"]) == 1


def test_documents_stand_alone_on_stdout(call: Call, curves: str, compared: Finished) -> None:
    """analyse, show and replay: one document that keeps to the schema, all else on stderr."""
    said = call("analyse", curves, "--baseline", "base", "--target", "3", "--json")
    assert {arm["arm"] for arm in document(said)["arms"]} == {"base", "fast", "same", "slow"}
    assert "Report:" in said.err
    shown = document(call("show", "--storage", f"sqlite:///{compared.folder / 'optuna.db'}", "--json"))
    assert shown["kind"] == "comparison"
    assert shown["target"] is not None
    played = call("replay", curves, "--orders", "2", "--simulated-workers", "1", "--workers", "1", "--json")
    replayed = document(played)
    assert replayed["kind"] == "replay"
    names = {policy["policy"] for policy in replayed["policies"]}
    assert all(any(line.startswith(name) for line in played.err.splitlines()) for name in names), played.err
    assert "Validity:" in played.err
    assert "Validity:" not in played.out
    again = call("analyse", curves, "--baseline", "base", "--target", "3")
    assert "Report:" in again.out


@pytest.fixture
def timed(compared: Finished, tmp_path: Path) -> None:
    """In the working folder a comparison that has ended, with nothing left to train or time."""
    compared.copy(tmp_path)
    speeds = {"examples_per_second": 1000.0, "baseline_examples_per_second": 1000.0}
    with Store.open(f"sqlite:///{tmp_path / 'optuna.db'}") as store:
        for arm in records.trials(store, "fake")["arm"].unique():
            for pair in range(PAIRS):
                records.add_throughput(store, "fake", str(arm), pair, **speeds, cold_start_seconds=0.01)


OF_FAKE = ("--name", "fake", "--device", "cpu", "--workers", "1", "--json")


@pytest.mark.parametrize("command", [("run", "--search-trials", "0"), ("compare",)])
@pytest.mark.usefixtures("timed")
def test_a_comparison_ends_with_a_document(call: Call, command: tuple[str, ...]) -> None:
    """Plan, progress, tables and report are on stderr; of what has ended nothing is run again."""
    said = call(*command, "--arms", ",".join(FIVE_ARMS["arms"]), *OF_FAKE)
    found = document(said)
    assert found["kind"] == "comparison"
    assert {"baseline", *FIVE_ARMS["arms"]} <= {arm["arm"] for arm in found["arms"]}
    assert "Report:" in said.err


def test_a_search_ends_with_a_document(call: Call, tmp_path: Path) -> None:
    """One without arms."""
    session = prepare_search(tmp_path, 2)
    with session.store:
        session.run_here()
    said = call("search", *OF_FAKE)
    found = document(said)
    assert (found["kind"], found["arms"]) == ("comparison", [])
    assert "Report:" in said.err


def test_json_is_for_an_answer(call: Call) -> None:
    """A plan and a measurement of many comparisons have none."""
    assert "--dry-run" in call("run", "--json", "--dry-run").err
    assert "--aa" in call("compare", "--aa", "2", "--json").err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--orders", "0"), "--orders 0"),
        (("--simulated-workers", "x"), "--simulated-workers x"),
        (("--simulated-workers", "0"), "--simulated-workers 0"),
        (("--tolerance", "2"), "--tolerance 2"),
        (("--every", "0"), "--every 0"),
        (("--target", "-1"), "no run reaches it"),
        (("--name", "x"), "--name goes with our own database"),
        (("--patience", "0"), "--patience"),
        (("--min-delta", "nan"), "--min-delta"),
    ],
)
def test_what_a_replay_refuses(call: Call, curves: str, arguments: tuple[str, ...], says: str) -> None:
    """One line, exit code 2, nothing written."""
    result = call("replay", curves, *arguments)
    assert result.code == 2
    assert says in result.err
    assert not Path("reports").exists()


def test_a_correlation_of_equal_values_is_undefined(call: Call, tmp_path: Path) -> None:
    """Runs that are alike until their last evaluation have no order early on."""
    rows = [
        f"a,{seed},{epoch},{6 - epoch - seed * (epoch == 4)}" for seed in range(6) for epoch in (1, 2, 3, 4)
    ]
    (tmp_path / "tied.csv").write_text("\n".join(["arm,seed,epoch,value", *rows]), encoding="utf-8")
    result = call(
        "replay", str(tmp_path / "tied.csv"), "--orders", "1", "--simulated-workers", "1", "--workers", "1"
    )
    assert result.code == 0
    assert "undefined at 10%, undefined at 25%" in result.out
    assert "nan" not in result.out
