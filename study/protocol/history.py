"""What has been run of an experiment, read back from the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from study.design.experiment import Experiment
from study.design.workload import Workload
from study.protocol.assignment import Assignment
from study.statistics.curves import Curve
from study.store import records
from study.store.store import Store
from study.store.trials import Mark, Record, read_trials
from study.terms import Outcome, Phase, StudyName
from vae.errors import FailureError
from vae.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """One trial as the planner sees it; a figure that it doesn't have is NaN."""

    trial_id: int
    number: int
    study: str
    assignment: Assignment
    started: bool
    finished: bool
    params: dict[str, Any]
    recipe: Recipe | None
    """What was trained; None before it has been started."""
    outcome: Outcome | None
    hit: bool
    examples_to_target: float
    """tau on a miss."""
    score: float
    valid_loss: float
    best_loss: float
    test_loss: float
    examples: float
    """Examples seen when it ended."""
    reason: str | None
    """Why it failed; None where it didn't."""

    @property
    def arm(self) -> str:
        """The arm it belongs to."""
        return self.assignment.arm

    @property
    def phase(self) -> Phase:
        """What it is run for."""
        return self.assignment.phase

    @property
    def block(self) -> int:
        """Its block, from 1 on."""
        return self.assignment.block

    @property
    def index(self) -> int:
        """Which of its phase."""
        return self.assignment.index

    @property
    def failed(self) -> bool:
        """Whether it is over without a result: by an error, or ended from outside of this program."""
        return self.finished and self.outcome in (None, Outcome.FAILED)


class History:
    """What has been run of an experiment. With an `earlier` look at it, only what has changed since is read. Raises
    UserError and FailureError for what this program can't have written."""

    def __init__(
        self, store: Store, experiment: Experiment, workload: Workload, earlier: History | None = None
    ) -> None:
        self._store = store
        self.experiment = experiment
        self.workload = workload
        marks, records = read_trials(store, experiment.name, earlier._marks if earlier else {})
        self._marks: dict[int, Mark] = marks
        unchanged = marks.keys() - records.keys()
        self._runs: dict[int, Run | None] = {}  # None: of a foreign study that happens to be called NAME/...
        for trial_id, mark in marks.items():
            record = records.get(trial_id)
            if record is not None:
                self._runs[trial_id] = _read(trial_id, mark, record)
            elif earlier is not None:
                self._runs[trial_id] = earlier._runs[trial_id]
        curves: dict[int, Curve] = earlier._curves if earlier is not None else {}
        self._curves: dict[int, Curve] = {i: curve for i, curve in curves.items() if i in unchanged}
        self.runs = [run for run in self._runs.values() if run is not None]
        self.known = {(run.study, run.phase, run.index) for run in self.runs}
        self._of: dict[tuple[str, Phase], list[Run]] = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: run.index):
            self._of[run.arm, run.phase].append(run)

    def versions(self) -> list[dict[str, Any]]:
        """What its trials recorded of their versions and machine, each once."""
        return records.versions(self._store, self.experiment.name)

    def of(self, arm: str, phase: Phase, block: int | None = None) -> list[Run]:
        """Runs of an arm and phase by index."""
        runs = self._of.get((arm, phase), [])
        return [run for run in runs if block is None or run.block == block]

    def complete(self, arm: str, phase: Phase, block: int, n: int) -> list[Run] | None:
        """The n runs of a phase once all have ended; None before."""
        runs = self.of(arm, phase, block)[:n]
        return runs if len(runs) == n and all(run.finished for run in runs) else None

    def curves(self, runs: Sequence[Run]) -> list[Curve]:
        """The recorded curves of finished runs, in their order; read once."""
        missing = [run.trial_id for run in runs if run.trial_id not in self._curves]
        if missing:
            found = records.points(self._store, self.experiment.name, missing)
            for run in runs:
                if run.trial_id not in self._curves:
                    examples, losses = found.get(run.trial_id, records.Points([], []))
                    diverged = run.outcome == Outcome.DIVERGED
                    self._curves[run.trial_id] = Curve(np.array(examples), np.array(losses), diverged)
        return [self._curves[run.trial_id] for run in runs]


@dataclass(frozen=True)
class Confirmed:
    """An arm's finished runs of a phase, by seed index; every array is (S,)."""

    index: list[int]
    runs: list[Run]
    E: np.ndarray
    """Examples to target; tau on a miss."""
    hit: np.ndarray
    blocks: np.ndarray
    test: np.ndarray
    """Test loss at the hit, NaN without one."""


def confirmed(history: History, arm: str, phase: Phase) -> Confirmed:
    """What an arm's finished runs of a phase, which all have a target, took to reach it."""
    runs = [run for run in history.of(arm, phase) if run.outcome is not None]
    tau = float(history.workload.tau)
    return Confirmed(
        index=[run.index for run in runs],
        runs=runs,
        E=np.array([run.examples_to_target if run.hit else tau for run in runs], dtype=float),
        hit=np.array([run.hit for run in runs], dtype=bool),
        blocks=np.array([run.block for run in runs]),
        test=np.array([run.test_loss for run in runs], dtype=float),
    )


def joint(a: Confirmed, b: Confirmed) -> tuple[Confirmed, Confirmed]:
    """The two arms on the seeds that both have finished."""
    both = sorted(set(a.index) & set(b.index))

    def pick(c: Confirmed) -> Confirmed:
        at = [c.index.index(i) for i in both]
        return Confirmed(both, [c.runs[i] for i in at], c.E[at], c.hit[at], c.blocks[at], c.test[at])

    return pick(a), pick(b)


def _read(trial_id: int, mark: Mark, record: Record) -> Run | None:
    try:
        return _run(trial_id, mark, record)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FailureError(
            f"Trial {mark.number} of {mark.study} can't be read ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): another program has written there. Set it right, or take a copy "
            "of before."
        ) from None


def _run(trial_id: int, mark: Mark, record: Record) -> Run | None:
    name = StudyName.parse(mark.study)
    assignment = Assignment.from_attrs(record.attributes, name) if name is not None else None
    if assignment is None:
        return None
    return Run(
        trial_id=trial_id,
        number=mark.number,
        study=mark.study,
        assignment=assignment,
        started=mark.state != "WAITING",
        finished=mark.state in ("COMPLETE", "PRUNED", "FAIL") or mark.outcome is not None,
        params=record.params,
        recipe=Recipe.from_json(record.recipe) if record.recipe is not None else None,
        outcome=None if mark.outcome is None else Outcome(mark.outcome),
        hit=record.hit is True,
        examples_to_target=_number(record.examples_to_target),
        score=_number(record.score),
        valid_loss=_number(record.valid_loss),
        best_loss=_number(record.best_valid_loss),
        test_loss=_number(record.test_loss),
        examples=_number(record.examples),
        reason=record.reason,
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
