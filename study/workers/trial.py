"""One trial: suggest a recipe, train it, report, prune, record, finish."""

from __future__ import annotations

import gc
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from study.design.experiment import Experiment
from study.design.space import Dimension, suggest
from study.statistics.curves import Curve, examples_to_target, tuning_score
from study.stopping.pruners import CappingPruner, build_pruner, quiet_about_experiments
from study.store import records
from study.store.claims import Claim
from study.store.optuna_private import RememberingStudy
from study.store.store import Store
from study.terms import Phase
from study.workers.worker import Interrupted
from vae.checkpoint import load_state, save_model, save_state, weights_of
from vae.data.dataset import Dataset
from vae.errors import UserError
from vae.grid import evaluation_grid
from vae.recipe import Recipe
from vae.training import Training, train

#: Optuna gets a report at every tenth grid point; the curve table has every point.
REPORT_EVERY = 10
#: Seconds between two writes of the curve's new rows: for those who watch, and all that a kill -9 can take of them.
RECORD_SECONDS = 1.0
#: Seconds between two saves of a running trial's state: what a kill -9 can cost.
SAVE_SECONDS = 10.0
#: Images of the test split that a hit is checked on.
TEST_IMAGES = 2_000


@dataclass
class _Curve:
    """The trial so far: the record, and what the rules for stopping need of it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    test_loss: float | None = None
    weights: dict[str, torch.Tensor] | None = None
    """Of a search trial that may become the study's best: the weights at its best evaluation."""
    best: float = math.inf
    """Lowest finite validation loss, whose first grid point is `best_number`; infinite before one."""
    best_number: int = -1

    def __post_init__(self) -> None:
        for row in self.rows:
            self._look(row)

    def append(self, row: dict[str, Any]) -> bool:
        """Add a row of the curve; whether its loss is the lowest so far."""
        self.rows.append(row)
        return self._look(row)

    def _look(self, row: dict[str, Any]) -> bool:
        if not row["valid_loss"] < self.best:  # NaN is lower than nothing
            return False
        self.best, self.best_number = row["valid_loss"], row["number"]
        return True

    def since_best(self) -> int:
        """Grid points since the best validation loss, or since the start where none is finite."""
        first = self.rows[0]["number"] if self.best_number < 0 else self.best_number
        return int(self.rows[-1]["number"] - first)


class Objective:
    """Runs claimed trials of one experiment in this process."""

    def __init__(
        self, store: Store, experiment: Experiment, data: Dataset, device: torch.device, artifacts: Path
    ) -> None:
        self.store = store
        self.experiment = experiment
        self.data = data
        self.device = device
        self.artifacts = artifacts
        self.workload = experiment.workload(len(data.train))
        self.grid = evaluation_grid(self.workload.tau)

    def make_study(self, study_name: str, sampler_seed: int) -> RememberingStudy:
        """The Optuna study with the sampler and pruner that its trials use."""
        search = self.experiment.search
        arm = study_name.split("/")[1]
        if arm == "search":
            sampler = build_sampler(search.sampler, sampler_seed)
            pruner = build_pruner(search.pruner, len(self.grid))
        else:
            # The parameters of these trials were fixed when they were enqueued.
            sampler = optuna.samplers.RandomSampler(seed=sampler_seed)
            pruner = CappingPruner(self.grid, keep=max(1, self.experiment.finalists(arm)))
        return RememberingStudy(study_name, self.store.optuna, sampler=sampler, pruner=pruner)

    def run(self, claim: Claim, stop_requested: Callable[[], bool]) -> None:
        """Train the claimed trial to its end and finish it, or save it and raise Interrupted.

        Raises MemoryError, with what it was that didn't fit and its memory freed, where the device has too little.
        """
        try:
            self._run(claim, stop_requested)
            return
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Only now, with the error gone, nothing holds the model any more.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise MemoryError(
            f"out of memory on {self.device}: {reason.rstrip('.')}. Fewer --workers or a smaller batch_size help."
        )

    def _run(self, claim: Claim, stop_requested: Callable[[], bool]) -> None:
        trial, attrs = claim.trial, claim.trial.user_attrs
        phase, target = attrs["phase"], attrs.get("target")
        assert isinstance(trial.study, RememberingStudy)
        trial.study.forget()
        recipe = self._recipe(trial)
        claim.describe(
            phase=phase,
            seed=recipe.seed,
            recipe=recipe.to_json(),
            data_fingerprint=self.data.fingerprint,
            device=str(self.device),
            versions=json.dumps(versions()),
            target=target,
        )
        began = time.monotonic()
        training = train(recipe, self.data, self.workload.tau, self.device)
        curve = self._resume(claim, training)
        state, outcome = self._train(claim, training, curve, stop_requested)
        self._finish(claim, training, curve, state, outcome, time.monotonic() - began)

    def _recipe(self, trial: optuna.Trial) -> Recipe:
        attrs = trial.user_attrs
        if attrs["phase"] == "search":
            base = self.experiment.recipe.replace(
                seed=self.experiment.seed_set(Phase.SEARCH, 1, trial.number)[0]
            )
            return suggest(trial, self.experiment.search.space, base)
        base = Recipe.from_json(attrs["recipe"]).replace(seed=attrs["seed"])
        return suggest(trial, {f: Dimension.model_validate(d) for f, d in attrs["space"].items()}, base)

    def _train(
        self, claim: Claim, training: Training, curve: _Curve, stop_requested: Callable[[], bool]
    ) -> tuple[TrialState, str]:
        """Train, record and apply the trial's stopping rules; the Optuna state and the outcome's name."""
        trial, attrs = claim.trial, claim.trial.user_attrs
        phase, target = attrs["phase"], attrs.get("target")
        capped = attrs.get("capped", False)
        stops_at_target = capped or phase == "final" or (phase != "search" and self.experiment.stop_at_target)
        patience = self.experiment.search.patience if phase == "search" else 0
        cap = self._cap(trial) if capped else None
        next_report = (
            (curve.rows[-1]["number"] // REPORT_EVERY + 1) * REPORT_EVERY if curve.rows else REPORT_EVERY
        )
        prunes = phase == "search" and not isinstance(trial.study.pruner, NopPruner)
        # A model is kept only of a trial that beats all before it: below that its weights needn't be copied.
        to_beat = self._to_beat(trial) if phase == "search" else math.inf
        saved = recorded = time.monotonic()

        for evaluation in training:
            row = evaluation.as_row()
            claim.append(row)
            improved = curve.append(row)
            if training.outcome == "diverged":
                return TrialState.PRUNED, "diverged"
            if phase == "search" and improved and evaluation.valid_loss <= to_beat:
                curve.weights = weights_of(training)
            if target is not None and curve.test_loss is None and evaluation.valid_loss <= target:
                curve.test_loss = training.evaluate(self.data.test, TEST_IMAGES).loss
                if stops_at_target:
                    return TrialState.COMPLETE, "hit"
            if patience and curve.since_best() >= patience:
                return TrialState.COMPLETE, "stopped"
            beyond_cap = cap is not None and self.grid[evaluation.number] > cap
            if evaluation.number >= next_report or beyond_cap:
                next_report = (evaluation.number // REPORT_EVERY + 1) * REPORT_EVERY
                claim.report(evaluation.valid_loss, evaluation.number)
                if training.outcome == "running" and (prunes or capped):
                    if trial.should_prune():
                        return TrialState.PRUNED, "capped" if capped else "pruned"
                    cap = self._cap(trial) if capped else None
            if training.outcome == "running":
                if stop_requested():
                    self._save(claim, training, curve)
                    claim.release()
                    raise Interrupted
                now = time.monotonic()
                if now - saved > SAVE_SECONDS:
                    self._save(claim, training, curve)
                    saved = recorded = now
                elif now - recorded > RECORD_SECONDS:
                    claim.record()
                    recorded = now
        return TrialState.COMPLETE, training.outcome

    def _cap(self, trial: optuna.Trial) -> float | None:
        pruner = trial.study.pruner
        assert isinstance(pruner, CappingPruner)
        return pruner.cap(trial.study, trial.user_attrs["block"])

    def _finish(
        self,
        claim: Claim,
        training: Training,
        curve: _Curve,
        state: TrialState,
        outcome: str,
        wall_seconds: float,
    ) -> None:
        trial, attrs = claim.trial, claim.trial.user_attrs
        target = attrs.get("target")
        last = curve.rows[-1]
        scored: dict[str, Any] = {}
        if target is not None:
            points = Curve(
                np.array([row["examples"] for row in curve.rows], dtype=float),
                np.array([row["valid_loss"] for row in curve.rows], dtype=float),
                diverged=outcome == "diverged",
            )
            reached, hit = examples_to_target(points.examples, points.valid_loss, target)
            scored = {"hit": hit, "examples_to_target": reached if hit else float(self.workload.tau)}
            if outcome != "capped":
                scored["score"] = tuning_score(points, target, self.workload.tau)
            if hit:
                # The capping pruner of other trials reads it.
                trial.set_user_attr("examples_to_target", float(reached))
        if attrs["phase"] == "search":
            trial.set_user_attr("seed", training.recipe.seed)  # the other phases were enqueued with theirs
        trial.set_user_attr("outcome", outcome)
        trial.set_user_attr("seconds", round(training.train_seconds, 3))
        value = curve.best if math.isfinite(curve.best) else None
        if attrs["phase"] == "search" and state == TrialState.COMPLETE and value is not None:
            self._keep_if_best(claim, training, curve, value)
        claim.finish(
            state=state,
            value=value,
            outcome=outcome,
            valid_loss=last["valid_loss"],
            best_valid_loss=value,
            test_loss=curve.test_loss,
            examples=training.examples,
            steps=training.steps,
            train_seconds=training.train_seconds,
            wall_seconds=wall_seconds,
            **scored,
        )
        self._state_path(claim).unlink(missing_ok=True)

    def _to_beat(self, trial: optuna.Trial) -> float:
        """The best value of the study's complete trials."""
        done = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return min((other.value for other in done if other.value is not None), default=math.inf)

    def _keep_if_best(self, claim: Claim, training: Training, curve: _Curve, value: float) -> None:
        if curve.weights is not None and value <= self._to_beat(claim.trial):
            path = model_path(self.artifacts, claim.study_name, claim.number)
            save_model(path, training, self.data, curve.weights)

    def _state_path(self, claim: Claim) -> Path:
        return self.artifacts / claim.study_name / "state" / f"trial-{claim.number}.pt"

    def _save(self, claim: Claim, training: Training, curve: _Curve) -> None:
        # Rows first: a state must never be ahead of the record it continues.
        claim.record()
        extra = {"evaluations": len(curve.rows), "test_loss": curve.test_loss, "weights": curve.weights}
        save_state(self._state_path(claim), training, **extra)

    def _resume(self, claim: Claim, training: Training) -> _Curve:
        """Continue a trial that another worker left, from its saved state; else start it again."""
        if claim.attempt == 1:
            return _Curve()
        path = self._state_path(claim)
        try:
            state = load_state(path)
            if state is not None:
                number = state["training"]["number"]
                table = records.curves(self.store, self.experiment.name, [claim.trial_id])
                rows: list[dict[str, Any]] = table[table["number"] <= number].to_dict("records")
                # The same artifacts folder may hold the state of a trial of another database.
                if len(rows) == state["extra"]["evaluations"]:
                    training.load_state_dict(state["training"])
                    claim.truncate(number)
                    extra = state["extra"]
                    return _Curve(rows, extra["test_loss"], extra["weights"])
        except (UserError, ValueError, KeyError):
            # A damaged state, or another recipe's: the trial runs again from its start, to the same curve.
            path.unlink(missing_ok=True)
        claim.truncate(-1)
        return _Curve()


def model_path(artifacts: Path, study_name: str, number: int) -> Path:
    """Where a search trial's model is kept if it was the best when it ended."""
    return artifacts / study_name / "models" / f"trial-{number}.safetensors"


def build_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of that name; every worker passes a seed of its own, or all suggest the same points."""
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "qmc":
        with quiet_about_experiments():
            return optuna.samplers.QMCSampler(
                scramble=True, seed=seed, warn_independent_sampling=False, warn_asynchronous_seeding=False
            )
    if name == "gp":
        with quiet_about_experiments():
            return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    raise ValueError(f"no sampler '{name}'")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The allocators of the CPU and of mps have no class of their own for it.
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


@lru_cache
def versions() -> dict[str, str]:
    """Versions of what a curve depends on."""
    names = ("torch", "optuna", "numpy", "vae-study")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
