"""The rules end a trial where the loop that had them written out ended it, evaluation by evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from study.stopping.capping import Capping
from study.stopping.rules import Patience, Progress, Pruning, Rule, Target
from study.terms import Outcome

GRID = (100 * 1.2 ** np.arange(60)).astype(np.int64)


@dataclass
class Trial:
    """A made-up trial: its curve, what it is told, and what pruner and cap answer after so many questions."""

    numbers: list[int]
    losses: list[float]
    target: float | None
    patience: int
    kind: str  # capped, pruned or neither
    prunes_at: int
    caps: list[float | None]
    reports: list[int] = field(default_factory=list)
    asked: int = 0

    def report(self, loss: float, number: int) -> None:
        np.testing.assert_equal(loss, self.losses[self.numbers.index(number)])
        self.reports.append(number)

    def cap(self) -> float | None:
        return self.caps[min(self.asked, len(self.caps) - 1)]

    def should_prune(self) -> bool:
        """As Optuna's, which sees the last report."""
        self.asked += 1
        if self.kind == "capped":
            cap = self.cap()
            return cap is not None and bool(GRID[self.reports[-1]] > cap)
        return self.asked > self.prunes_at


def random_trial(seed: int) -> Trial:
    rng = np.random.default_rng(seed)
    numbers = np.flatnonzero(rng.random(len(GRID)) < rng.choice([0.1, 0.5, 1.0]))
    numbers = numbers if len(numbers) else np.array([3])
    losses = np.cumsum(rng.normal(-0.2, 1.0, len(numbers))) + 30
    losses[rng.random(len(losses)) < 0.05] = np.nan
    caps: list[float | None] = [None if rng.random() < 0.3 else float(rng.choice(GRID)) for _ in range(8)]
    return Trial(
        numbers=[int(number) for number in numbers],
        losses=[float(loss) for loss in losses],
        target=float(rng.normal(24, 4)) if rng.random() < 0.5 else None,
        patience=int(rng.choice([0, 3, 15])),
        kind=str(rng.choice(["capped", "pruned", "neither"])),
        prunes_at=int(rng.integers(0, 6)),
        caps=caps,
    )


def by_the_old_loop(trial: Trial) -> tuple[Outcome | None, int]:
    """The loop as it stood before there were rules, in its own words: the end, and the evaluation it is at."""
    next_report, best, best_number = 10, np.inf, -1
    cap = trial.cap() if trial.kind == "capped" else None
    for i, (number, loss) in enumerate(zip(trial.numbers, trial.losses, strict=True)):
        running = i < len(trial.numbers) - 1
        if loss < best:
            best, best_number = loss, number
        if trial.target is not None and loss <= trial.target:
            return Outcome.HIT, i
        since_best = number - (trial.numbers[0] if best_number < 0 else best_number)
        if running and trial.patience and since_best >= trial.patience:
            return Outcome.STOPPED, i
        beyond_cap = cap is not None and GRID[number] > cap
        if number >= next_report or beyond_cap:
            next_report = (number // 10 + 1) * 10
            trial.report(loss, number)
            if running and trial.kind != "neither":
                if trial.should_prune():
                    return Outcome.CAPPED if trial.kind == "capped" else Outcome.PRUNED, i
                cap = trial.cap() if trial.kind == "capped" else None
    return None, len(trial.numbers) - 1


def rules_of(trial: Trial) -> list[Rule]:
    rules: list[Rule] = []
    if trial.target is not None:
        rules.append(Target(trial.target))
    if trial.patience:
        rules.append(Patience(trial.patience))
    if trial.kind == "capped":
        rules.append(Capping(trial.report, trial.should_prune, GRID, trial.cap))
    else:
        rules.append(Pruning(trial.report, trial.should_prune if trial.kind == "pruned" else None))
    return rules


def by_the_rules(trial: Trial, cut: int | None = None) -> tuple[Outcome | None, int]:
    """The end by the rules; with `cut` new rules go on from there, as another worker's do."""
    progress, rules = Progress(), rules_of(trial)
    for i, (number, loss) in enumerate(zip(trial.numbers, trial.losses, strict=True)):
        if i == cut:
            progress, rules = Progress(), rules_of(trial)
            for before in range(i):
                progress.add(trial.numbers[before], trial.losses[before])
        progress.add(number, loss, over=i == len(trial.numbers) - 1)
        for rule in rules:
            ended = rule.ends(progress)
            if ended is not None:
                return ended, i
    return None, len(trial.numbers) - 1


def decided(how: Callable[[Trial], tuple[Outcome | None, int]], seed: int) -> tuple[object, ...]:
    trial = random_trial(seed)
    return *how(trial), trial.reports, trial.asked


def test_the_rules_decide_as_the_loop_did() -> None:
    """On 3,000 curves the same end at the same evaluation, after the same reports and the same questions."""
    ends = set()
    for seed in range(3_000):
        expected = decided(by_the_old_loop, seed)
        assert decided(by_the_rules, seed) == expected, seed
        ends.add(expected[0])
    assert ends == {None, Outcome.HIT, Outcome.STOPPED, Outcome.PRUNED, Outcome.CAPPED}


def test_resumed_rules_decide_as_uninterrupted_ones() -> None:
    """A trial that another worker goes on with ends where it would have ended; nothing is reported twice."""
    compared = 0
    for seed in range(1_000):
        trial = random_trial(seed)
        if trial.kind == "capped":  # what is known of others is read anew
            continue
        whole = decided(by_the_rules, seed)
        cut = int(np.random.default_rng(seed).integers(0, len(trial.numbers)))
        assert (*by_the_rules(trial, cut), trial.reports, trial.asked) == whole
        compared += 1
    assert compared > 400


@pytest.mark.parametrize("every", [1, 3, 10])
def test_reports_are_at_every_tenth_point(every: int) -> None:
    """Or at every n-th: the first evaluation at or past it, and where a step passes several, once."""
    reported: list[int] = []
    pruning = Pruning(lambda _, number: reported.append(number), None, every)
    progress = Progress()
    for number in (0, 1, 5, 11, 12, 29, 30, 47):
        progress.add(number, 1.0)
        assert pruning.ends(progress) is None
    assert (
        reported == {1: [1, 5, 11, 12, 29, 30, 47], 3: [5, 11, 12, 29, 30, 47], 10: [11, 29, 30, 47]}[every]
    )
