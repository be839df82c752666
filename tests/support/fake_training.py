"""A training without torch for the tests of the protocol: losses by a formula, so every answer is known.

The loss is linear in log examples, so a crossing is interpolated exactly whatever the grid. How fast it
falls is `speed`: a bump over lr, times what a technique is made to do, times the seed's luck.
"""

from __future__ import annotations

import math
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from study.analysis.columns import to_frame
from study.analysis.comparison import Comparison
from study.analysis.evidence import read
from study.design.build import Request
from study.design.space import search_space
from study.place import Place
from study.protocol.selection import State
from study.protocol.stored import stored
from study.session import Session
from study.store import records
from study.store.locations import Local
from study.store.store import Store
from study.workers.trial import Trainer
from vae.evaluation import Evaluation
from vae.grid import evaluation_grid
from vae.recipe import Recipe

#: Where the bump over lr has its top.
BEST_LR = 3e-3
#: The loss that a run with dropout never gets below: that technique never reaches a target.
NEVER = 50.0
#: What the made-up techniques do; every field is one that nothing else here sets.
TECHNIQUES: dict[str, dict[str, Any]] = {
    "twice": {"overrides": {"init": "orthogonal"}, "slot": "init"},
    "half-more": {"overrides": {"output_bias_from_mean": True}, "slot": "bias"},
    "same": {"why": "Nothing is changed."},
    "never": {"overrides": {"dropout": 0.5}},
    "flaky": {"overrides": {"weight_decay": 0.5}},
}


@cache
def luck(recipe: Recipe) -> float:
    """The seed's luck: most of it common to all arms, as pairing assumes, some of it the recipe's own."""
    shared = np.random.default_rng(recipe.seed).standard_normal()
    what = zlib.crc32(recipe.replace(seed=0).to_json().encode())
    own = np.random.default_rng([recipe.seed, what]).standard_normal()
    return math.exp(0.05 * shared + 0.01 * own)


def speed(recipe: Recipe) -> float:
    """How many times faster than the untouched recipe at its best lr, before luck."""
    bump = math.exp(-(math.log(recipe.lr / BEST_LR) ** 2) / 8)
    return (
        bump * (2.0 if recipe.init == "orthogonal" else 1.0) * (1.5 if recipe.output_bias_from_mean else 1.0)
    )


def loss_at(recipe: Recipe, share: float) -> float:
    """Validation loss after a share of tau: 14 nats at tau for a speed of 1."""
    loss = 60.0 - 10.0 * math.log(100.0 * share * speed(recipe) * luck(recipe))
    unlucky = recipe.weight_decay > 0.1 and recipe.seed % 3 == 0
    return max(loss, NEVER) if recipe.dropout or unlucky else loss


def share_to(recipe: Recipe, target: float) -> float:
    """The share of tau at which the loss is the target."""
    return math.exp((60.0 - target) / 10.0) / (100.0 * speed(recipe) * luck(recipe))


@dataclass
class Scores:
    loss: float


class FakeTraining:
    """As vae.training.Training is used by an objective."""

    sources: ClassVar[dict[str, Any]] = {}

    #: The examples at which it evaluates.
    grid: Callable[[int], Any] = staticmethod(lambda tau: coarse_grid(tau))
    #: Called at every evaluation.
    hook: Callable[[FakeTraining], None] = staticmethod(lambda _: None)
    #: How much higher every loss is on this data.
    harder: Callable[[Any], float] = staticmethod(lambda _: 0.0)
    #: Makes a recipe diverge half-way.
    diverges: Callable[[Recipe], bool] = staticmethod(lambda _: False)

    def __init__(self, recipe: Recipe, data: Any, tau: int, device: Any) -> None:
        self.recipe = recipe
        self.device = device
        self.tau = tau
        self.above = self.harder(data)
        self.batch_size = recipe.batch(len(data.train))
        self.outcome = "running"
        self.steps = self.examples = 0
        self.train_seconds = 0.0
        self.number = -1
        self.model = torch.nn.Linear(1, 1)
        self.sources: dict[str, Any] = {}

    @contextmanager
    def evaluated_weights(self) -> Iterator[torch.nn.Module]:
        yield self.model

    def __iter__(self) -> Iterator[Evaluation]:
        grid = self.grid(self.tau)
        while self.outcome == "running":
            self.hook(self)
            self.steps = -(-int(grid[self.number + 1]) // self.batch_size)
            self.examples = self.steps * self.batch_size
            self.number = int(np.searchsorted(grid, self.examples, side="right")) - 1
            loss = loss_at(self.recipe, self.examples / self.tau) + self.above
            if self.diverges(self.recipe) and self.examples > self.tau / 2:
                loss, self.outcome = math.nan, "diverged"
            elif self.number == len(grid) - 1:
                self.outcome = "completed"
            yield Evaluation(
                self.number, self.examples, self.steps, 0.0, loss, loss, loss / 2, loss / 2, 1, 0.1, 1.0, 1.0
            )

    def evaluate(self, split: Any, limit: int | None = None) -> Scores:  # noqa: ARG002
        return Scores(loss_at(self.recipe, self.examples / self.tau) + self.above + 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "recipe": self.recipe.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["recipe"] != self.recipe.to_json():
            raise ValueError("another recipe's")
        self.number = state["number"]


def coarse_grid(tau: int) -> Any:
    """Some 30 points instead of 180: fewer transactions."""
    return evaluation_grid(tau, ratio=1.2)


def pixels(folder: Path) -> str:
    """A file of 80 images, of which 64 are for training."""
    path = folder / "pixels.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).random((80, 2, 2), dtype=np.float32))
    return str(path)


#: What a small search draws.
SPACE: dict[str, Any] = {
    "lr": {"low": 1e-3, "high": 0.3, "log": True},
    "horizon": {"low": 0.1, "high": 1.0},
    "lr_schedule": ["constant", "cosine"],
    "hidden": [[4], [8, 4]],
    "optimizer": ["adam", "schedule_free_adamw"],
}


#: Trains with FakeTraining.
FAKE: Any = Trainer(train=FakeTraining, grid=FakeTraining.grid, explain=lambda *_: "as it was told to")  # type: ignore[arg-type]


def prepare(folder: Path, trainer: Trainer | None = FAKE, **values: Any) -> Session:
    """A session of a comparison on the file, in a folder of its own."""
    place = Place(f"sqlite:///{folder / 'optuna.db'}", Local(folder / "artifacts"), None, "cpu", 1)
    given = {"data": pixels(folder), "name": "fake", "budget": 1000.0, "techniques": TECHNIQUES}
    given |= {"recipe": {"batch_size": 8}, "tune_trials": 3, "tune_seeds": 1, "seeds": 6, "arms": ["twice"]}
    # Most tests hold what experiments begun by the first method go on with; those of the second say so.
    given |= {"method": 1, "margin": 0.05, "stop_at_target": False}
    return Session.prepare(place, Request(given | values, source="test"), trainer)


def prepare_search(
    folder: Path,
    trials: int,
    space: dict[str, Any] = SPACE,
    budget: float = 1.0,
    trainer: Trainer | None = None,
    **plan: Any,
) -> Session:
    """A search over the space alone: the default space's other fields are fixed. Really trained without a trainer."""
    fixed = [field for field in search_space(1_000, Recipe()) if field not in space]
    recipe = {"batch_size": 4, "latent_size": 2}
    search = {"trials": trials, "space": space} | plan
    return prepare(folder, trainer, arms=None, budget=budget, recipe=recipe, fixed=fixed, search=search)


@dataclass(frozen=True)
class Finished:
    """The folder of a comparison that was run to its end; not to be changed, copies are."""

    folder: Path
    values: dict[str, Any]

    @contextmanager
    def open(self) -> Iterator[tuple[Store, State]]:
        """Its database and all that was run."""
        with Store.open(f"sqlite:///{self.folder / 'optuna.db'}", read_only=True) as store:
            spec = stored(store, "fake")
            yield store, State(store, spec.experiment, spec.workload)

    def copy(self, folder: Path) -> Path:
        """A copy to go on with; the database was closed, so it is one file."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return folder


def estimated(store: Store, name: str = "fake") -> Comparison:
    """The comparison as it stands."""
    comparison = read(store, name).comparison
    assert comparison is not None
    return comparison


def arms_table(comparison: Comparison) -> pd.DataFrame:
    """The exported table of the arms, by name."""
    return to_frame(comparison.arms).set_index("arm", drop=False)


class StopAfter(threading.Event):
    """Asked to stop from the n-th time on that somebody looks."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._left = n

    def is_set(self) -> bool:
        self._left -= 1
        return self._left <= 0


def finish(folder: Path, **values: Any) -> Finished:
    """Run a comparison to its end with FakeTraining."""
    session = prepare(folder, **values)
    with session.store:
        session.run_here()
    return Finished(folder, values)


def rerun(folder: Path, **values: Any) -> tuple[pd.DataFrame, Comparison]:
    """Run a comparison to its end, or on to it; its trials and its estimates."""
    session = prepare(folder, **values)
    with session.store as store:
        session.run_here()
        return records.trials(store, "fake"), estimated(store)


def of(trials: pd.DataFrame, phase: str, arm: str | None = None) -> pd.DataFrame:
    """The trials of a phase, and of an arm."""
    return trials[(trials["phase"] == phase) & ((trials["arm"] == arm) | (arm is None))]


def recipes(trials: pd.DataFrame) -> list[Recipe]:
    """The recipe of each."""
    return [Recipe.from_json(text) for text in trials["recipe"]]


#: Five arms with known answers, one block, and the combined arm.
FIVE_ARMS: dict[str, Any] = {
    "arms": ["twice", "half-more", "same", "never", "flaky"],
    "combine": True,
    "tune_trials": 4,
    "tune_seeds": 2,
}
#: Two blocks of two seeds each; one arm is a second baseline, as of an A/A test.
TWO_BLOCKS: dict[str, Any] = {
    "arms": ["twice", "again"],
    "techniques": TECHNIQUES | {"again": {"family": "null", "independent": True}},
    "tune_trials": 2,
    "tune_seeds": 2,
    "seeds": 4,
    "blocks": 2,
}
