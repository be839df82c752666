"""The answer in words: every figure with its interval and seeds, every weakness with a note."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from fake_training import Finished

from study.analysis.comparison import Comparison, estimate
from study.analysis.notes import notes, p_value, ratio, sentences
from study.protocol.selection import State
from study.statistics.calibration import Calibration
from vae.recipe import Recipe

NAN = float("nan")


@pytest.fixture
def comparison(compared: Finished) -> Comparison:
    with compared.open() as (store, state):
        return estimate(store, "fake", state.workload.n_train)


def changed(comparison: Comparison, arm: str, **cells: Any) -> Comparison:
    """The comparison with some cells of one arm's row replaced."""
    arms = comparison.arms.copy()
    for column, value in cells.items():
        if column not in arms:
            arms[column] = pd.Series(None, index=arms.index, dtype=object)
        arms[column] = arms[column].astype(object)
        arms.loc[arms["arm"] == arm, column] = value
    return replace(comparison, arms=arms)


def noted(comparison: Comparison, *tuning: tuple[str, str], **state: Any) -> str:
    """The notes, one a line; `tuning` are (arm, outcome) of tuning trials, `state` more of what was run."""
    runs = [SimpleNamespace(phase="tune", arm=arm, outcome=outcome) for arm, outcome in tuning]
    plain: dict[str, Any] = {"runs": runs, "search_winner": None}
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


def test_a_ratio_never_stands_without_its_uncertainty() -> None:
    """A ratio is printed with its interval, or with the words that it has none; without a value a dash."""
    assert ratio(1.4249, 1.284, 1.5949) == "1.42x [1.28, 1.59]"
    assert ratio(2.0, NAN, NAN) == "2.00x [no interval]"
    assert ratio(NAN, NAN, NAN) == "–"


def test_the_first_sentence_is_the_best_arm(comparison: Comparison) -> None:
    """It names the data, the fastest of the faster arms, the target, the interval, seeds and censoring."""
    first = comparison.sentences[0]
    assert "twice reaches a validation loss of" in first
    assert comparison.target is not None
    assert f"{comparison.target:.2f} nats" in first
    assert re.search(r"\d\.\d\dx \[\d\.\d\d, \d\.\d\d\] sooner in examples than the tuned baseline", first)
    assert "6 paired seeds, 0 censored" in first
    assert "in seconds" not in first  # nothing was timed


def test_seconds_are_said_where_they_were_measured(comparison: Comparison) -> None:
    """Once the arm is timed the sentence has the speed-up in seconds too."""
    timed = changed(comparison, "twice", speed_up_seconds=1.9, low_seconds=1.7, high_seconds=2.1)
    assert "and 1.90x [1.70, 2.10] in seconds" in sentences(timed)[0]


def test_every_technique_is_counted_once(comparison: Comparison) -> None:
    """The second sentence counts the family by verdict, and says of what the intervals are."""
    second = comparison.sentences[1]
    assert second.startswith(
        "Of 5 techniques 2 are faster in examples, 1 not distinguishable from the baseline, 0 slower"
    )
    assert "and 2 do not reach the target on every seed" in second
    assert "margin 5%" in second
    assert "for the tuned recipes" in second


def test_no_arm_stands_out(comparison: Comparison) -> None:
    """Where none is faster that is the answer, and not an arm that happens to be first."""
    arms = comparison.arms.assign(verdict=comparison.arms["verdict"].replace("faster", "not distinguishable"))
    first, *_, last = sentences(replace(comparison, arms=arms))
    assert "no technique is distinguishably faster than the tuned baseline" in first
    assert "reached by the tuned baseline in 1/" in last


@pytest.mark.parametrize(
    ("addition", "without", "words"),
    [
        ((0.5, 0.4, 0.6), 3.9, "they gain less than that. Without half-more it is 3.90x [3.80, 4.00]."),
        ((0.5, 0.4, 0.6), 2.0, "they gain less than that."),
        ((1.0, 0.9, 1.1), 2.0, "not distinguishable from it."),
        ((1.5, 1.2, 1.9), 2.0, "they gain more than that."),
    ],
)
def test_the_combined_arm_is_said(
    comparison: Comparison, addition: tuple[float, float, float], without: float, words: str
) -> None:
    """What the parts are together, against the product of their own speed-ups, and which is better left out."""
    ratios = {"twice": 2.0, "half-more": 1.5, "combined": 3.0, "combined-without-half-more": without}
    rows = [
        {"arm": arm, "hits": 6, "seeds": 6, "speed_up": at, "low": at - 0.1, "high": at + 0.1}
        for arm, at in ratios.items()
    ]
    known = SimpleNamespace(ratio=addition[0], low=addition[1], high=addition[2])
    said = sentences(replace(comparison, combined=pd.DataFrame(rows), addition=cast(Any, known)))[2]
    shown = f"{addition[0]:.2f}x [{addition[1]:.2f}, {addition[2]:.2f}] of the product of their own speed-ups"
    assert said == (
        f"Together twice and half-more are 3.00x [2.90, 3.10] as fast in examples (6 fresh seeds, 0 censored), "
        f"{shown}: {words}"
    )


def test_the_article_is_the_headline(comparison: Comparison) -> None:
    """How much sooner the best arm has the article's loss: 1/x of the examples, with interval and seeds."""
    last = comparison.sentences[-1]
    assert re.search(
        r"article's recipe has after 1000 epochs \(\d+\.\d\d nats\) is reached by twice in 1/", last
    )
    assert re.search(r"1/\d+\.\d \[1/\d+\.\d, 1/\d+\.\d\] of the examples \(6 seeds, 0 censored\)", last)
    without = replace(comparison, article=pd.DataFrame())
    assert not any("article" in sentence for sentence in sentences(without))


def test_nothing_compared_is_said() -> None:
    """Before anything is measured there is no figure to quote."""
    empty: Any = SimpleNamespace(arms=pd.DataFrame(), experiment=None, calibration=None)
    assert sentences(empty) == ["Nothing has been compared yet."]
    assert notes(empty, empty) == []


def test_blocks_are_said(blocked: Finished) -> None:
    """With several blocks the intervals hold the luck of tuning, and the note that they don't is gone."""
    with blocked.open() as (store, state):
        comparison = estimate(store, "fake", state.workload.n_train)
    assert "2 blocks" in comparison.sentences[1]
    assert not any("for the tuned recipes" in note for note in comparison.notes)


@pytest.mark.parametrize(
    ("arm", "cells", "words"),
    [
        ("twice", {"seeds": 4}, "Unfinished: twice lack confirmation runs"),
        (
            "twice",
            {"edges": "lr low"},
            "an edge of their space, which a wider one might beat: twice (lr low)",
        ),
        ("never", {"diverged": 6}, "diverged: never 6 of 6"),
        ("never", {"collapsed": 2}, "collapsed (KL near 0): never 2 of 6"),
        ("flaky", {"failed": 1}, "failed: flaky 1 of 6"),
        ("twice", {"resolution": 0.5}, "twice: one step is 50% of its examples to target"),
        ("twice", {"resolution": math.inf}, "twice reaches the target before its first evaluation"),
        ("twice", {"different_model": True}, "Different model, not only different training: twice"),
        (
            "twice",
            {"throughput_low": 1.0, "throughput_high": 1.2},
            "Noisy timing, throughput interval wider than 15 %: twice",
        ),
        (
            "twice",
            {"test_worse": True, "test_difference": 0.3, "test_low": 0.1, "test_high": 0.5},
            "twice is worse on the test split at its hit: +0.30 nats [+0.10, +0.50]",
        ),
    ],
)
def test_weaknesses_are_noted(comparison: Comparison, arm: str, cells: dict[str, Any], words: str) -> None:
    """What a careful reader would ask about has a note with the arm's name; without it there is none."""
    arms = comparison.arms.assign(resolution=0.03)
    clean = replace(comparison, arms=arms)
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


def test_too_few_seeds_are_noted_with_how_many_would_do(comparison: Comparison) -> None:
    """Where arms are left open for want of seeds the note says about how many would decide."""
    cells = {"verdict": "not distinguishable", "no_interval": None, "se": 0.2, "units": 6}
    text = noted(changed(comparison, "same", **cells))
    found = re.search(r"6 seeds are few for the arms left open: about (\d+) would", text)
    assert found
    assert int(found[1]) > 50
    assert "are few" not in noted(changed(comparison, "same", **cells | {"se": 1e-4}))


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0, "< 0.001"), (0.0004, "< 0.001"), (0.0012, "0.001"), (0.5, "0.500"), (math.nan, "–")],
)
def test_no_p_value_is_zero(p: float, shown: str) -> None:
    """A p-value too small for three decimals is said to be small, not zero."""
    assert p_value(p) == shown


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
        confirmed = [SimpleNamespace(attrs={"recipe": Recipe().to_json()})]
        return {
            "search_winner": SimpleNamespace(recipe=found, number=7),
            "of": lambda arm, phase: confirmed if (arm, phase) == ("search-best", "confirm") else [],
        }

    assert "trial 7 is better by now" in noted(comparison, **state(Recipe(lr=0.5)))
    assert "topped up" not in noted(comparison, **state(Recipe()))
