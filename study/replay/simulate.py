"""One study played again: runs arrive in an order, simulated workers take them, and the real rules end them."""

from __future__ import annotations

import copy
import heapq
import math
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from study.replay.policies import Kind, Policy, to_target
from study.replay.tapes import Tape, Tapes
from study.stopping.capping import Capping, CappingPruner
from study.stopping.rules import CUT, Patience, Progress, Pruning, Rule, Target, Until
from study.terms import Outcome

#: What the studies that are played again are called: Hyperband draws its brackets from it.
STUDY_NAME = "replay"
_RUN, _TO_TARGET = "run", "to_target"


@dataclass(frozen=True, eq=False)
class Played:
    """One order of n runs under one policy with some number of workers."""

    seen: npt.NDArray[np.int64]
    """(n,) evaluations of each run, in the tapes' order."""
    selected: int
    """The run that is chosen in the end."""
    found: float
    """What it has reached: its lowest value seen, or the clock at the target for a policy that selects by that."""
    makespan: float
    """Seconds until the last worker is done."""


def play(
    tapes: Tapes,
    policy: Policy,
    order: Sequence[int],
    workers: int,
    answers: dict[tuple[int, ...], bool] | None = None,
) -> Played:
    """Play the runs again in `order` (n,), with that many asynchronous workers on the recorded seconds.

    A worker takes the next run when it has ended one; evaluations are met in the order of their time. `answers` keeps
    what a pruner that looks at the best run alone has answered, from one order to the next."""
    table = _Table(tapes, policy, {} if answers is None else answers)
    makespan = _schedule(order, workers, table)
    seen = np.array([table.seen[i] for i in range(len(tapes.runs))], dtype=np.int64)

    def found(run: int) -> float:
        return tapes.runs[run].best_after(int(seen[run]))

    if policy.kind is Kind.STAGE:
        # All have come as far as the stage; the best of them then runs to its end, alone.
        further = min(order, key=found)
        tape = tapes.runs[further]
        makespan += float(tape.seconds[-1] - tape.seconds[seen[further] - 1])
        seen[further] = len(tape)
        chosen = min(order, key=found)  # another where it broke down on the way
        return Played(seen, chosen, found(chosen), makespan)
    if policy.kind is Kind.TARGET:
        hits = {i: table.hits[i] for i in order if i in table.hits}
        chosen = min(hits, key=hits.__getitem__, default=order[0])
        return Played(seen, chosen, hits.get(chosen, math.inf), makespan)
    # As Optuna does: the best of those that were not cut; the best of all where every one was.
    candidates = [i for i in order if i in table.complete] or list(order)
    chosen = min(candidates, key=found)
    return Played(seen, chosen, found(chosen), makespan)


@dataclass(frozen=True)
class Orders:
    """One policy with some number of workers over many orders."""

    policy: Policy
    workers: int
    played: Sequence[Played]


def play_all(
    tapes: Tapes, policies: Sequence[Policy], n_orders: int, workers: Sequence[int], seed: int, processes: int
) -> list[Orders]:
    """Every policy with every number of workers over the same `n_orders` random orders, which `seed` draws; in so many
    processes. Which process plays what changes nothing."""
    shares = [range(start, n_orders, processes) for start in range(min(processes, n_orders))]
    jobs = [(tapes, policies, list(share), workers, seed) for share in shares]
    if len(jobs) == 1:
        parts = [_share(*jobs[0])]
    else:
        # A fresh process each: forking one that has threads is not safe.
        with ProcessPoolExecutor(len(jobs), mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(_share, *zip(*jobs, strict=True)))
    found: list[Orders] = []
    for policy in policies:
        for count in workers:
            by_order = {
                i: part[policy.name, count, i]
                for part, share in zip(parts, shares, strict=True)
                for i in share
            }
            found.append(Orders(policy, count, [by_order[i] for i in range(n_orders)]))
    return found


def arrival_order(n_runs: int, seed: int, number: int) -> list[int]:
    """The order of that number: a permutation of the runs."""
    return [int(i) for i in np.random.default_rng([seed, number]).permutation(n_runs)]


def _share(
    tapes: Tapes, policies: Sequence[Policy], orders: Sequence[int], workers: Sequence[int], seed: int
) -> dict[tuple[str, int, int], Played]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        # Large batches pass over grid points, and a run may break down: both are said of the curves, not of each look.
        warnings.filterwarnings("ignore", "WilcoxonPruner finds steps", UserWarning)
        warnings.filterwarnings("ignore", "The intermediate values of the", UserWarning)
        return _played(tapes, policies, orders, workers, seed)


def _played(
    tapes: Tapes, policies: Sequence[Policy], orders: Sequence[int], workers: Sequence[int], seed: int
) -> dict[tuple[str, int, int], Played]:
    found = {}
    for policy in policies:
        answers: dict[tuple[int, ...], bool] = {}
        for number in orders:
            order = arrival_order(len(tapes.runs), seed, number)
            for count in workers:
                found[policy.name, count, number] = play(tapes, policy, order, count, answers)
    return found


class _Storage(InMemoryStorage):
    """Optuna's storage of one study, whose reports are added in place and whose trials are given out without a copy:
    pruners only look, and copies were nine tenths of a replay."""

    def __init__(self) -> None:
        super().__init__()
        self.trials: list[FrozenTrial] = []
        self.complete: list[FrozenTrial] = []
        self.best: FrozenTrial | None = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self.trials.append(self.get_trial(trial_id))
        return trial_id

    def finish(self, trial: FrozenTrial, state: TrialState, value: float | None) -> None:
        """End a trial; its value counts where it is complete."""
        if state is TrialState.COMPLETE and value is not None:
            trial.value = value
            self.complete.append(trial)
            if self.best is None or self.best.value is None or value < self.best.value:
                self.best = trial
        trial.state = state

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if deepcopy:
            return super().get_all_trials(study_id, deepcopy, states)
        if states is None:
            return list(self.trials)
        if states == (TrialState.COMPLETE,):
            return self.complete
        return [trial for trial in self.trials if trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        # A new object in its place, as Optuna's own: who has read the trials before doesn't see it.
        trial = copy.copy(self.trials[trial_id])
        trial.system_attrs = trial.system_attrs | {key: value}
        self.trials[trial_id] = trial

    def get_best_trial(self, study_id: int) -> FrozenTrial:  # noqa: ARG002
        if self.best is None:
            raise ValueError("No trials are completed yet.")
        return self.best


@dataclass
class _Running:
    """A run on a worker."""

    run: int
    number: int
    """Of its trial: when it arrived."""
    rules: Sequence[Rule]
    progress: Progress
    began: float
    seen: int = 0


@dataclass
class _Table:
    """What the runs of one order share: the study, its pruner, and what has ended."""

    tapes: Tapes
    policy: Policy
    answers: dict[tuple[int, ...], bool]
    seen: dict[int, int] = field(default_factory=dict)
    complete: set[int] = field(default_factory=set)
    hits: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.storage = _Storage()
        self.study_id = self.storage.create_new_study([StudyDirection.MINIMIZE], STUDY_NAME)
        self.pruner = self._pruner()
        self.study = Study(STUDY_NAME, self.storage, pruner=self.pruner)

    def _pruner(self) -> BasePruner:
        if self.policy.kind is Kind.TARGET:
            return CappingPruner(
                self.tapes.grid.astype(np.int64), lambda trial: trial.user_attrs.get(_TO_TARGET)
            )
        return NopPruner() if self.policy.pruner is None else copy.deepcopy(self.policy.pruner)

    def start(self, run: int, began: float) -> _Running:
        """Give a run to a worker."""
        number = self.storage.create_new_trial(self.study_id)
        self.storage.trials[number].user_attrs[_RUN] = run
        progress = Progress(min_delta=self.policy.min_delta)
        return _Running(run, number, self._rules(number), progress, began)

    def _rules(self, number: int) -> list[Rule]:
        policy, pruner, every = self.policy, self.pruner, self.tapes.every
        trials = self.storage.trials

        def report(value: float, step: int) -> None:
            trials[number].intermediate_values[step] = value

        if policy.kind is Kind.STAGE:
            return [Until(policy.number)]
        if policy.kind is Kind.WITHIN:
            return [Patience(policy.patience)]
        if policy.target is not None:
            assert isinstance(pruner, CappingPruner)
            capping = Capping(
                report,
                lambda: pruner.prune(self.study, trials[number]),
                self.tapes.grid.astype(np.int64),
                lambda: pruner.cap(self.study),
                every,
            )
            return [Target(policy.target), capping]
        return [
            Pruning(report, None if policy.kind is Kind.NONE else lambda: self._prunes(trials[number]), every)
        ]

    def _prunes(self, trial: FrozenTrial) -> bool:
        if not self.policy.by_best:
            return self.pruner.prune(self.study, trial)
        best = -1 if self.storage.best is None else self.storage.best.user_attrs[_RUN]
        question = best, trial.user_attrs[_RUN], len(trial.intermediate_values)
        if question not in self.answers:
            self.answers[question] = self.pruner.prune(self.study, trial)
        return self.answers[question]

    def step(self, running: _Running) -> bool:
        """The run's next evaluation; whether it ends with it."""
        tape = self.tapes.runs[running.run]
        i = running.seen
        running.seen += 1
        over = running.seen == len(tape)
        running.progress.add(tape.numbers[i], tape.values[i], over)
        outcome = None
        if over and tape.diverged:
            outcome = Outcome.DIVERGED
        else:
            for rule in running.rules:
                outcome = rule.ends(running.progress)
                if outcome is not None:
                    break
        if outcome is None and not over:
            return False
        self._end(running, tape, outcome or Outcome.COMPLETED)
        return True

    def _end(self, running: _Running, tape: Tape, outcome: Outcome) -> None:
        self.seen[running.run] = running.seen
        best = running.progress.best
        if outcome is Outcome.HIT and self.policy.target is not None:
            reached = to_target(tape, self.policy.target)
            assert reached is not None
            self.hits[running.run] = self.storage.trials[running.number].user_attrs[_TO_TARGET] = reached
        state = TrialState.PRUNED if outcome in CUT else TrialState.COMPLETE
        if not math.isfinite(best):
            state = TrialState.FAIL
        if state is TrialState.COMPLETE:
            self.complete.add(running.run)
        self.storage.finish(self.storage.trials[running.number], state, best)


def _schedule(order: Sequence[int], workers: int, table: _Table) -> float:
    """Let the workers take the runs in order, one evaluation after the other by time; when the last is done."""
    tapes = table.tapes.runs
    waiting: Iterator[int] = iter(order)
    events: list[tuple[float, int, _Running]] = []

    def begin(now: float) -> None:
        run = next(waiting, None)
        if run is not None:
            running = table.start(run, now)
            heapq.heappush(events, (now + float(tapes[run].seconds[0]), running.number, running))

    for _ in range(min(workers, len(order))):
        begin(0.0)
    now = 0.0
    while events:
        # Equal times by arrival, so that one order has one course.
        now, number, running = heapq.heappop(events)
        if table.step(running):
            begin(now)
        else:
            due = running.began + float(tapes[running.run].seconds[running.seen])
            heapq.heappush(events, (due, number, running))
    return now


def used(tapes: Tapes, played: Played) -> Mapping[str, float]:
    """What one order has cost: `clock` and `seconds`, summed over the runs."""
    pairs = list(zip(tapes.runs, played.seen, strict=True))
    return {
        "clock": math.fsum(float(tape.clock[k - 1]) for tape, k in pairs),
        "seconds": math.fsum(float(tape.seconds[k - 1]) for tape, k in pairs),
    }


def total(tapes: Tapes) -> Mapping[str, float]:
    """What all runs cost to their ends."""
    return {
        "clock": math.fsum(float(tape.clock[-1]) for tape in tapes.runs),
        "seconds": math.fsum(float(tape.seconds[-1]) for tape in tapes.runs),
    }
