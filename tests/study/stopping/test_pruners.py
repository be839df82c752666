"""Adaptive capping never changes the winner, whoever runs what in which order; pruners are there by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from study.design.experiment import PrunerName
from study.protocol.assignment import tuning_hit
from study.statistics.curves import Curve, best_points, examples_to_target, tuning_score
from study.stopping.capping import CappingPruner
from study.stopping.pruners import build_pruner
from vae.grid import evaluation_grid

TAU = 1_000
GRID = evaluation_grid(TAU, ratio=1.5)


def hit_of(trial: FrozenTrial) -> float | None:
    """As workers hand it to the pruner of block 1."""
    return tuning_hit(trial.user_attrs, block=1)


class Tuning:
    """K learning curves of one arm and the target; examples (K, n) lie at or past the grid's points."""

    def __init__(self, examples: np.ndarray, losses: np.ndarray, target: float) -> None:
        self.examples, self.losses, self.target = examples, losses, target
        self.visited = [self._visited(k) for k in range(len(losses))]
        self.scores = [self.score(k, len(GRID)) for k in range(len(losses))]

    def _visited(self, k: int) -> list[int]:
        """The evaluations of trial k: a long step passes several grid points at once; NaN ends it."""
        points = np.flatnonzero(np.append(np.diff(self.examples[k]) > 0, True))
        bad = points[~np.isfinite(self.losses[k, points])]
        return [int(i) for i in points if not bad.size or i <= bad[0]]

    def curve(self, k: int, until: int) -> Curve:
        """Trial k up to evaluation `until`."""
        points = [i for i in self.visited[k] if i <= until]
        return Curve(self.examples[k, points], self.losses[k, points])

    def score(self, k: int, until: int) -> float:
        return tuning_score(self.curve(k, until), self.target, TAU)


def random_tuning(rng: np.random.Generator) -> Tuning:
    """Curves that fall, cross each other, rise again, diverge, hit late, early or never, and tie."""
    k, n = int(rng.integers(1, 7)), len(GRID)
    falls = rng.exponential(rng.choice([0.3, 1.0, 3.0]), (k, n)) * rng.choice(
        [0.0, 1.0], (k, n), p=[0.2, 0.8]
    )
    losses = rng.uniform(5, 30, (k, 1)) - np.cumsum(falls, axis=1) + rng.normal(0, rng.choice([0, 1]), (k, n))
    if k > 1 and rng.random() < 0.2:
        losses[rng.integers(k)] = losses[rng.integers(k)]
    target = float(rng.choice([np.quantile(losses, rng.uniform(0, 0.6)), losses[0, -1], -99.0]))
    for row in np.flatnonzero(rng.random(k) < 0.1):
        losses[row, rng.integers(n) :] = np.nan
    batch = int(rng.choice([1, 7, 50]))
    examples = np.maximum.accumulate(-(-GRID // batch) * batch * np.ones((k, 1)), axis=1)
    return Tuning(examples, losses, target)


def schedule(
    tuning: Tuning,
    rng: np.random.Generator,
    run_next: Callable[[int, int], bool],
    start: Callable[[int], None] = lambda k: None,  # noqa: ARG005
) -> None:
    """W workers take the trials in order and advance in random turns; `run_next(k, i)` is evaluation i of
    trial k and says whether the trial goes on."""
    waiting, running = list(range(len(tuning.losses)))[::-1], []
    workers = int(rng.integers(1, 5))
    while waiting or running:
        while waiting and len(running) < workers:
            k = waiting.pop()
            start(k)
            running.append((k, iter(tuning.visited[k])))
        turn = int(rng.integers(len(running)))
        k, points = running[turn]
        i = next(points, None)
        if i is None or not run_next(k, i):
            del running[turn]


def capped_scores(tuning: Tuning, rng: np.random.Generator, keep: int) -> tuple[list[float], list[int]]:
    """Scores with capping by the rule in words, NaN where capped, and the last evaluation of each trial."""
    hits: list[float] = []
    capped: set[int] = set()
    last = [-1] * len(tuning.losses)

    def run_next(k: int, i: int) -> bool:
        last[k] = i
        if tuning.losses[k, i] <= tuning.target:
            hits.append(tuning.scores[k] * TAU)
            return False
        if len(hits) >= keep and GRID[i] > sorted(hits)[keep - 1]:
            capped.add(k)
            return False
        return True

    schedule(tuning, rng, run_next)
    return [np.nan if k in capped else score for k, score in enumerate(tuning.scores)], last


def capped_by_optuna(tuning: Tuning, rng: np.random.Generator, keep: int) -> tuple[list[float], list[int]]:
    """The same with the pruner itself, through Optuna's ask, report, should_prune and tell."""
    study = optuna.create_study(pruner=CappingPruner(GRID, hit_of, keep))
    for index in range(len(tuning.losses)):
        study.enqueue_trial({}, user_attrs={"phase": "tune", "block": 1, "index": index})
    trials: list[optuna.Trial] = []
    scores, last = [float("nan")] * len(tuning.losses), [-1] * len(tuning.losses)

    def start(k: int) -> None:
        trials.append(study.ask())
        assert trials[k].user_attrs["index"] == k

    def run_next(k: int, i: int) -> bool:
        trial, loss = trials[k], float(tuning.losses[k, i])
        trial.report(loss, step=i)
        scores[k], last[k] = tuning.score(k, i), i
        points = tuning.curve(k, i)
        E, hit = examples_to_target(points.examples, points.valid_loss, tuning.target)
        if hit:
            trial.set_user_attr("examples_to_target", E)
            study.tell(trial, loss)
            return False
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            scores[k] = float("nan")
            return False
        if i == tuning.visited[k][-1]:
            state = TrialState.COMPLETE if np.isfinite(loss) else TrialState.PRUNED
            study.tell(trial, loss if np.isfinite(loss) else None, state)
        return True

    schedule(tuning, rng, run_next, start)
    return scores, last


@pytest.mark.parametrize("keep", [1, 2])
def test_capping_never_changes_the_best(keep: int) -> None:
    """Over 10,000 random sets of curves, run by one to four workers in random turns, the winner with capping, or
    the best two, are those without; and capping does save something."""
    capped = total = hit = 0
    for seed in range(10_000):
        rng = np.random.default_rng(seed)
        tuning = random_tuning(rng)
        scores, _ = capped_scores(tuning, rng, keep)
        assert best_points(scores, keep) == best_points(tuning.scores, keep), seed
        total += len(scores)
        capped += int(np.isnan(scores).sum())
        hit += sum(score < 2 for score in scores)
    assert 0.2 / keep < capped / total < 0.8
    assert hit > 5_000


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_the_pruner_is_that_rule(seed: int) -> None:
    """Driven through Optuna's own calls, the pruner stops the same trials at the same evaluations and so has
    the same winner."""
    tuning = random_tuning(np.random.default_rng(seed))
    keep = 1 + seed % 2
    by_rule = capped_scores(tuning, np.random.default_rng(seed), keep)
    by_optuna = capped_by_optuna(tuning, np.random.default_rng(seed), keep)
    np.testing.assert_array_equal(by_optuna[0], by_rule[0])
    assert by_optuna[1] == by_rule[1]
    assert best_points(by_optuna[0], keep) == best_points(tuning.scores, keep)


def study_with(*others: dict[str, Any], keep: int = 1) -> tuple[optuna.Study, optuna.Trial]:
    """A study in which other trials have ended, and a running tuning trial of block 1 at grid point 10."""
    study = optuna.create_study(pruner=CappingPruner(GRID, hit_of, keep))
    for attrs in others:
        state = attrs.pop("state", TrialState.COMPLETE)
        given = {"phase": "tune", "block": 1} | attrs
        value = 1.0 if state == TrialState.COMPLETE else None
        study.add_trial(optuna.trial.create_trial(state=state, value=value, user_attrs=given))
    study.enqueue_trial({}, user_attrs={"phase": "tune", "block": 1})
    trial = study.ask()
    trial.report(50.0, step=10)
    return study, trial


AT_10, AT_9 = float(GRID[10]), float(GRID[9])


@pytest.mark.parametrize(
    ("others", "pruned"),
    [
        ([], False),
        ([{"examples_to_target": AT_9}], True),
        (
            [{"examples_to_target": AT_10}],
            False,
        ),  # as far as the best needed: it could still tie, and come first
        ([{"examples_to_target": AT_10 + 1}], False),
        ([{"examples_to_target": AT_10 - 0.5}], True),
        ([{}], False),  # a miss caps nobody
        ([{"examples_to_target": AT_9, "block": 2}], False),
        ([{"examples_to_target": AT_9, "phase": "confirm"}], False),
        ([{"examples_to_target": AT_9, "state": TrialState.PRUNED}], False),
        ([{"examples_to_target": AT_9, "state": TrialState.FAIL}], False),
        ([{"examples_to_target": float(TAU)}, {"examples_to_target": AT_9}], True),
    ],
)
def test_who_caps_whom(others: list[dict[str, Any]], pruned: bool) -> None:
    """Only finished hits of the same arm, block and phase cap a trial, and only one that is beyond the best."""
    _, trial = study_with(*(dict(other) for other in others))
    assert trial.should_prune() == pruned


def test_the_best_two_cap() -> None:
    """Where two points go on, one hit caps nobody, and the second best of them caps."""
    hits = [{"examples_to_target": at} for at in (AT_9 - 1, AT_9, float(TAU))]
    assert [study_with(*map(dict, hits[:n]), keep=2)[1].should_prune() for n in (1, 2, 3)] == [
        False,
        True,
        True,
    ]
    assert not study_with(dict(hits[0]), dict(hits[2]), keep=2)[1].should_prune()


def test_a_trial_without_a_report_is_not_capped() -> None:
    """Before its first evaluation a trial has used nothing."""
    study, _ = study_with({"examples_to_target": 1.0})
    study.enqueue_trial({}, user_attrs={"phase": "tune", "block": 1})
    assert not study.ask().should_prune()


@pytest.mark.parametrize("name", get_args(PrunerName))
def test_every_named_pruner_is_one(name: str) -> None:
    """Each name gives a pruner that lets the best of twenty trials live, and all but "none" stop some other."""
    n = 30
    study = optuna.create_study(study_name="pruned", pruner=build_pruner(name, n))
    for k in [5, *range(20)]:
        trial = study.ask()
        for step in range(n):
            # The lower k, the lower its curve everywhere; those above 9 rise after a while.
            trial.report(k + 10.0 / (step + 1) + (0.5 * step if k > 9 else 0), step)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(k))
    states = [trial.state for trial in study.trials]
    assert study.best_value == 0.0
    assert (TrialState.PRUNED in states) == (name != "none")


def test_unknown_pruners_are_no_pruners() -> None:
    """A name that isn't one raises."""
    with pytest.raises(ValueError, match="no pruner 'asha'"):
        build_pruner("asha", 10)
