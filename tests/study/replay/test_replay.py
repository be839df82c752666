"""Made curves with known answers, and the same decisions as a live Optuna study's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from study.curves.recorded import Curves, Ended, Recorded
from study.replay.policies import NONE, Kind, Policy, policies
from study.replay.score import Score, early_looks, front, quantile_interval, recommended, score, unfair
from study.replay.simulate import STUDY_NAME, Orders, Played, arrival_order, play, play_all, total, used
from study.replay.tapes import Tapes, to_tapes
from study.statistics.curves import Array
from vae.errors import UserError

N, POINTS = 12, 20


def shortened(tapes: Tapes, played: Played) -> Array:
    """(n,) what was saved of each run, on the clock."""
    return np.array(
        [tape.clock[-1] - tape.clock[k - 1] for tape, k in zip(tapes.runs, played.seen, strict=True)]
    )


def curves(values: Sequence[Array], seconds: float = 2.0, ended: Sequence[Ended] = ()) -> Curves:
    """A run for each array of values, evaluated each epoch, which takes so many seconds."""
    ends = ended or [Ended.COMPLETE] * len(values)
    runs = []
    for i, (value, how) in enumerate(zip(values, ends, strict=True)):
        clock = np.arange(1.0, len(value) + 1.0)
        runs.append(Recorded("made", str(i), clock, np.asarray(value), seconds * clock, how))
    return Curves(runs, "epochs", "loss")


def parallel() -> Tapes:
    """Twelve curves that never cross: run i is the i-th best at every point."""
    return to_tapes(curves([i + 10.0 * 0.8 ** np.arange(POINTS) for i in range(N)]))


def noisy(seed: int = 0) -> Tapes:
    """Curves that cross, of different speeds."""
    rng = np.random.default_rng(seed)
    ends, falls = rng.normal(size=N), rng.uniform(2.0, 9.0, N)
    values = [
        end + 5.0 * np.exp(-np.arange(POINTS) / fall) + rng.normal(scale=0.2, size=POINTS)
        for end, fall in zip(ends, falls, strict=True)
    ]
    return to_tapes(curves(values))


def scored(tapes: Tapes, policy: Policy, n: int = 40, workers: int = 1) -> Score:
    orders = [play(tapes, policy, arrival_order(len(tapes.runs), 0, i), workers) for i in range(n)]
    return score(tapes, Orders(policy, workers, orders))


def test_without_a_policy_everything_is_used_and_the_best_found() -> None:
    """Share 1, regret 0, and as long as all runs take one after another; with w workers a w-th of it here."""
    one, three = scored(parallel(), NONE), scored(parallel(), NONE, workers=3)
    assert (one.share, one.seconds_share, one.regret_p90, one.best_cut) == (1.0, 1.0, 0.0, 0.0)
    assert one.makespan == N * POINTS * 2.0
    assert three.makespan == N * POINTS * 2.0 / 3


def test_stopping_all_at_a_stage_costs_what_it_says() -> None:
    """Each run to point 5, the best to its end: nothing is lost where curves never cross, all where they do."""
    stage = Policy("best at 25%", Kind.STAGE, "", number=5)
    found = scored(parallel(), stage)
    assert found.share == (N * 5 + POINTS - 5) / (N * POINTS)
    assert found.makespan == (N * 5 + POINTS - 5) * 2.0
    assert (found.regret_p90, found.best_cut) == (0.0, 0.0)
    late = [np.full(POINTS, 1.0 + i) for i in range(N)]
    late[-1] = np.where(np.arange(POINTS) < 10, 50.0, 0.0)  # the best of all, late
    missed = scored(to_tapes(curves(late)), stage)
    assert (missed.regret, missed.best_cut) == (1.0, 1.0)


def test_patience_ends_a_run_where_it_says() -> None:
    """Three points after its last better value; what is lost is what came later, and an improvement smaller than
    min_delta is none."""
    values = np.concatenate([[5.0, 4.0, 3.0], np.full(10, 3.0), [0.0]])
    tapes = to_tapes(curves([values + i for i in range(N)]))
    found = scored(tapes, Policy("patience 3", Kind.WITHIN, "", patience=3))
    assert found.share == 6 / 14
    assert (found.regret, found.best_cut) == (3.0, 1.0)
    assert scored(tapes, Policy("p", Kind.WITHIN, "", patience=11)).share == 1.0
    creeping = to_tapes(curves([10.0 - 0.01 * np.arange(POINTS) + i for i in range(N)]))
    assert scored(creeping, Policy("p", Kind.WITHIN, "", patience=3)).share == 1.0
    assert scored(creeping, Policy("p", Kind.WITHIN, "", patience=3, min_delta=0.5)).share == 4 / POINTS


def test_capping_never_loses_the_first_at_the_target() -> None:
    """Runs end at the target or once they can't be first any more: in every order the first of all is found."""
    tapes = noisy()
    target = float(np.median(tapes.finals))
    for workers in (1, 4):
        found = scored(tapes, Policy("capping", Kind.TARGET, "", target=target), workers=workers)
        assert (found.regret_p90, found.best_cut) == (0.0, 0.0)
        assert found.share < 1.0


def test_what_was_used_and_what_was_saved_are_all_of_it() -> None:
    """For every policy, with one worker and with several."""
    tapes = noisy()
    for policy in policies(tapes, target=float(np.median(tapes.finals))):
        for workers in (1, 4):
            played = play(tapes, policy, arrival_order(N, 1, 0), workers)
            saved = shortened(tapes, played)
            assert used(tapes, played)["clock"] + saved.sum() == total(tapes)["clock"]
            assert (saved >= 0).all()
            assert (played.seen >= 1).all()


def test_a_run_that_broke_down_is_never_chosen() -> None:
    """Not even for what it had reached, by no policy, at a stage before it broke down either: the best of the others is
    what is looked for, so that running all to their ends always finds it."""
    values = [np.full(POINTS, 5.0 + i) for i in range(N - 1)] + [np.array([1.0, 1.0, np.nan])]
    ends = [Ended.COMPLETE] * (N - 1) + [Ended.DIVERGED]
    tapes = to_tapes(curves(values, ended=ends))
    assert tapes.gap == (N - 2) / 2
    stage = Policy("before it broke down", Kind.STAGE, "", number=2)
    for policy in (stage, *policies(tapes)):
        for workers in (1, 2):
            assert play(tapes, policy, range(N), workers).selected == 0
    found = scored(tapes, NONE)
    assert (found.regret_p90, found.best_cut) == (0.0, 0.0)
    assert scored(tapes, stage).regret_p90 == 0.0
    saved = to_tapes(
        curves([np.full(POINTS, 5.0)] * (N - 1) + [np.array([1.0, 2.0, 2.0, 2.0, np.nan])], ended=ends)
    )
    patient = scored(saved, Policy("patience 2", Kind.WITHIN, "", patience=2))
    assert (patient.regret, patient.regret_p90) == (
        0.0,
        0.0,
    )  # it found 1, better than the best of those that last
    with pytest.raises(UserError, match="Every run broke down"):
        to_tapes(curves(values[-1:] * N, ended=ends[-1:] * N), grid=np.arange(1.0, POINTS))


def test_a_cut_that_costs_nothing_is_none() -> None:
    """Ended once it had shown its best, or another as good in its stead: the best run is not lost. Ended before, it
    is."""
    reached = [np.maximum(5.0 + i, 10.0 + i - np.arange(POINTS)) for i in range(N)]
    patient = scored(to_tapes(curves(reached)), Policy("patience 3", Kind.WITHIN, "", patience=3))
    assert patient.cut.min() == 1.0
    assert (patient.regret_p90, patient.best_cut) == (0.0, 0.0)
    tied = [np.maximum(1.0 if i < 6 else 2.0 + i, 30.0 - 2.0 * np.arange(POINTS)) for i in range(N)]
    stage = scored(to_tapes(curves(tied)), Policy("best at 25%", Kind.STAGE, "", number=5))
    assert 0.0 < stage.best_cut < 1.0
    went_on = 1.0 - stage.cut  # the share of orders in which each of them did
    assert stage.best_cut == pytest.approx(went_on[6:].sum())


def live(tapes: Tapes, pruner: BasePruner, order: Sequence[int]) -> list[tuple[int, TrialState]]:
    """What Optuna itself decides in a study that is asked, told and pruned as its manual shows."""
    study = optuna.create_study(study_name=STUDY_NAME, pruner=pruner)
    ended = []
    for run in order:
        tape, trial = tapes.runs[run], study.ask()
        for i, (number, value) in enumerate(zip(tape.numbers, tape.values, strict=True), start=1):
            trial.report(value, number)
            if i < len(tape) and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                ended.append((i, TrialState.PRUNED))
                break
        else:
            study.tell(trial, tape.final)
            ended.append((len(tape), TrialState.COMPLETE))
    return ended


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name", ["median", "percentile", "halving", "hyperband", "patient", "threshold", "wilcoxon"]
)
def test_a_live_study_decides_the_same(name: str, seed: int) -> None:
    """On the same curves in the same order every Optuna pruner ends every run at the same evaluation."""
    tapes = noisy(seed)
    policy = next(policy for policy in policies(tapes) if policy.name == name)
    answers: dict[tuple[int, ...], bool] = {}
    cut = 0
    for number in range(3):
        order = arrival_order(N, seed, number)
        played = play(tapes, policy, order, 1, answers)
        said = live(tapes, copy.deepcopy(policy.pruner or optuna.pruners.NopPruner()), order)
        assert [int(played.seen[run]) for run in order] == [seen for seen, _ in said]
        cut += sum(state is TrialState.PRUNED for _, state in said)
    assert cut > 0 or name == "patient"


def test_processes_and_seeds() -> None:
    """Which process plays an order changes nothing; another seed draws other orders."""
    tapes = noisy()
    chosen = [policy for policy in policies(tapes) if policy.name in ("median", "wilcoxon")]
    alone, together = (play_all(tapes, chosen, 4, [1, 2], 0, processes) for processes in (1, 2))
    for a, b in zip(alone, together, strict=True):
        assert (a.policy.name, a.workers) == (b.policy.name, b.workers)
        assert [p.seen.tolist() for p in a.played] == [p.seen.tolist() for p in b.played]
        assert [p.makespan for p in a.played] == [p.makespan for p in b.played]
    assert arrival_order(N, 0, 0) == arrival_order(N, 0, 0) != arrival_order(N, 1, 0)


def test_the_recommendation_follows_its_rule() -> None:
    """The smallest share whose regret is small; on curves that never cross that is an early stage, and where only the
    end tells it is no stopping at all."""
    tapes = parallel()
    scores = [
        scored(tapes, policy) for policy in policies(tapes) if policy.name != "wilcoxon"
    ]  # slow at ties
    chosen = recommended(tapes, scores)
    assert chosen.regret_p90 == 0.0
    assert chosen.share == min(s.share for s in scores if s.regret_p90_interval[1] == 0.0)
    assert chosen in front(scores)
    rng = np.random.default_rng(0)
    surprises = to_tapes(curves([np.append(rng.normal(size=POINTS) + 50.0, i) for i in range(N)]))
    names = ("none", "median", "halving", "best at 50%")
    said = [scored(surprises, policy) for policy in policies(surprises) if policy.name in names]
    assert recommended(surprises, said).policy is NONE


def test_early_looks_and_schedules() -> None:
    """Curves that never cross are ranked from the first look on; a run whose loss falls at its horizon alone is cut
    by who looks early, and that is said of its kind."""
    assert [look.rank_correlation for look in early_looks(parallel())] == pytest.approx([1.0] * 4)
    assert {look.best_rank for look in early_looks(parallel())} == {1}
    plain = [np.full(POINTS, 3.0 + i) for i in range(N - 3)]
    falling = [np.where(np.arange(POINTS) < POINTS - 1, 40.0 + i, 1.0) for i in range(3)]
    made = curves([*plain, *falling])
    tapes = to_tapes(made, schedules=["constant"] * (N - 3) + ["cosine"] * 3)
    (said,) = unfair(tapes, [scored(tapes, Policy("stage", Kind.STAGE, "", number=5))])
    assert said.with_horizon == 1.0 > said.without


def test_most_runs_may_break_down_at_once() -> None:
    """The median run is one of those that have a value, so that small regrets stay small."""
    values = [i + 10.0 * 0.8 ** np.arange(POINTS) for i in range(5)] + [np.array([np.nan])] * 7
    ended = [Ended.COMPLETE] * 5 + [Ended.DIVERGED] * 7
    tapes = to_tapes(curves(values, ended=ended))
    assert tapes.gap == pytest.approx(2.0)
    assert all(np.isfinite(policy.min_delta) for policy in policies(tapes, target=tapes.median))


def test_values_that_are_to_rise_are_told_as_they_were_recorded() -> None:
    """What is to be used elsewhere, a threshold and a target, is not the negated value."""
    held = curves([-(0.9 - 0.01 * i) * (1.0 - 0.8 ** np.arange(1, POINTS + 1)) for i in range(N)])
    told = {p.name: p.use for p in policies(to_tapes(replace(held, maximise=True)), target=-0.8)}
    assert told["threshold"].startswith("ThresholdPruner(lower=0.")
    assert told["capping"].endswith("target 0.8")


def test_more_workers_than_runs_are_as_many() -> None:
    """Those without a run have nothing to do, however many they are."""
    assert scored(parallel(), NONE, 2, workers=10**9).makespan == POINTS * 2.0


def test_an_interval_of_a_quantile_covers() -> None:
    """The 90th percentile of 200 draws lies in its interval in about 95 of 100 samples."""
    rng = np.random.default_rng(0)
    limits = [quantile_interval(np.sort(rng.random(200)), 0.9) for _ in range(400)]
    assert 0.92 <= np.mean([low <= 0.9 <= high for low, high in limits]) <= 0.99


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (curves([np.arange(5.0, 0.0, -1.0)] * 6, ended=[Ended.COMPLETE] * 5 + [Ended.CENSORED]), "cut short"),
        (curves([np.ones(9)] * 6 + [np.ones(4)]), "ends at 4 and others at 9"),
        (curves([np.ones(9)] * 3), "at least 5 runs"),
        (curves([np.ones(2)] * 8), "at least 3 evaluations"),
        (curves([np.array([np.nan])] * 8, ended=[Ended.DIVERGED] * 8), "at least 3 evaluations"),
    ],
)
def test_what_cant_be_replayed_is_refused(made: Curves, says: str) -> None:
    """One line each, with how a set is recorded where runs were cut."""
    with pytest.raises(UserError, match=says) as refused:
        to_tapes(made)
    assert "--pruner none" in str(refused.value) or "at least" in says


def test_runs_that_pass_over_grid_points_are_played_without_a_warning() -> None:
    """Wilcoxon's pruner warns of evaluations that the best run doesn't have: it is said of no look."""
    rng = np.random.default_rng(0)
    coarse, fine = np.arange(2.0, 41.0, 2.0), np.arange(1.0, 41.0)
    runs = [
        Recorded("made", str(i), clock, 9.0 / clock + rng.normal() + 0.1 * rng.normal(size=len(clock)))
        for i, clock in enumerate([coarse, fine] * 4)
    ]
    tapes = to_tapes(Curves(runs, "epochs", "loss"), grid=fine)
    chosen = [policy for policy in policies(tapes) if policy.name == "wilcoxon"]
    (orders,) = play_all(tapes, chosen, 5, [1], 0, 1)
    assert any((shortened(tapes, played) > 0).any() for played in orders.played)
