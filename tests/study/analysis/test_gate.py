"""The gate: its rulings, and a ledger that bounds the error of a whole stream."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from study.analysis.findings import Findings
from study.analysis.gate import Ruling, proposal
from study.analysis.judge_curves import analyse
from study.analysis.ledger import Entry, Ledger, judged_once
from study.analysis.question import Question
from study.curves.recorded import Curves, Recorded
from study.statistics.spending import ALPHA, next_level
from vae.errors import FailureError, UserError


def found(speeds: dict[str, float], seeds: int = 12, spread: float = 0.05) -> Findings:
    """What curves say of arms that fall so many times as fast as the baseline."""
    rng = np.random.default_rng(0)
    clock = np.arange(1.0, 61.0)
    runs = [
        Recorded(arm, str(seed), clock, 10.0 * np.exp(-clock * speed * np.exp(spread * rng.normal()) / 20.0))
        for arm, speed in ({"base": 1.0} | speeds).items()
        for seed in range(seeds)
    ]
    return analyse(Curves(runs, "epochs", "loss"), Question("base", target=3.0), "made").comparison


@pytest.mark.parametrize(
    ("speed", "require", "ruling"),
    [
        (1.5, "faster", Ruling.YES),
        (0.6, "faster", Ruling.NO),
        (1.0, "faster", Ruling.UNDECIDED),
        (1.5, "not-slower", Ruling.YES),
        (0.6, "not-slower", Ruling.NO),
        (0.98, "not-slower", Ruling.UNDECIDED),
        (0.05, "faster", Ruling.NO),
    ],
)
def test_a_ruling_follows_the_verdict(speed: float, require: str, ruling: Ruling) -> None:
    """Faster, slower, in between, and an arm that never reaches the target."""
    said, line = proposal(found({"new": speed}), "new", require, seconds=False).rule()
    assert said is ruling, line
    assert line.startswith("new is")
    assert line.endswith(".")


def test_a_later_look_asks_for_more() -> None:
    """Seeds that are topped up after a look are another chance to be called as fast: each look has its share."""
    findings = found({"new": 1.05})
    again = replace(findings, terms=replace(findings.terms, looks=2))
    first, second = (proposal(each, "new", "not-slower", seconds=False) for each in (findings, again))
    assert 0.0 < first.p < 0.05
    assert second.p == pytest.approx(10.0 * first.p)


def test_a_small_level_asks_for_more() -> None:
    """What passes at 0.05 need not pass at a thousandth of it; the line says the level."""
    asked = proposal(found({"new": 1.12}), "new", "faster", seconds=False)
    assert asked.rule()[0] is Ruling.YES
    assert asked.rule(asked.p / 2)[0] is Ruling.UNDECIDED
    assert "at level 0.05" in asked.rule()[1]


def test_evidence_is_known_again() -> None:
    """The same runs and question have one hash; more seeds, another arm or another requirement have others."""
    findings = found({"new": 1.2, "other": 1.2})
    hashes = [
        proposal(findings, "new", "faster", seconds=False).evidence,
        proposal(findings, "new", "not-slower", seconds=False).evidence,
        proposal(findings, "other", "faster", seconds=False).evidence,
        proposal(found({"new": 1.2}, seeds=13), "new", "faster", seconds=False).evidence,
    ]
    assert hashes[0] == proposal(found({"new": 1.2, "other": 1.2}), "new", "faster", seconds=False).evidence
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("arm", "require", "says"),
    [
        ("nwe", "faster", "Did you mean 'new'"),
        ("base", "faster", "is the baseline"),
        ("new", "quick", "not-slower"),
    ],
)
def test_what_cant_be_asked_is_refused(arm: str, require: str, says: str) -> None:
    """One line each, with the way out."""
    with pytest.raises(UserError, match=says):
        proposal(found({"new": 1.2}), arm, require, seconds=False)


def stream(p_values: Sequence[float]) -> list[bool]:
    """Which proposals of a stream are let through."""
    passed: list[bool] = []
    for p in p_values:
        passed.append(p <= next_level(passed))
    return passed


def test_a_stream_of_nulls_errs_in_at_most_one_of_twenty() -> None:
    """1,000 streams of 100 proposals that change nothing: any false "faster" in at most 5 % of them."""
    rng = np.random.default_rng(0)
    false = sum(any(stream(rng.random(100).tolist())) for _ in range(1_000))
    assert 10 <= false <= 50


def test_a_stream_of_null_curves_errs_no_more() -> None:
    """The same through the whole of the judgement, of arms that are the baseline again."""
    rng = np.random.default_rng(1)
    clock = np.arange(1.0, 31.0)

    def null(n: int) -> bool:
        passed: list[bool] = []
        for _ in range(n):
            runs = [
                Recorded(arm, str(seed), clock, 10.0 * np.exp(-clock * np.exp(0.2 * rng.normal()) / 8.0))
                for arm in ("base", "new")
                for seed in range(5)
            ]
            findings = analyse(
                Curves(runs, "epochs", "loss"), Question("base", target=4.0), "made"
            ).comparison
            ruling, _ = proposal(findings, "new", "faster", seconds=False).rule(next_level(passed))
            passed.append(ruling is Ruling.YES)
        return any(passed)

    assert sum(null(4) for _ in range(40)) <= 4


def test_levels_are_spent_and_handed_on() -> None:
    """Without a proposal that passes they fall and never sum to more than alpha; one that passes hands its level on."""
    levels = [next_level([False] * i) for i in range(500)]
    assert all(a > b > 0.0 for a, b in pairwise(levels))
    assert 0.95 * ALPHA < sum(levels) < ALPHA
    assert next_level([True]) == levels[0] + levels[1]
    assert next_level([True, False]) == levels[2]
    assert math.isclose(next_level([True] * 500), sum(levels) + next_level([False] * 500))


def entry(evidence: str, p: float = 0.5) -> Entry:
    told = {"arm": "a", "require": "faster", "ruling": "undecided", "line": "why"}
    return Entry.model_validate(told | {"evidence": evidence, "p": p})


def test_the_same_evidence_costs_once(tmp_path: Path) -> None:
    """A second look at it gives the first answer and spends nothing; new evidence is judged at the next level."""
    path = tmp_path / "deep" / "ledger.json"
    levels: list[float] = []

    def judge(evidence: str) -> tuple[Entry, bool]:
        def make(level: float) -> Entry:
            levels.append(level)
            return entry(evidence)

        return judged_once(path, evidence, make)

    assert [judge("x")[1], judge("x")[1], judge("y")[1], judge("x")[1]] == [False, True, False, True]
    assert levels == [next_level([]), next_level([False])]
    assert len(json.loads(path.read_text())["entries"]) == 2


def test_processes_take_turns(tmp_path: Path) -> None:
    """Of many at once each judgement has a level of its own, and none is lost."""
    path = tmp_path / "ledger.json"

    def judge(process: int) -> None:
        for i in range(4):
            evidence = f"{process}.{i}"
            judged_once(path, evidence, lambda level, evidence=evidence: entry(evidence, p=level))

    # Forked, as nothing but this file is needed; spawned ones would each load the whole program.
    running = [get_context("fork").Process(target=judge, args=(i,)) for i in range(6)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 6
    entries = Ledger.model_validate_json(path.read_bytes()).entries
    assert len({entry.evidence for entry in entries}) == 24
    assert [entry.p for entry in entries] == [next_level([False] * i) for i in range(24)]


def test_a_ledger_that_cant_be_written_is_named_at_once() -> None:
    """Not after a minute of waiting for a lock that nobody holds."""
    with pytest.raises(FailureError, match=r"/proc/ledger.json can't be written"):
        judged_once(Path("/proc/ledger.json"), "x", lambda _: entry("x"))


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    """One line, with the way out."""
    with pytest.raises(UserError, match=r"is a folder: name a file, for example .*ledger\.json"):
        judged_once(tmp_path, "x", lambda _: entry("x"))


def test_a_judgement_that_fails_leaves_the_ledger_whole(tmp_path: Path) -> None:
    """Nothing is spent, and nothing is half-written."""
    path = tmp_path / "ledger.json"
    judged_once(path, "x", lambda _: entry("x"))
    before = path.read_bytes()

    def fails(level: float) -> Entry:
        raise RuntimeError(f"{level}")

    with pytest.raises(RuntimeError):
        judged_once(path, "y", fails)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2, "entries": []}', '{"entries": [{"arm": 1}]}', "\xff"]
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, text: str) -> None:
    """And stays as it is."""
    path = tmp_path / "ledger.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is no ledger of this program"):
        judged_once(path, "x", lambda _: entry("x"))
    assert path.read_bytes() == text.encode("latin-1")
