"""One trial: suggest a recipe, train it, report, prune, record, finish."""

from __future__ import annotations

import gc
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import torch
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from study.design.experiment import Experiment
from study.design.own import require_sources
from study.design.suggest import suggest
from study.protocol.assignment import EXAMPLES_TO_TARGET, Assignment, tuning_hit
from study.statistics.curves import Curve, examples_to_target, tuning_score
from study.stopping.capping import Capping, CappingPruner
from study.stopping.pruners import build_pruner
from study.stopping.rules import CUT, REPORT_EVERY, Patience, Progress, Pruning, Rule, Target, Until
from study.store import records
from study.store.artifacts import Artifacts
from study.store.claims import Claim
from study.store.locations import Location
from study.store.optuna_private import RememberingStudy
from study.store.store import Store
from study.terms import SEARCH, Outcome, Phase, StudyName
from study.workers.samplers import build_sampler
from study.workers.splits import Splits
from study.workers.worker import Interrupted
from vae.checkpoint import load_state, save_model, save_state, weights_of
from vae.data.dataset import Dataset
from vae.devices import machine
from vae.diagnosis import explain
from vae.errors import FailureError, UserError, out_of_memory
from vae.evaluation import Evaluation
from vae.grid import evaluation_grid
from vae.recipe import Recipe
from vae.states import require_like
from vae.training import Training, train

_log = logging.getLogger(__name__)

Train = Callable[[Recipe, Dataset, int, torch.device], Training]
Grid = Callable[[int], npt.NDArray[np.int64]]

#: Seconds between two writes of the curve's new rows: for those who watch, and all that a kill -9 can take of them.
RECORD_SECONDS = 1.0
SAVE_SECONDS = 10.0
#: Images of the test split that a hit is checked on.
TEST_IMAGES = 2_000


@dataclass(frozen=True)
class Trainer:
    """How trials are trained, and how often they are looked at and saved."""

    train: Train = train
    """Makes the training of a recipe, which evaluates on `grid(tau)`."""
    grid: Grid = evaluation_grid
    report_every: int = REPORT_EVERY
    """Grid points between two reports to Optuna."""
    explain: Callable[[Training, Sequence[Evaluation], Dataset, Callable[[], Training]], str] = explain
    """Says what went wrong in a training that diverged or collapsed, "" for others."""
    save_seconds: float = SAVE_SECONDS
    """Seconds between two saves of a running trial's state: what a kill -9 can cost."""


#: Phases of whose trials the best model of each study is kept: what may be used afterwards.
KEPT = frozenset((Phase.SEARCH, Phase.CONFIRM))


@dataclass
class _Curve:
    """The trial so far: the record, and what the rules for stopping look at."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    test_loss: float | None = None
    weights: dict[str, torch.Tensor] | None = None
    """Of a trial that may become the best of a phase in KEPT: the weights at its best evaluation."""
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        for row in self.rows:
            self.progress.add(row["number"], row["valid_loss"])

    def append(self, row: dict[str, Any], over: bool) -> bool:
        """Add a row of the curve, its last where `over`; whether its loss is the lowest so far."""
        self.rows.append(row)
        return self.progress.add(row["number"], row["valid_loss"], over)

    def points(self, outcome: Outcome) -> Curve:
        """The curve as the estimates want it."""
        examples, losses = ([row[column] for row in self.rows] for column in ("examples", "valid_loss"))
        diverged = outcome == Outcome.DIVERGED
        return Curve(np.array(examples, dtype=float), np.array(losses, dtype=float), diverged)


class Objective:
    """Runs claimed trials of one experiment in this process."""

    def __init__(
        self,
        store: Store,
        experiment: Experiment,
        splits: Splits,
        device: torch.device,
        artifacts: Artifacts,
        trainer: Trainer | None = None,
    ) -> None:
        self.store = store
        self.experiment = experiment
        self.splits = splits
        self.device = device
        self.artifacts = artifacts
        self.workload = experiment.workload(len(splits.first.train))
        self.trainer = trainer or Trainer()
        self.grid = self.trainer.grid(self.workload.tau)

    def make_study(self, study_name: str, sampler_seed: int) -> RememberingStudy:
        """The Optuna study with the sampler and pruner that its trials use."""
        name = StudyName.parse(study_name)
        assert name is not None
        search = self.experiment.search
        if name.arm == SEARCH:
            begun = records.progress(self.store, self.experiment.name)
            sampler = build_sampler(search.sampler, self.experiment.seed, sampler_seed, begun)
            pruner = build_pruner(search.pruner, len(self.grid))
        else:
            # The parameters of these trials were fixed when they were enqueued.
            sampler = optuna.samplers.RandomSampler(seed=sampler_seed)
            keep = max(1, self.experiment.finalists(name.arm))
            pruner = CappingPruner(self.grid, lambda trial: tuning_hit(trial.user_attrs, name.block), keep)
        return RememberingStudy(study_name, self.store.optuna, sampler=sampler, pruner=pruner)

    def run(self, claim: Claim, stop_requested: Callable[[], bool]) -> None:
        """Train the claimed trial to its end and finish it, or save it and raise Interrupted.

        Raises MemoryError, with what it was that didn't fit and its memory freed, where the device has too little.
        """
        try:
            self._run(claim, stop_requested)
            return
        except (MemoryError, RuntimeError) as error:
            reason = out_of_memory(error)
            if reason is None:
                raise
        # Only now, with the error gone, nothing holds the model any more.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise MemoryError(
            f"out of memory on {self.device}: {reason.rstrip('.')}. Fewer --workers or a smaller batch_size help."
        )

    def _run(self, claim: Claim, stop_requested: Callable[[], bool]) -> None:
        trial = claim.trial
        assert isinstance(trial.study, RememberingStudy)
        trial.study.forget()
        self._require_sources()
        told = self._assignment(claim)
        recipe = self._recipe(trial, told)
        data = self.splits.of(told.block)
        claim.describe(
            phase=str(told.phase),
            seed=recipe.seed,
            recipe=recipe.to_json(),
            data_fingerprint=data.fingerprint,
            device=str(self.device),
            versions=json.dumps(versions() | machine(self.device)),
            target=told.target,
        )
        self._show_recipe(trial, told, recipe)
        began = time.monotonic()
        training = self.trainer.train(recipe, data, self.workload.tau, self.device)
        curve = self._resume(claim, training)
        outcome = self._train(claim, told, training, data, curve, stop_requested)
        self._finish(claim, told, training, data, curve, outcome, time.monotonic() - began)

    def _require_sources(self) -> None:
        """Other code under the same name is no trial's fault: it ends the worker, and the trial is put back."""
        try:
            require_sources(self.experiment)
        except UserError as error:
            raise FailureError(str(error)) from None

    def _assignment(self, claim: Claim) -> Assignment:
        name = StudyName.parse(claim.study_name)
        told = None if name is None else Assignment.from_attrs(claim.trial.user_attrs, name)
        if told is None:
            raise UserError(f"trial {claim.number} of {claim.study_name} was enqueued by another program")
        return told

    def _recipe(self, trial: optuna.Trial, told: Assignment) -> Recipe:
        if told.phase == Phase.SEARCH:
            seed = self.experiment.seed_set(Phase.SEARCH, 1, trial.number)[0]
            return suggest(trial, self.experiment.search.space, self.experiment.recipe.replace(seed=seed))
        assert told.base is not None
        return suggest(trial, told.space, told.base.replace(seed=told.seed))

    def _show_recipe(self, trial: optuna.Trial, told: Assignment, recipe: Recipe) -> None:
        """In Optuna's dashboard the attribute `recipe` is what is trained. Trials that were enqueued before there
        was a `base` still hold their base there, which those who go on with them read: moved first."""
        trained = recipe.to_json()
        if trial.user_attrs.get("recipe") == trained:
            return
        if told.base is not None and "base" not in trial.user_attrs:
            trial.set_user_attr("base", told.base.to_json())
        if told.seed is None:
            trial.set_user_attr("seed", recipe.seed)
        trial.set_user_attr("recipe", trained)

    def _rules(self, claim: Claim, told: Assignment) -> list[Rule]:
        """What may end the trial before tau, in the order in which they are asked."""
        trial, search = claim.trial, self.experiment.search
        searching = told.phase == Phase.SEARCH
        rules: list[Rule] = []
        if told.target is not None and self._stops_at_target(told):
            rules.append(Target(told.target))
        if told.until is not None:
            rules.append(Until(int(np.searchsorted(self.grid, told.until))))
        if searching and search.patience:
            rules.append(Patience(search.patience))
        pruner = trial.study.pruner
        if told.capped:
            assert isinstance(pruner, CappingPruner)
            rules.append(
                Capping(
                    claim.report,
                    trial.should_prune,
                    self.grid,
                    lambda: pruner.cap(trial.study),
                    self.trainer.report_every,
                )
            )
        else:
            prunes = searching and not isinstance(pruner, NopPruner)
            should_prune = trial.should_prune if prunes else None
            rules.append(Pruning(claim.report, should_prune, self.trainer.report_every))
        return rules

    def _stops_at_target(self, told: Assignment) -> bool:
        if told.capped or told.phase == Phase.FINAL:
            return True
        if told.phase == Phase.CONFIRM and told.index < self.experiment.run_to_tau:
            return False
        return told.phase not in (Phase.SEARCH, Phase.GUIDED) and self.experiment.stop_at_target

    def _train(
        self,
        claim: Claim,
        told: Assignment,
        training: Training,
        data: Dataset,
        curve: _Curve,
        stop_requested: Callable[[], bool],
    ) -> Outcome:
        """Train and record until the training or a rule ends the trial; how it ended."""
        rules = self._rules(claim, told)
        # A model is kept only of a trial that beats all before it: below that its weights needn't be copied.
        to_beat = self._to_beat(told) if told.phase in KEPT else -math.inf
        saved = recorded = time.monotonic()

        for evaluation in training:
            row = evaluation.as_row()
            claim.append(row)
            running = training.outcome == "running"
            improved = curve.append(row, over=not running)
            if training.outcome == Outcome.DIVERGED:
                return Outcome.DIVERGED
            if improved and evaluation.valid_loss <= to_beat:
                curve.weights = weights_of(training)
            if told.target is not None and curve.test_loss is None and evaluation.valid_loss <= told.target:
                curve.test_loss = training.evaluate(data.test, TEST_IMAGES).loss
            for rule in rules:
                ended = rule.ends(curve.progress)
                if ended is not None:
                    return ended
            if running:
                if stop_requested():
                    self._save(claim, training, curve)
                    claim.release()
                    raise Interrupted
                now = time.monotonic()
                if now - saved > self.trainer.save_seconds:
                    self._save(claim, training, curve)
                    saved = recorded = now
                elif now - recorded > RECORD_SECONDS:
                    claim.record()
                    recorded = now
        return Outcome(training.outcome)

    def _finish(
        self,
        claim: Claim,
        told: Assignment,
        training: Training,
        data: Dataset,
        curve: _Curve,
        outcome: Outcome,
        wall_seconds: float,
    ) -> None:
        attributes = {"outcome": str(outcome), "seconds": round(training.train_seconds, 3)}
        why = self._why(training, data, curve, outcome)
        if why:
            attributes["reason"] = why
        scored: dict[str, Any] = {}
        if told.target is not None:
            points = curve.points(outcome)
            reached, hit = examples_to_target(points.examples, points.valid_loss, told.target)
            scored = {"hit": hit, "examples_to_target": reached if hit else float(self.workload.tau)}
            if outcome != Outcome.CAPPED:
                scored["score"] = tuning_score(points, told.target, self.workload.tau)
            if hit:
                # The capping pruner of other trials reads it.
                attributes[EXAMPLES_TO_TARGET] = float(reached)
        best = curve.progress.best
        value = best if math.isfinite(best) else None
        state = TrialState.PRUNED if outcome in CUT else TrialState.COMPLETE
        if told.phase in KEPT and state == TrialState.COMPLETE and value is not None:
            self._keep_if_best(claim, told, training, data, curve, value)
        claim.finish(
            state=state,
            value=value,
            outcome=str(outcome),
            attributes=attributes,
            valid_loss=curve.rows[-1]["valid_loss"],
            best_valid_loss=value,
            test_loss=curve.test_loss,
            examples=training.examples,
            steps=training.steps,
            train_seconds=training.train_seconds,
            wall_seconds=wall_seconds,
            reason=why or None,
            **scored,
        )
        self._state(claim).delete()

    def _why(self, training: Training, data: Dataset, curve: _Curve, outcome: Outcome) -> str:
        """What went wrong, in a line; "" where nothing did."""
        if outcome not in (Outcome.DIVERGED, Outcome.COLLAPSED):
            return ""
        rows = [
            Evaluation(**{name: row[name] for name in Evaluation.__dataclass_fields__}) for row in curve.rows
        ]
        train, tau = self.trainer.train, self.workload.tau
        return self.trainer.explain(
            training, rows, data, lambda: train(training.recipe, data, tau, self.device)
        )

    def _to_beat(self, told: Assignment) -> float:
        """The best value of the complete trials of its study and phase."""
        best = records.best_value(self.store, self.experiment.name, told.arm, told.block, told.phase)
        return math.inf if best is None else best

    def _keep_if_best(
        self, claim: Claim, told: Assignment, training: Training, data: Dataset, curve: _Curve, value: float
    ) -> None:
        if curve.weights is not None and value <= self._to_beat(told):
            best = min(curve.rows, key=lambda row: row["valid_loss"])
            metrics = {
                key: best[key] for key in ("examples", "valid_loss", "rate", "distortion", "active_units")
            }
            self.artifacts.model(claim.study_name, claim.number).save(
                lambda path: save_model(path, training, data, curve.weights, metrics)
            )

    def _state(self, claim: Claim) -> Location:
        return self.artifacts.state(claim.study_name, claim.number)

    def _save(self, claim: Claim, training: Training, curve: _Curve) -> None:
        # Rows first: a state must never be ahead of the record it continues.
        claim.record()
        extra = {"evaluations": len(curve.rows), "test_loss": curve.test_loss, "weights": curve.weights}
        self._state(claim).save(lambda path: save_state(path, training, **extra))

    def _resume(self, claim: Claim, training: Training) -> _Curve:
        """Continue a trial that another worker left, from its saved state; else start it again."""
        if claim.attempt == 1:
            return _Curve()
        saved = self._state(claim)
        try:
            with saved.local() as path:
                state = load_state(path)
            if state is not None:
                number, extra = state["training"].get("number"), state["extra"]
                require_like(number, 0, "number")
                _check_extra(extra, training)
                table = records.curves(self.store, self.experiment.name, [claim.trial_id])
                rows: list[dict[str, Any]] = table[table["number"] <= number].to_dict("records")
                if len(rows) != extra["evaluations"]:
                    raise ValueError("a state of another database's trial")
                training.load_state_dict(state["training"])  # the whole of it, or nothing
                claim.truncate(number)
                return _Curve(rows, extra["test_loss"], extra["weights"])
        except FailureError:
            raise  # the state may be well
        except (UserError, ValueError):
            # A damaged state, or one that doesn't fit: the trial runs again from its start, to the same curve.
            saved.delete()
        _log.warning(
            "trial %d of %s starts again: no state of it at %s", claim.number, claim.study_name, saved
        )
        claim.truncate(-1)
        return _Curve()


def _check_extra(extra: dict[str, Any], training: Training) -> None:
    """ValueError unless it is what `_save` puts beside a training's state."""
    like: dict[str, Any] = {"evaluations": 0, "test_loss": None, "weights": None}
    if extra.get("test_loss") is not None:
        like |= {"test_loss": 0.0}
    if extra.get("weights") is not None:
        like |= {"weights": training.model.state_dict()}
    require_like(extra, like, "extra")


@lru_cache
def versions() -> dict[str, str]:
    """Versions of what a curve depends on."""
    names = ("torch", "optuna", "numpy", "vae-study")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
