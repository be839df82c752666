"""A comparison by method 2: what is said of arms whose true speed-ups are known, and how it says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_training import TECHNIQUES, Finished, finish

from study.analysis.answer import interval_words, sentences
from study.analysis.arm import find
from study.analysis.comparison import Comparison
from study.analysis.evidence import read
from study.analysis.notes import notes
from study.protocol.combine import combined_choice
from study.statistics.verdicts import Verdict

VALUES: dict[str, Any] = {
    "method": 2,
    "tune_trials": 8,
    "seeds": 12,
    "margin": 0.02,
    "stop_at_target": True,
    "arms": ["twice", "half-more", "neutral", "never", "flaky"],
    # Changes nothing here but which luck its recipe has.
    "techniques": TECHNIQUES | {"neutral": {"overrides": {"clip_norm": 1e6}}},
    "combine": True,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Five arms with known answers, and the combined arm."""
    return finish(tmp_path_factory.mktemp("guided"), **VALUES)


@pytest.fixture(scope="module")
def comparison(finished: Finished) -> Comparison:
    with finished.open() as (store, _):
        found = read(store, "fake").comparison
    assert found is not None
    return found


def test_what_is_true_is_in_the_interval(comparison: Comparison) -> None:
    """Twice and one and a half times as fast, and the same: each true ratio lies in its simultaneous interval, which is
    the one that is shown, and the verdicts are right."""
    for arm, truth, verdict in (
        ("twice", 2.0, Verdict.FASTER),
        ("half-more", 1.5, Verdict.FASTER),
        ("neutral", 1.0, Verdict.UNDECIDED),
    ):
        result = find(comparison.arms, arm)
        assert result is not None
        assert result.examples is not None
        low, high = result.examples.shown
        assert (low, high) == result.examples.simultaneous
        assert low < truth < high
        assert result.examples.verdict is verdict
        assert result.tuning_share is not None
        assert 0.0 < result.tuning_share < 1.0
        decides = result.examples.p_adjusted
        assert decides is not None
        assert (decides < 0.05) == verdict.decided


def test_who_misses_has_no_ratio(comparison: Comparison) -> None:
    """An arm that never gets there, in tuning neither, wasn't tuned; one that misses a third of its seeds is
    unreliable. Neither has a ratio, and the baseline is blamed for nothing."""
    words = {arm: find(comparison.arms, arm) for arm in ("never", "flaky")}
    said = {arm: result.examples.verdict for arm, result in words.items() if result and result.examples}
    assert said["never"] in (Verdict.NOT_TUNED, Verdict.NEVER)
    assert said["flaky"] in (Verdict.UNRELIABLE, Verdict.NOT_TUNED)
    for result in words.values():
        assert result is not None
        assert result.examples is not None
        assert not result.examples.known


def test_the_combined_arm_is_chosen_by_verdict(finished: Finished, comparison: Comparison) -> None:
    """The two that are faster, no null; the combine block has intervals with tuning's luck in them too."""
    with finished.open() as (_, state):
        assert combined_choice(state) == ["twice", "half-more"]
    combined = find(comparison.combined, "combined")
    assert combined is not None
    low, high = combined.examples.shown
    assert low < 3.0 < high
    assert comparison.addition is not None
    assert comparison.addition.low < 1.0 < comparison.addition.high


def test_the_words_fit_the_method(finished: Finished, comparison: Comparison) -> None:
    """The luck of tuning is said to be in the intervals, what is left open is said to be small, and nothing is said of
    rules of before."""
    assert "luck of tuning included" in interval_words(comparison.experiment)
    counted = sentences(comparison)[1]
    assert "2 are faster" in counted
    assert "if they change anything, by less than" in counted
    with finished.open() as (_, state):
        said = " ".join(notes(comparison, state))
    assert "tuned recipes" not in said
    assert "method 1" not in said
    assert "plateau" not in said


def test_a_stored_comparison_keeps_its_rules(tmp_path: Path) -> None:
    """An experiment begun by method 1 says so, and its interval stays that of the tuned recipes."""
    before = finish(tmp_path, arms=["twice"], seeds=4)
    with before.open() as (store, state):
        found = read(store, "fake").comparison
        assert found is not None
        said = " ".join(notes(found, state))
    assert "method 1" in said
    assert "tuned recipes" in said
    twice = find(found.arms, "twice")
    assert twice is not None
    assert twice.examples is not None
    assert twice.examples.shown == (twice.examples.estimate.low, twice.examples.estimate.high)


def test_a_top_up_is_a_look(tmp_path: Path) -> None:
    """More seeds later: the first ones' verdict stays, the level is shared, and the note says at which totals."""
    values = VALUES | {"arms": ["twice"], "combine": False, "seeds": 6}
    finish(tmp_path, **values)
    more = finish(tmp_path, **values | {"seeds": 10})
    with more.open() as (store, state):
        found = read(store, "fake").comparison
        assert found is not None
        assert "verdicts could be read at 6, 10 seeds" in " ".join(notes(found, state))
    twice = find(found.arms, "twice")
    assert twice is not None
    assert twice.examples is not None
    assert twice.examples.verdict is Verdict.FASTER
