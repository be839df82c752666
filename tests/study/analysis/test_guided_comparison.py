"""A comparison by method 2: what is said of arms whose true speed-ups are known, and how it says it."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import fake_training
import numpy as np
import pytest
from fake_training import TECHNIQUES, Finished, finish
from rich.console import Console

from study.analysis.arm import find
from study.analysis.comparison import Comparison
from study.analysis.evidence import Evidence, read
from study.analysis.notes import notes
from study.analysis.sentences import sentences
from study.cli.tables import print_plan
from study.dashboard.plots import figures
from study.design.build import Request
from study.figures.panel import Figure
from study.figures.theme import plain
from study.figures.tuning import response
from study.place import Place
from study.protocol.combine import combined_choice
from study.protocol.guided import Guided
from study.protocol.verdicts import combined_family
from study.report.sections import sections
from study.session import calibrated_spread, check
from study.statistics.family import effect_in_reach
from study.statistics.verdicts import Verdict
from study.store.locations import Local
from study.terms import REFERENCE_ARMS

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


def test_the_plan_says_what_it_can_find(finished: Finished) -> None:
    """At a typical spread between seeds before anything has run, then at that of the calibration seeds; more seeds find
    a smaller speed-up, one finds none."""
    url = f"sqlite:///{finished.folder / 'optuna.db'}"
    place = Place(url, Local(finished.folder / "artifacts"), None, "cpu", 1)
    request = Request(
        {"data": fake_training.pixels(finished.folder), "name": "fake", "recipe": {"batch_size": 8}}
        | finished.values
    )
    experiment, data = check(place, request)
    spread = calibrated_spread(place, "fake")
    assert spread is not None
    assert calibrated_spread(place, "another") is None

    def line(seeds: int, spread: float | None) -> str:
        console = Console(file=io.StringIO(), width=200)
        plan = experiment.model_copy(update={"seeds": seeds})
        print_plan(console, plan, data, place, 10.0, Counter(), spread)
        assert isinstance(console.file, io.StringIO)
        return next(line for line in console.file.getvalue().splitlines() if "80 % power" in line)

    assert line(12, None) == (
        f"A true speed-up of {effect_in_reach(12, 1, 5):.2f}x or more is found with 80 % power, at a spread between "
        "seeds of 20%; more --seeds find smaller ones."
    )
    measured = line(12, spread)
    assert f"a true speed-up of {effect_in_reach(12, 1, 5, spread=spread):.2f}x or more" in measured.lower()
    assert f"at the calibration seeds' spread of {spread:.0%};" in measured
    assert line(1, spread).startswith("No speed-up can be found")


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
    assert "luck of tuning included" in comparison.terms.intervals
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


def test_the_response_figure_draws_the_response(finished: Finished) -> None:
    """Each arm's panel has its runs, the process's mean and 95 % band, and the vertex, number by number, and the
    dashboard has one for each arm."""
    with finished.open() as (store, state):
        evidence = read(store, "fake")
        assert evidence.comparison is not None
        panels = {panel.title: panel for panel in _response_figure(evidence).panels}
        assert list(panels) == _tuned(evidence)
        for arm, panel in panels.items():
            found = state.guided(arm, 1)
            assert isinstance(found, Guided)
            assert found.response is not None
            line, process = found.response.line(0), found.response
            drawn = {trace.name: trace for trace in panel.figure.data}
            assert list(drawn["mean of the process"].x) == plain(10.0 ** line[:, 0])
            assert list(drawn["mean of the process"].y) == plain(process.mean(line))
            half = 1.96 * np.sqrt(np.diag(process.covariance(line)))
            band = plain(process.mean(line) + half) + plain(process.mean(line) - half)[::-1]
            assert list(drawn["band"].y) == band
            assert list(drawn["vertex"].x) == plain([found.params["lr"]])
            assert f"lr {found.params['lr']:.3g}" in panel.note
            for name, number in (("coarse points", 0), ("guided round 1", 1), ("guided round 2", 2)):
                assert list(drawn[name].y) == plain(process.y[process.seeds == number])
        plots = figures(evidence, evidence.comparison)
        stars = [trace for trace in plots["vae-response"].data if trace.name == "vertex"]
        assert len(stars) == len(panels)


def test_what_was_added_to_a_range_is_shaded(finished: Finished) -> None:
    """A range that goes on below where it began is shaded there, and only there."""
    with finished.open() as (store, _):
        evidence = read(store, "fake")
        curves = evidence.responses[evidence.responses["arm"] == "twice"]
        runs = evidence.response_runs[evidence.response_runs["arm"] == "twice"]
    low = float(curves["value"].min())
    (plain_panel,) = response(runs, curves, evidence.family)
    (panel,) = response(runs, curves.assign(first_low=10.0 * low, edge="low"), evidence.family)
    assert not plain_panel.figure.layout.shapes
    (shade,) = panel.figure.layout.shapes
    assert (shade.x0, shade.x1) == (low, 10.0 * low)
    assert "low edge" in panel.note


def test_the_winner_of_guided_tuning_is_a_point(finished: Finished) -> None:
    """The frames count the guided runs, and mark what was confirmed: the vertex, a trial of its own nowhere."""
    with finished.open() as (store, state):
        evidence = read(store, "fake")
        for arm in _tuned(evidence):
            tuned = state.tuned(arm, 1)
            assert tuned is not None
            trials = evidence.tuning[evidence.tuning["arm"] == arm]
            assert trials["point"].tolist() == list(range(1, 17))
            assert trials["phase"].tolist() == ["tune"] * 8 + ["guided"] * 8
            assert not trials["won"].any()
            (winner,) = evidence.winners[(evidence.winners["arm"] == arm) & evidence.winners["won"]].to_dict(
                "records"
            )
            assert winner["value"] == tuned.params["lr"]
        assert evidence.winners["position"].between(0.0, 1.0).all()


def test_method_1_has_no_response(tmp_path: Path) -> None:
    """An experiment of before keeps its figures: nothing guided is drawn, and its winners are trials."""
    with finish(tmp_path, arms=["twice"], seeds=4).open() as (store, _):
        evidence = read(store, "fake")
        assert evidence.comparison is not None
        assert evidence.responses.empty
        assert "vae-response" not in figures(evidence, evidence.comparison)
        drawn = {
            block.id for part in sections(evidence) for block in part.blocks if isinstance(block, Figure)
        }
        assert "tuning-response" not in drawn
        assert {"tuning-progress", "winners"} <= drawn
        assert evidence.tuning.groupby("arm")["won"].sum().eq(1).all()


def _tuned(evidence: Evidence) -> list[str]:
    return [arm for arm in evidence.arms if arm not in REFERENCE_ARMS]


def _response_figure(evidence: Evidence) -> Figure:
    blocks = [block for part in sections(evidence) for block in part.blocks]
    (found,) = [block for block in blocks if isinstance(block, Figure) and block.id == "tuning-response"]
    return found


def test_the_combine_block_rests_on_one_tuning(tmp_path: Path) -> None:
    """With four blocks too: its arms run on the first block's recipes, so its seeds are the units and the luck of that
    tuning is in the interval; the family's own units are the blocks."""
    values = VALUES | {"arms": ["twice", "half-more"], "blocks": 4, "seeds": 8}
    with finish(tmp_path, **values).open() as (store, state):
        found = read(store, "fake").comparison
        assert found is not None
        said = combined_family(state, ["twice", "half-more"])
    assert found.techniques[0].examples is not None
    assert found.techniques[0].examples.estimate.n == 4
    for judged in said.values():
        assert judged is not None
        assert judged[0].estimate.n == 8
        assert judged[0].simultaneous[0] < judged[0].simultaneous[1]
