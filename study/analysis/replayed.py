"""What stopping early would have saved and cost on recorded curves: read, played again, summed up, and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from study.analysis.judge_curves import on_one_scale
from study.analysis.words import number
from study.curves.recorded import Curves
from study.curves.stored import read_stored
from study.protocol.selection import State
from study.protocol.stored import stored
from study.replay.policies import policies
from study.replay.score import Early, Score, Unfair, early_looks, recommended, score, unfair
from study.replay.simulate import play_all, total
from study.replay.tapes import RECORD, Tapes, to_tapes
from study.stopping.rules import REPORT_EVERY
from study.store import records
from study.store.store import Store
from study.terms import Phase
from vae.errors import UserError
from vae.grid import evaluation_grid
from vae.recipe import Recipe

#: Phases whose trials may be complete; the rest end at a target by their nature.
PHASES = (Phase.SEARCH, Phase.CONFIRM, Phase.CALIBRATION)
#: Samplers that suggest from what was seen.
ADAPTIVE = ("tpe", "gp")


@dataclass(frozen=True)
class Recording:
    """A set of complete curves, and what is known of how it came about."""

    name: str
    curves: Curves
    tapes: Tapes
    exactness: str
    """Whether a replay is what would have happened, a sentence."""


@dataclass(frozen=True)
class Settings:
    """How a replay is played."""

    orders: int = 200
    workers: Sequence[int] = (1, 4)
    seed: int = 0
    tolerance: float = 0.05
    patience: Sequence[int] = ()
    min_delta: Sequence[float] = ()
    threshold: float | None = None
    target: float | None = None

    def require(self) -> None:
        """Raises UserError for what can't be played."""
        if self.orders < 1:
            raise UserError(f"--orders {self.orders}: at least one order of arrival is needed.")
        if not self.workers or min(self.workers) < 1:
            shown = ",".join(map(str, self.workers))
            raise UserError(f"--simulated-workers {shown}: write numbers from 1 up, such as 1,4.")
        if not 0.0 <= self.tolerance < 1.0:
            raise UserError(f"--tolerance {self.tolerance:g}: a share of the gap, from 0 to below 1.")
        if any(points < 1 for points in self.patience):
            raise UserError("--patience: numbers of evaluations from 1 up, such as 5,10.")
        if any(not 0.0 <= delta < np.inf for delta in self.min_delta):
            raise UserError("--min-delta: values from 0 up, such as 0,0.1.")
        for option, value in (("--target", self.target), ("--threshold", self.threshold)):
            if value is not None and not np.isfinite(value):
                raise UserError(f"{option} {value}: a finite value is needed.")


@dataclass(frozen=True)
class Replayed:
    """The answer."""

    recording: Recording
    settings: Settings
    scores: Sequence[Score]
    """Every policy with every number of workers."""
    looks: Sequence[Early]
    unfair: Sequence[Unfair]
    chosen: Score

    @property
    def tapes(self) -> Tapes:
        """The curves."""
        return self.recording.tapes

    @property
    def first_workers(self) -> int:
        """The number of workers that the recommendation is for: the first that was asked for."""
        return self.settings.workers[0]

    def with_workers(self, workers: int) -> list[Score]:
        """The policies with that many workers."""
        return [s for s in self.scores if s.workers == workers]


def recorded(store: Store, name: str, phase: str | None) -> Recording:
    """The complete curves of an experiment of ours: those of its search, or else of its confirmation runs.

    Raises UserError where there are none, or some were cut short."""
    experiment, workload = (spec := stored(store, name)).experiment, spec.workload
    if phase is not None and phase not in PHASES:
        raise UserError(f"--phase {phase}: choose {', '.join(PHASES)}.")
    trials = records.trials(store, name)
    ended = trials[trials["outcome"].notna()]
    there = [p for p in PHASES if (ended["phase"] == p).any()]
    wanted = Phase(phase) if phase is not None else there[0] if there else None
    if wanted is None or wanted not in there:
        raise UserError(f"'{name}' has no finished {phase or 'search or confirm'} trial. {RECORD}")
    curves = on_one_scale(read_stored(store, name, (wanted,)), State(store, experiment, workload))
    of_phase = ended[ended["phase"] == wanted].sort_values(["block", "number"], kind="stable")
    schedules = [
        "" if recipe is None else Recipe.from_json(recipe).lr_schedule
        for recipe in of_phase["recipe"].where(of_phase["recipe"].notna(), None)
    ]
    grid: npt.NDArray[np.float64] = evaluation_grid(workload.tau).astype(np.float64)
    adaptive = wanted is Phase.SEARCH and experiment.search.sampler in ADAPTIVE
    exactness = (
        f"Off-policy: {experiment.search.sampler} suggested these points from complete curves, and would "
        "have suggested "
        "others had some been cut; the orders of arrival are not those it would have had."
        if adaptive
        else "Exact: these runs were drawn before any of them was seen, so each order could have been the "
        "one that came."
    )
    return Recording(
        name, curves, to_tapes(curves, grid=grid, every=REPORT_EVERY, schedules=schedules), exactness
    )


def from_curves(name: str, curves: Curves, every: int) -> Recording:
    """Curves from elsewhere, reported to pruners every so many evaluations. Raises UserError."""
    if every < 1:
        raise UserError(f"--every {every}: evaluations between two reports, from 1 up.")
    exactness = (
        "Exact if these runs' settings were drawn beforehand (at random, on a grid, by hand); off-policy if a sampler "
        "such as TPE suggested later ones from earlier ones."
    )
    return Recording(name, curves, to_tapes(curves, every=every), exactness)


def replay(recording: Recording, settings: Settings, processes: int) -> Replayed:
    """Play every policy over every order. Raises UserError."""
    settings.require()
    tapes = recording.tapes
    if settings.target is not None and not (tapes.finals <= settings.target).any():
        raise UserError(
            f"--target {tapes.shown(settings.target):g}: no run reaches it; the best has "
            f"{tapes.shown(float(tapes.finals.min())):.6g}."
        )
    chosen = policies(
        tapes,
        patience=settings.patience,
        min_delta=settings.min_delta,
        threshold=settings.threshold,
        target=tapes.median if settings.target is None else settings.target,
    )
    workers = list(dict.fromkeys(settings.workers))
    played = play_all(tapes, chosen, settings.orders, workers, settings.seed, processes)
    scores = [score(tapes, orders) for orders in played]
    first = [s for s in scores if s.workers == workers[0]]
    return Replayed(
        recording=recording,
        settings=settings,
        scores=scores,
        looks=early_looks(tapes),
        unfair=unfair(tapes, first),
        chosen=recommended(tapes, first, settings.tolerance),
    )


def sentences(found: Replayed) -> list[str]:
    """The recommendation, its rule, and what it was found on."""
    tapes, s, tolerance = found.tapes, found.chosen, found.settings.tolerance
    rule = (
        f"The rule: of the policies whose regret is small (the upper limit of its 90th percentile at most "
        f"{tolerance:.0%} "
        f"of the gap between the best run and the median one, {number(tapes.gap)}), the one that uses least."
    )
    if s.share == 1.0:
        first = "No way of stopping early is worth its risk here: run all to their ends."
    else:
        how = f"{s.policy.name} ({s.policy.use})"
        first = (
            f"Use {how}: it would have used {s.share:.0%} of the {tapes.clock} and {s.seconds_share:.0%} of "
            "the seconds; "
            f"in nine of ten orders what it found is within {number(s.regret_p90)} of the best run, and in "
            f"{s.best_cut:.0%} of them it cut that one and found a worse."
        )
    what = total(tapes)
    seconds = f", {what['seconds']:,.0f} seconds" if tapes.timed else ""
    basis = (
        f"{len(tapes.runs)} complete runs ({what['clock']:,.0f} {tapes.clock}{seconds}) in {s.orders} random orders of "
        f"arrival; best {number(tapes.shown(float(tapes.finals.min())))}, median {number(tapes.shown(tapes.median))}."
    )
    return [first, rule, basis]


def notes(found: Replayed) -> list[str]:
    """What to mind about it, the weightiest first."""
    tapes = found.tapes
    said = [found.recording.exactness]
    said.append(
        "Intervals are over orders of arrival of these same runs: another set of runs would differ by more "
        "than they say."
    )
    horizon = sum(tape.has_horizon for tape in tapes.runs)
    if horizon:
        worst = max((u for u in found.unfair), key=lambda u: u.with_horizon - u.without, default=None)
        told = (
            f": {worst.policy} cuts {worst.with_horizon:.0%} of the good ones among them, and "
            f"{worst.without:.0%} of the "
            "other good ones"
            if worst is not None and worst.with_horizon > worst.without
            else ""
        )
        said.append(
            f"{horizon} of {len(tapes.runs)} runs have a learning rate that falls towards a horizon: their "
            "loss falls late, "
            f"and who looks early cuts them unfairly{told}."
        )
    broken = sum(tape.diverged for tape in tapes.runs)
    if broken:
        said.append(
            f"{broken} runs broke down by themselves: none of them is a choice; what they used is counted as it was."
        )
    if tapes.failed:
        said.append(f"{tapes.failed} runs without an evaluation were left out.")
    if not tapes.timed:
        said.append(f"Seconds were not recorded in every run: {tapes.clock} stand in for them.")
    said.append(
        "threshold is set by hindsight, from these curves; capping asks another question (which run is first at the "
        "target), ends runs there, and has its regret on the clock."
    )
    return said
