"""An answer from curves alone is the one that `compare` gives, and curves that can't give one are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy
from fake_training import Finished, finish
from scipy import stats

from study.analysis.arm import find
from study.analysis.columns import to_frame
from study.analysis.curve_notes import curve_notes
from study.analysis.evidence import Evidence, read
from study.analysis.from_curves import FromCurves
from study.analysis.gate import proposal
from study.analysis.judge_curves import analyse
from study.analysis.question import Question
from study.analysis.sentences import verdict_sentences
from study.curves.read import read as read_files
from study.curves.recorded import Curves, Ended, Recorded
from study.curves.stored import read_stored
from study.curves.table import Columns
from study.report.words import how_sure
from study.statistics.curves import Curve, mean_to_target, sustained_to_target
from study.statistics.speed_up import unpaired_speed_up
from study.statistics.verdicts import Verdict
from study.store import schema
from study.store.store import Store
from vae.errors import UserError

#: Examples at which the made-up runs are evaluated.
CLOCK = np.arange(1.0, 41.0)


def run(arm: str, label: str, speed: float, ended: Ended = Ended.COMPLETE, n: int = 40) -> Recorded:
    """A loss that is linear in log examples, so that crossings are exact: 60 - 10 ln(clock * speed)."""
    clock = CLOCK[:n]
    return Recorded(arm, label, clock, 60.0 - 10.0 * np.log(clock * speed), 2.0 * clock, ended)


def luck(seed: int, own: int = 0) -> float:
    """The seed's, most of it common to all arms."""
    shared, alone = np.random.default_rng(seed), np.random.default_rng([seed, own])
    return math.exp(0.1 * shared.standard_normal() + 0.03 * alone.standard_normal())


def curves(speeds: dict[str, float] | None = None, seeds: int = 10, paired: bool = True) -> Curves:
    """Arms of these speeds on the same seeds."""
    speeds = {"adam": 1.0, "muon": 2.0, "sgd": 0.6} if speeds is None else speeds
    runs = [
        run(arm, str(s), speed * luck(s, own))
        for own, (arm, speed) in enumerate(speeds.items())
        for s in range(seeds)
    ]
    return Curves(runs, "epochs", "val_loss", paired=paired)


def one_sided() -> Curves:
    """Of muon's thirty runs ten have a partner; the others are of seeds that adam lacks, and miss the target."""
    both = curves({"adam": 1.0, "muon": 2.0})
    return replace(both, runs=[*both, *(run("muon", str(s), 0.2) for s in range(10, 30))])


def judged(found: FromCurves, arm: str) -> tuple[float, float, float, Verdict]:
    """(ratio, low, high, verdict) of an arm."""
    result = find(found.comparison.arms, arm)
    assert result is not None
    assert result.examples is not None
    return result.examples.ratio, *result.examples.shown, result.examples.verdict


QUESTION = Question("adam", target=35.0)


def changed(given: Curves, **runs: Recorded) -> Curves:
    """The curves with some runs replaced, named ARM_LABEL."""
    return replace(given, runs=[runs.get(f"{run.arm}_{run.label}", run) for run in given])


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A comparison by method 2, whose later confirmation runs end at the target, with an arm that never gets there."""
    arms = ["twice", "half-more", "never"]
    return finish(
        tmp_path_factory.mktemp("guided"),
        method=2,
        stop_at_target=True,
        margin=0.02,
        arms=arms,
        seeds=8,
        tune_trials=4,
    )


@pytest.fixture
def own(guided: Finished) -> tuple[Evidence, Curves]:
    """Its evidence and its curves; the database stays open."""
    store = Store.open(f"sqlite:///{guided.folder / 'optuna.db'}", read_only=True)
    return read(store, "fake"), read_stored(store, "fake")


def test_our_own_database_gives_the_figures_of_compare(own: tuple[Evidence, Curves]) -> None:
    """Equal to the last digit: hits, means, ratios, both intervals, p and verdicts, with the luck of tuning."""
    evidence, recorded = own
    found = analyse(recorded, Question("baseline"), "fake", evidence)
    assert evidence.comparison is not None
    assert found.comparison.target == evidence.comparison.target
    expected, ours = (to_frame(c.arms).set_index("arm") for c in (evidence.comparison, found.comparison))
    # What isn't of the curves, or was measured at the experiment's own target by the trials themselves.
    apart = ["resolution", "test_difference", "test_low", "test_high", "test_worse", "collapsed"]
    columns = [column for column in expected.columns if column not in apart]
    assert len(columns) > 30
    pd.testing.assert_frame_equal(ours[columns], expected[columns], check_exact=True)
    assert [arm.tuning_share for arm in found.comparison.arms] == [
        arm.tuning_share for arm in evidence.comparison.arms
    ]


def test_a_run_that_failed_before_it_had_a_seed_is_a_miss(guided: Finished, tmp_path: Path) -> None:
    """As in `compare`: it stays beside its partner by what it was planned for."""
    folder = guided.copy(tmp_path)
    nothing = {"outcome": "failed", "recipe": None, "seed": None, "hit": None, "best_valid_loss": None}
    with Store.open(f"sqlite:///{folder / 'optuna.db'}") as store, store.write() as connection:
        of = schema.trial_run.c
        last = sqlalchemy.select(sqlalchemy.func.max(of.trial_id)).where(
            of.phase == "confirm", of.arm == "twice"
        )
        lost = connection.scalar(last)
        connection.execute(schema.trial_run.update().where(of.trial_id == lost).values(**nothing))
        connection.execute(schema.curve.delete().where(schema.curve.c.trial_id == lost))
    with Store.open(f"sqlite:///{folder / 'optuna.db'}", read_only=True) as store:
        evidence = read(store, "fake")
        found = analyse(read_stored(store, "fake"), Question("baseline"), "fake", evidence)
    assert evidence.comparison is not None
    ours, expected = (find(c.arms, "twice") for c in (found.comparison, evidence.comparison))
    assert ours is not None
    assert expected is not None
    assert (
        (ours.hits, ours.seeds, ours.compared)
        == (expected.hits, expected.seeds, expected.compared)
        == (7, 8, (7, 8))
    )


def test_blocks_have_one_target_on_one_scale(tmp_path: Path) -> None:
    """Each block's split has a target of its own in `compare`; curves brought to the first's scale give its figures,
    the block's mean as the unit, but for rounding. Their spread holds the luck of tuning, whose share nobody knows."""
    values = {"method": 2, "stop_at_target": True, "margin": 0.02, "arms": ["twice"], "tune_trials": 3}
    finished = finish(tmp_path, **values, seeds=4, blocks=2)
    with finished.open() as (store, _):
        evidence = read(store, "fake")
        found = analyse(read_stored(store, "fake"), Question("baseline"), "fake", evidence)
        assert (
            "tuning as well (the unit is the mean of a block, tuned anew in each of 2):"
            in how_sure(evidence)[0]
        )
    assert evidence.comparison is not None
    assert [arm.tuning_share for arm in evidence.comparison.techniques] == [None]
    expected, ours = (to_frame(c.arms).set_index("arm") for c in (evidence.comparison, found.comparison))
    columns = [
        "hits",
        "seeds",
        "examples",
        "units",
        "speed_up",
        "low",
        "high",
        "simultaneous_low",
        "p_adjusted",
    ]
    pd.testing.assert_frame_equal(ours[columns], expected[columns], rtol=1e-9)
    assert expected.loc["twice", "units"] == 2


def test_exported_curves_give_the_figures_of_compare(own: tuple[Evidence, Curves], tmp_path: Path) -> None:
    """From the exported CSV alone: hits, means, ratios and all that needs no tuning are the same to the last digit;
    intervals hold the seeds' luck alone, are narrower, and this is said."""
    evidence, _ = own
    path = tmp_path / "fake-curves.csv"
    evidence.curve_rows.to_csv(path, index=False)
    columns = Columns(clock="examples", value="valid_loss", where=[("phase", "confirm")])
    recorded = read_files([str(path)], columns)
    assert evidence.comparison is not None
    target, tau = evidence.comparison.target, evidence.workload.tau
    assert target is not None
    found = analyse(recorded, Question("baseline", target=target), "fake-curves.csv")
    for arm in evidence.comparison.arms:
        ours = find(found.comparison.arms, arm.arm)
        assert ours is not None
        assert (ours.hits, ours.seeds, ours.conditional) == (arm.hits, arm.seeds, arm.conditional)
        if arm.misses == 0:
            assert (ours.mean_examples, ours.par2, ours.ert) == (arm.mean_examples, arm.par2, arm.ert)
        if arm.examples is not None and arm.examples.known:
            assert ours.examples is not None
            assert ours.examples.ratio == arm.examples.ratio
            assert ours.examples.estimate.theta == arm.examples.estimate.theta
            assert ours.examples.estimate.se < arm.examples.estimate.se
            assert ours.rmst == arm.rmst
    assert found.tau == pytest.approx(tau, rel=0.01)
    assert "not that of tuning" in curve_notes(found)[0]
    assert judged(found, "never")[3] is Verdict.NEVER


def test_a_paired_ratio_is_the_one_of_the_formula() -> None:
    """Speed-up, interval and verdict of runs whose times to target are known."""
    found = analyse(curves(), QUESTION, "made up")
    times = {arm: [math.exp(2.5) / (v * luck(s, own)) for s in range(10)] for own, (arm, v) in enumerate(
        {"adam": 1.0, "muon": 2.0, "sgd": 0.6}.items()
    )}  # fmt: skip
    for arm in ("muon", "sgd"):
        ratio, low, high, verdict = judged(found, arm)
        assert ratio == pytest.approx(np.mean(times["adam"]) / np.mean(times[arm]), rel=1e-9)
        assert low < ratio < high
        assert verdict is (Verdict.FASTER if arm == "muon" else Verdict.SLOWER)
    muon = find(found.comparison.arms, "muon")
    assert muon is not None
    assert muon.seconds is not None
    assert muon.seconds.ratio == pytest.approx(muon.examples.ratio if muon.examples else 0.0, rel=1e-9)


def test_without_pairs_it_is_welch_on_the_logs() -> None:
    """Equal to scipy's; other seeds of the arms don't matter, and it is said."""
    rng = np.random.default_rng(3)
    B, A = rng.lognormal(0.5, 0.2, 9), rng.lognormal(0.0, 0.4, 6)
    estimate = unpaired_speed_up(B, A)
    welch = stats.ttest_ind(np.log(B), np.log(A), equal_var=False)
    low, high = np.exp(welch.confidence_interval(0.95))
    assert (estimate.p, estimate.low, estimate.high) == pytest.approx((welch.pvalue, low, high))
    assert estimate.ratio == pytest.approx(stats.gmean(B) / stats.gmean(A))
    trials = analyse(curves(paired=False), QUESTION, "made up")
    asked = analyse(curves(), replace(QUESTION, unpaired=True), "made up")
    assert judged(trials, "muon") == judged(asked, "muon")
    assert judged(asked, "muon")[2] > judged(analyse(curves(), QUESTION, "made up"), "muon")[2]
    assert any("aren't paired" in note for note in curve_notes(asked))


def test_pairs_are_of_the_same_seed() -> None:
    """Partly overlapping seeds: those in common are compared, the others are told; the order of runs is nothing."""
    given = curves()
    part = replace(
        given, runs=[run for run in reversed(given.runs) if run.arm == "adam" or int(run.label) < 7]
    )
    found = analyse(part, QUESTION, "made up")
    few = analyse(curves(seeds=7), QUESTION, "made up")
    assert judged(found, "muon")[0] == pytest.approx(judged(few, "muon")[0], rel=1e-12)
    assert "muon 0, and 3 of the baseline's" in " ".join(curve_notes(found))


def test_misses_count_as_the_budget_up_to_one_in_ten() -> None:
    """One of ten diverged: a ratio with it at the budget; two: no verdict."""
    broken = run("muon", "0", 2.0)
    broken = replace(
        broken, clock=CLOCK[:3], value=np.array([60.0, 50.0, math.nan]), seconds=None, ended=Ended.DIVERGED
    )
    once = analyse(changed(curves(), muon_0=broken), QUESTION, "made up")
    ratio, *_ = judged(once, "muon")
    assert ratio < judged(analyse(curves(), QUESTION, "made up"), "muon")[0]
    assert "Misses count as 40 epochs, up to one run in ten: muon 9/10." in curve_notes(once)
    assert "Runs that diverged, misses unless they had the target before: muon 1 of 10." in curve_notes(once)
    twice = analyse(changed(curves(), muon_0=broken, muon_1=replace(broken, label="1")), QUESTION, "made up")
    assert judged(twice, "muon")[3] is Verdict.UNRELIABLE


def test_one_seed_gives_a_table_without_intervals() -> None:
    """And says so; nothing is decided."""
    found = analyse(curves(seeds=1), QUESTION, "made up")
    ratio, low, high, verdict = judged(found, "muon")
    assert ratio > 1.5
    assert math.isnan(low)
    assert math.isnan(high)
    assert verdict is Verdict.UNDECIDED
    assert "No interval: one unit: no interval (muon, sgd)." in curve_notes(found)


def test_higher_is_better_gives_the_same_answer() -> None:
    """An accuracy that is 1 minus a loss, and its target."""
    given = curves()
    accuracy = [replace(run, value=-(100.0 - run.value)) for run in given]
    mirrored = replace(given, runs=accuracy, maximise=True, value="accuracy")
    found = analyse(mirrored, Question("adam", target=65.0), "made up")
    mirror = judged(found, "muon")
    straight = judged(analyse(given, QUESTION, "made up"), "muon")
    assert mirror[:3] == pytest.approx(straight[:3], rel=1e-9)
    assert mirror[3] is straight[3]
    assert found.comparison.target == 65.0
    assert set(found.by_target["target"] > 0) == {True}


def test_the_target_may_be_the_baseline_s_at_a_share() -> None:
    """The median over its runs of the best value by then; that it is of the same runs is said."""
    found = analyse(curves(), Question("adam", target_at=0.5), "made up")
    expected = np.median([run.curve.best(20.0) for run in curves() if run.arm == "adam"])
    assert found.comparison.target == expected
    assert any(note.startswith("The target is the median of adam at 50%") for note in curve_notes(found))


def test_a_common_end_makes_cut_runs_comparable() -> None:
    """A run that was stopped early is refused with its end, at which all can be judged; as if all had ended there."""
    short = run("sgd", "3", 0.6 * luck(3, 2), Ended.CENSORED, n=15)
    given = changed(curves(), sgd_3=short)
    with pytest.raises(UserError, match=r"sgd, 3 ended at 15 of 40 epochs.*--censored-at 15 judges"):
        analyse(given, QUESTION, "made up")
    found = analyse(given, replace(QUESTION, censored_at=15.0), "made up")
    cut = replace(given, runs=[run(r.arm, r.label, math.exp((60 - r.value[0]) / 10), n=15) for r in given])
    expected = analyse(cut, QUESTION, "made up")
    for arm in ("muon", "sgd"):
        assert find(found.comparison.arms, arm).hits == find(expected.comparison.arms, arm).hits  # type: ignore[union-attr]
    assert found.tau == 15.0


def test_a_hit_before_the_end_needs_no_reason() -> None:
    """Runs that end once they have the target are as good as those that go on."""
    whole = curves()
    until = [int(np.argmax(run.value <= 35.0)) + 1 for run in whole]
    ended = [
        replace(run, clock=run.clock[:n], value=run.value[:n], seconds=None)
        for run, n in zip(whole, until, strict=True)
    ]
    found = analyse(replace(whole, runs=[*ended[:-1], whole.runs[-1]]), QUESTION, "made up")
    assert judged(found, "muon") == judged(analyse(whole, QUESTION, "made up"), "muon")


@pytest.mark.parametrize(
    ("given", "question", "message"),
    [
        (curves(), Question("adm", target=35.0), "--baseline adm: no such arm. Did you mean 'adam'"),
        (curves({"adam": 1.0}), QUESTION, "There is but one arm, adam"),
        (curves(), Question("adam"), "Give --target, or --target-at"),
        (curves(), Question("adam", target_at=0.01), "--target-at 0.01: adam has no evaluation by then"),
        (changed(curves(), muon_2=run("muon", "2", 2.0, n=2)), QUESTION, "muon, 2 has 2 evaluations"),
        (
            Curves([run(a, f"{a}{s}", 1.0) for a in ("adam", "muon") for s in range(3)], "epochs", "v"),
            QUESTION,
            r"muon and adam have no seed in common \(muon0, muon1, muon2; adam0.*--unpaired",
        ),
        (
            changed(curves(), muon_2=run("muon", "2", 2.0, Ended.HIT, n=4)),
            QUESTION,
            "muon, 2 was stopped at a value of 39.*before the target of 35",
        ),
    ],
)
def test_curves_that_cannot_say_it_are_refused(given: Curves, question: Question, message: str) -> None:
    """In one line: the rule, the run, the way out."""
    with pytest.raises(UserError, match=message) as refused:
        analyse(given, question, "made up")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": math.nan}, "--target nan"),
        ({"target": 1.0, "target_at": 0.5}, "give one"),
        ({"target_at": 1.0}, "between 0 and 1"),
        ({"margin": -0.1}, "--margin"),
        ({"censored_at": 0.0}, "--censored-at 0"),
    ],
)
def test_questions_that_make_no_sense(values: dict[str, float], message: str) -> None:
    """Each is refused by its option's name."""
    with pytest.raises(UserError, match=message):
        Question("adam", **values)


def test_a_sustained_hit_is_no_dip() -> None:
    """A dip below the target doesn't count, a stay does, interpolated as a first hit is; at the end what is left."""
    clock = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    dip = Curve(clock, np.array([9.0, 4.0, 9.0, 6.0, 4.0, 3.0]))
    E, hit = sustained_to_target(dip, 5.0)
    assert hit
    assert pytest.approx(8.0 * 2.0**0.5) == E
    assert sustained_to_target(Curve(clock, np.array([9.0, 4.0, 9, 9, 9, 9])), 5.0)[1] is False
    assert sustained_to_target(Curve(clock[:2], np.array([9.0, 5.0])), 5.0) == (2.0, True)
    assert sustained_to_target(Curve(clock[:0], clock[:0]), 5.0)[1] is False


def test_the_mean_curve_hides_a_miss_unless_it_is_infinite() -> None:
    """The crossing of the mean over seeds; a diverged seed takes the mean with it."""
    clock = np.array([1.0, 2.0, 4.0])
    two = [Curve(clock, np.array([9.0, 6.0, 2.0])), Curve(clock, np.array([9.0, 8.0, 6.0]))]
    assert mean_to_target(two, 4.0) == pytest.approx(4.0)
    broken = Curve(clock[:2], np.array([9.0, math.nan]))
    assert math.isnan(mean_to_target([two[0], broken], 4.0))
    assert math.isnan(mean_to_target([], 4.0))


def test_sensitivities_and_budgets_are_the_known_ratio() -> None:
    """Where curves are smooth every reading gives the speed-up, at every budget."""
    found = analyse(curves({"adam": 1.0, "muon": 2.0}), QUESTION, "made up")
    sustained, mean = found.sensitivities
    assert sustained.estimate.ratio == judged(found, "muon")[0]
    assert mean.estimate.ratio == pytest.approx(2.0, rel=0.05)
    assert found.by_budget["budget"].tolist() == [5.0, 10.0, 20.0, 30.0, 40.0]
    assert found.by_budget["speed_up"].dropna().to_numpy() == pytest.approx(2.0, rel=0.05)


def test_evaluations_that_lie_far_apart_are_told() -> None:
    """The widest cell at a hit: from epoch 5 to 6 are 20 %."""
    slow = {"adam": 1.0, "muon": math.exp(2.5) / 5.5}
    runs = [run(arm, str(s), speed) for arm, speed in slow.items() for s in range(3)]
    found = analyse(Curves(runs, "epochs", "val_loss"), QUESTION, "made up")
    assert "in epochs to it, is adam 8%, muon 20%." in " ".join(curve_notes(found))


def test_what_is_said_of_a_ratio_counts_its_pairs() -> None:
    """Runs without a partner are in no ratio, so they are neither among its seeds nor among its misses."""
    found = analyse(one_sided(), QUESTION, "made")
    assert judged(found, "muon")[3] is Verdict.FASTER
    assert "(10 paired seeds, 0 censored)." in verdict_sentences(found.comparison)[0]
    assert "10 of 10 seeds, p" in proposal(found.comparison, "muon", "faster", seconds=False).rule()[1]
    arm = find(found.comparison.arms, "muon")
    assert arm is not None
    assert (arm.hits, arm.seeds) == (10, 30)
    turned = analyse(one_sided(), replace(QUESTION, baseline="muon"), "made")
    assert judged(turned, "adam")[3] is Verdict.SLOWER
    assert verdict_sentences(turned.comparison)[1].startswith("Of 1 arm 0 are faster in epochs, 1 slower")


def test_what_comes_after_a_common_end_counts_nowhere() -> None:
    """Not at other targets, not at other budgets, nor by other readings: a hit after --censored-at is a miss."""
    found = analyse(curves(), replace(QUESTION, censored_at=11.0), "made")
    sgd = [row for row in found.sensitivities if row.arm == "sgd"]
    assert [(row.hits, math.isnan(row.estimate.ratio)) for row in sgd] == [(0, True), (0, True)]
    for frame in (found.by_target, found.by_budget):
        reached = frame[frame["speed_up"].notna()]
        assert set(reached["arm"]) == {"muon", "sgd"}
        assert reached["target"].min() > 60.0 - 10.0 * math.log(11.0 * 1.3)
    assert found.by_target["target"].min() > analyse(curves(), QUESTION, "made").by_target["target"].min()


def test_below_the_target_that_runs_end_at_nothing_is_known() -> None:
    """Levels go down to it and no further, so no arm misses one for having been stopped; and no mean curve is told to
    never get there."""

    def stopped(whole: Recorded) -> Recorded:
        n = int(np.argmax(whole.value <= 35.0)) + 1
        return replace(whole, clock=whole.clock[:n], value=whole.value[:n], seconds=None, ended=Ended.HIT)

    both = curves({"adam": 1.0, "muon": 2.0})
    found = analyse(replace(both, runs=[stopped(run) for run in both]), QUESTION, "made")
    for frame in (found.by_target, found.by_budget):
        assert frame["target"].min() == 35.0
        assert (frame["arm_hits"] == frame["seeds"]).all()
    assert [row.reading[:9] for row in found.sensitivities] == ["sustained"]
