"""Every weakness of the evidence has a note, and none without one."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_training import Finished, estimated

from study.analysis.arm import Measure, find
from study.analysis.comparison import Comparison
from study.analysis.notes import notes
from study.protocol.selection import State
from study.statistics.calibration import Calibration
from study.statistics.speed_up import Difference, Estimate
from study.statistics.verdicts import Verdict
from study.terms import Outcome
from vae.recipe import Recipe

NAN = float("nan")


@pytest.fixture
def comparison(compared: Finished) -> Comparison:
    with compared.open() as (store, _):
        return estimated(store)


def changed(comparison: Comparison, name: str, **fields: Any) -> Comparison:
    """The comparison with some of one arm's fields replaced."""
    arms = [replace(arm, **fields) if arm.arm == name else arm for arm in comparison.arms]
    return replace(comparison, arms=arms)


def noted(comparison: Comparison, *tuning: tuple[str, str], **state: Any) -> str:
    """The notes, one a line; `tuning` are (arm, outcome) of tuning trials, `state` more of what was run."""
    runs = [SimpleNamespace(phase="tune", arm=arm, outcome=outcome) for arm, outcome in tuning]
    plain: dict[str, Any] = {"runs": runs, "search_winner": None, "failed": lambda arm, block: False}  # noqa: ARG005
    plain |= {"of": lambda arm, phase: [], "winner": lambda arm, block: None, "finals": lambda run: []}  # noqa: ARG005
    return "\n".join(notes(comparison, cast(State, SimpleNamespace(**plain | state))))


def calibration(**fields: Any) -> Calibration:
    plain = {
        "target": 20.0,
        "tuning_target": 19.8,
        "raised": False,
        "slope": -3.0,
        "examples": (1.0,),
        "hits": 5,
        "diverged": 0,
    }
    return Calibration(**plain | {"spread": 0.05, "plateau": False} | fields)


def test_nothing_compared_has_no_notes(comparison: Comparison) -> None:
    """Before there is an arm there is nothing to doubt."""
    assert notes(replace(comparison, arms=[]), cast(State, None)) == []


def test_one_tuning_is_noted(comparison: Comparison, blocked: Finished) -> None:
    """With one block the luck of tuning is in no interval; with several the note is gone."""
    assert "for the tuned recipes" in noted(comparison)
    with blocked.open() as (store, state):
        several = estimated(store)
        assert not any("for the tuned recipes" in note for note in notes(several, state))


@pytest.mark.parametrize(
    ("arm", "cells", "words"),
    [
        ("twice", {"seeds": 4}, "Unfinished: twice lack confirmation runs"),
        (
            "twice",
            {"edges": ("lr low",)},
            "an edge of their space, which a wider one might beat: twice (lr low)",
        ),
        ("never", {"ended": {Outcome.DIVERGED: 6}}, "diverged: never 6 of 6"),
        ("never", {"ended": {Outcome.COLLAPSED: 2}}, "collapsed (KL near 0): never 2 of 6"),
        ("flaky", {"ended": {Outcome.FAILED: 1}}, "failed: flaky 1 of 6"),
        ("twice", {"resolution": 0.5}, "twice: one step is 50% of its examples to target"),
        ("twice", {"resolution": math.inf}, "twice reaches the target before its first evaluation"),
        ("twice", {"different_model": True}, "Different model, not only different training: twice"),
        (
            "twice",
            {"throughput": Estimate(1.1, 1.0, 1.2, 0.1, 0.05, 9.0, 10, 0.5)},
            "Noisy timing, throughput interval wider than 15 %: twice",
        ),
        (
            "twice",
            {"test": Difference(0.3, 0.1, 0.5, 0.1, 5.0, 6, 0.01)},
            "twice is worse on the test split at its hit: +0.30 nats [+0.10, +0.50]",
        ),
    ],
)
def test_weaknesses_are_noted(comparison: Comparison, arm: str, cells: dict[str, Any], words: str) -> None:
    """What a careful reader would ask about has a note with the arm's name; without it there is none."""
    clean = replace(comparison, arms=[replace(arm, resolution=0.03) for arm in comparison.arms])
    assert words not in noted(clean)
    assert words in noted(changed(clean, arm, **cells))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"plateau": True, "spread": 0.21}, "Target on a plateau: examples to target vary by 21%"),
        ({"raised": True}, "raised to the worst seed's loss"),
        ({"diverged": 2}, "2 calibration runs diverged"),
    ],
)
def test_a_weak_target_is_noted(comparison: Comparison, fields: dict[str, Any], words: str) -> None:
    """A target on a plateau, a raised one, and calibration runs that diverged are noted."""
    assert words not in noted(replace(comparison, calibration=calibration()))
    assert words in noted(replace(comparison, calibration=calibration(**fields)))


def test_tuning_trials_that_ended_badly_are_noted(comparison: Comparison) -> None:
    """Diverged and failed tuning trials are counted by arm."""
    assert "Tuning trials that" not in noted(comparison, ("twice", "hit"), ("same", "capped"))
    text = noted(comparison, ("twice", "diverged"), ("twice", "failed"), ("same", "diverged"))
    assert "Tuning trials that diverged or failed: twice 2, same 1." in text


def test_an_arm_whose_tuning_failed_is_not_waited_for(comparison: Comparison) -> None:
    """Nothing more is run of it, so it lacks nothing; the note says why."""
    empty = changed(comparison, "twice", seeds=0)
    assert "Unfinished: twice" in noted(empty)
    lost = SimpleNamespace(outcome=Outcome.FAILED, reason="boom")
    text = noted(empty, failed=lambda arm, block: (arm, block) == ("twice", 1), of=lambda *_: [lost])
    assert "Every tuning trial failed, so nothing is confirmed of: twice (boom)." in text
    assert "Unfinished" not in text


@pytest.mark.parametrize(
    ("verdict", "limits", "is_told"),
    [
        (Verdict.FASTER, (0.95, 4.6), True),
        (Verdict.FASTER, (1.1, 4.6), False),
        (Verdict.SLOWER, (0.5, 1.1), True),
        (Verdict.SLOWER, (0.5, 0.8), False),
        (Verdict.UNDECIDED, (0.5, 1.1), False),
    ],
)
def test_an_interval_beside_its_verdict_is_noted(
    comparison: Comparison, verdict: Verdict, limits: tuple[float, float], is_told: bool
) -> None:
    """Holm's later steps ask for less than the intervals over all arms: a verdict may stand where its interval holds
    1, and the reader is told which of them decides."""
    twice = find(comparison.arms, "twice")
    assert twice is not None
    assert twice.examples is not None
    measure = replace(twice.examples, verdict=verdict, simultaneous=limits, decides=True)
    said = noted(changed(comparison, "twice", examples=measure))
    assert (
        "reaches into the margin where the verdict doesn't: twice in examples. The p decides" in said
    ) is is_told


def test_too_few_seeds_are_noted_with_how_many_would_do(comparison: Comparison) -> None:
    """Where arms are left open for want of seeds the note says about how many would decide."""
    e = Estimate(1.0, 0.6, 1.6, 0.0, 0.2, 5.0, 6, 0.9)
    text = noted(changed(comparison, "same", examples=Measure(e, (0.5, 2.0), Verdict.UNDECIDED)))
    found = re.search(r"6 seeds are few for the arms left open: about (\d+) would", text)
    assert found
    assert int(found[1]) > 50
    assert "are few" not in noted(
        changed(comparison, "same", examples=Measure(replace(e, se=1e-4), (0.9, 1.1), Verdict.UNDECIDED))
    )


def test_grey_pixels_are_no_likelihood(comparison: Comparison) -> None:
    """Cross-entropy on grey pixels is labelled as no likelihood; a likelihood isn't."""
    assert "no likelihood" in noted(comparison)
    recipe = comparison.experiment.recipe.replace(likelihood="bernoulli")
    proper = comparison.experiment.model_copy(update={"recipe": recipe})
    assert "no likelihood" not in noted(replace(comparison, experiment=proper))


def test_an_arm_tuned_in_vain_is_noted(comparison: Comparison) -> None:
    """Where the best of an arm's K points missed the target on one of its tuning seeds, the arm's misses say little
    about the technique."""

    def winner(arm: str, block: int) -> Any:  # noqa: ARG001
        return SimpleNamespace(arm=arm, hit=arm != "never")

    def finals(run: Any) -> list[Any]:
        return [SimpleNamespace(hit=True), SimpleNamespace(hit=run.arm != "flaky")]

    words = "Tuning found no point that reaches the tuning target on each of its seeds for"
    assert "Tuning found no point" not in noted(comparison)
    assert f"{words} never: with more than K = 4 points" in noted(comparison, winner=winner)
    assert f"{words} never, flaky: with" in noted(comparison, winner=winner, finals=finals)


def test_a_search_topped_up_is_noted(comparison: Comparison) -> None:
    """search-best is what was the best when it was confirmed; a better one found later is noted."""

    def state(found: Recipe) -> dict[str, Any]:
        confirmed = [SimpleNamespace(assignment=SimpleNamespace(base=Recipe()))]
        return {
            "search_winner": SimpleNamespace(recipe=found, number=7),
            "of": lambda arm, phase: confirmed if (arm, phase) == ("search-best", "confirm") else [],
        }

    assert "trial 7 is better by now" in noted(comparison, **state(Recipe(lr=0.5)))
    assert "topped up" not in noted(comparison, **state(Recipe()))


def test_seconds_of_bf16_without_units_are_told(comparison: Comparison) -> None:
    """Where a trial's machine had none, and only then, the arms in bf16 that were timed are named."""
    experiment = comparison.experiment
    timed = changed(comparison, "twice", throughput=Estimate(1.1, 1.05, 1.15, 0.1, 0.05, 9.0, 10, 0.5))
    low = replace(timed, experiment=experiment.model_copy(update={"recipe": Recipe(precision="bf16")}))
    machine = {"processor": "one with AVX2", "bf16": "this processor has no bf16 units"}
    for compared, machines, told in (
        (low, [machine], True),
        (low, [{"processor": "another"}], False),
        (timed, [machine], False),
    ):
        said = noted(compared, versions=lambda machines=machines: machines)
        assert ("Seconds of twice: this processor has no bf16 units." in said) == told
