"""Where an experiment stands: what was planned, what has been run and what that says, in typed records alone. The
terminal's tables need no more, and start faster without pandas."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import geometric_mean
from typing import Any, Self

import numpy as np

from study.analysis.arm import family_of, sorted_arms
from study.analysis.comparison import Comparison, compare
from study.design.experiment import Experiment
from study.design.workload import Workload
from study.protocol.history import Run
from study.protocol.plan import describe_plan
from study.protocol.selection import State
from study.protocol.stored import stored
from study.store import records
from study.store.records import Timing
from study.store.store import Store
from study.terms import BASELINE, COMBINED, REFERENCE_ARMS, SEARCH, WITHOUT, Outcome, Phase


@dataclass(frozen=True)
class Standing:
    """One experiment, read and judged once a command. Its runs are those of the experiment's own arms."""

    store: Store = field(repr=False)
    name: str
    experiment: Experiment
    fingerprint: str
    kept_artifacts: Mapping[str, Any] | None
    """Which folder of files is the experiment's own, as its spec says."""
    state: State = field(repr=False)
    timings: Sequence[Timing] = field(repr=False)
    comparison: Comparison | None
    """None where no comparison was asked for."""

    @classmethod
    def read(cls, store: Store, name: str) -> Self:
        """Read an experiment and estimate its arms; nothing is written or trained. Raises UserError without one."""
        spec = stored(store, name)
        state = State(store, spec.experiment, spec.workload)
        timings = records.throughput(store, name)
        return cls(
            store=store,
            name=name,
            experiment=spec.experiment,
            fingerprint=spec.fingerprint,
            kept_artifacts=spec.artifacts,
            state=state,
            timings=timings,
            comparison=compare(state, timings) if spec.experiment.arms else None,
        )

    @property
    def workload(self) -> Workload:
        """What every arm shares."""
        return self.state.workload

    @property
    def arms(self) -> list[str]:
        """The comparison's arms in the order of the forest plot, the baseline first."""
        return [] if self.comparison is None else [arm.arm for arm in sorted_arms(self.comparison.arms)]

    def family(self, arm: str) -> str:
        """The arm's family; "baseline" or "reference" for what is no technique."""
        return family_of(self.experiment, arm)

    @cached_property
    def begun(self) -> list[Run]:
        """The runs that somebody has begun, those too that wait to be gone on with."""
        runs = (run for run in self.state.runs if is_own(self.experiment, run.arm))
        return [run for run in runs if run.recipe is not None or run.outcome is not None]

    @property
    def planned(self) -> dict[str, tuple[int, int]]:
        """phase -> (trials finished, trials planned), phases that are planned only, without what will never be run of
        arms whose tuning failed; the combine block once it is planned, for who is in it follows from the confirmation
        runs."""
        done = Counter(run.phase for run in self.begun if run.outcome is not None)
        plan = Counter(describe_plan(self.experiment))
        for arm, block in self._lost:
            plan[Phase.GUIDED] -= self.experiment.guided_points(arm)
            plan[Phase.CONFIRM] -= len(self.experiment.confirm_seeds(arm, block))
        planned = {phase: (done[Phase(phase)], n) for phase, n in plan.items() if n}
        if Phase.FINAL in planned:
            planned[Phase.FINAL] = self.state.reruns
        combined = sum(run.phase is Phase.COMBINE for run in self.state.runs)
        return planned | ({Phase.COMBINE: (done[Phase.COMBINE], combined)} if combined else {})

    @property
    def _lost(self) -> list[tuple[str, int]]:
        """(arm, block) of the techniques whose every tuning trial in the block failed: nothing more is run of them."""
        blocks = range(1, self.experiment.blocks + 1)
        return [(arm, b) for arm in self.experiment.arms for b in blocks if self.state.failed(arm, b)]

    @property
    def went_wrong(self) -> list[Run]:
        """The runs that diverged, collapsed or failed, and those that ended without a word of how."""
        bad = (Outcome.DIVERGED, Outcome.COLLAPSED, Outcome.FAILED)
        return [run for run in self.begun if run.outcome in bad or (run.finished and run.outcome is None)]

    @property
    def searched(self) -> list[Run]:
        """The joint search's runs that have ended, in the order of their trials."""
        ended = (run for run in self.begun if run.phase == Phase.SEARCH and run.outcome is not None)
        return sorted(ended, key=lambda run: run.number)

    @property
    def best_search(self) -> Run | None:
        """The joint search's best trial so far; None before one has ended well."""
        return self.state.search_best

    @cached_property
    def speeds(self) -> dict[str, float]:
        """Examples per second of the arms that were timed."""
        return speeds(self.timings)


def speeds(timings: Sequence[Timing]) -> dict[str, float]:
    """Examples per second of each arm that was timed, on one scale: the baseline's median speed over all timings
    times the arm's ratio to the baseline that ran beside it. Empty without timings."""
    if not timings:
        return {}
    baseline = float(np.median([timing.baseline_examples_per_second for timing in timings]))
    ratios: dict[str, list[float]] = defaultdict(list)
    for timing in timings:
        ratios[timing.arm].append(timing.examples_per_second / timing.baseline_examples_per_second)
    return {BASELINE: baseline} | {arm: baseline * geometric_mean(own) for arm, own in ratios.items()}


def is_own(experiment: Experiment, arm: str) -> bool:
    """Whether an arm is one of the experiment's: a foreign Optuna study may happen to be called NAME/ARM too."""
    known = (BASELINE, SEARCH, COMBINED, *REFERENCE_ARMS, *experiment.arms)
    return arm in known or arm.startswith(WITHOUT)
