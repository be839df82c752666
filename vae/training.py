"""The training loop: a generator that yields an Evaluation at every point of the geometric grid.

The library yields, the caller decides: to stop early, simply stop iterating.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from vae import code
from vae.batches import Batches
from vae.data.dataset import Dataset, Split
from vae.elbo import Model
from vae.errors import UserError
from vae.evaluation import GRID_IMAGES, Evaluation, Scores, evaluation_inputs, scores
from vae.grid import evaluation_grid
from vae.likelihoods import likelihood
from vae.model.bring import build_network, require_fit
from vae.model.recount import counts, recounted
from vae.optim.schedules import lr_factor
from vae.randomness import RandomState, streams
from vae.recipe import Recipe
from vae.states import require_like
from vae.step.allocator import keep_freed_memory
from vae.step.step import TINY_EVERY, Taken, build_step

#: Nats per example of KL below which a finished model is called collapsed: z carries no information.
COLLAPSED_RATE = 0.1
#: What a training's `outcome` may be.
OUTCOMES = ("running", "completed", "collapsed", "diverged")


class _Steps(NamedTuple):
    """What the steps between two evaluations leave behind."""

    train_loss: float  # mean over the steps
    grad_norm: float  # the last step's
    lr: float
    beta: float


class Training:
    """One training of one recipe; iterate over it to train.

    After iteration `outcome` is "completed", "diverged" (a loss became NaN or infinite) or "collapsed"
    (KL below COLLAPSED_RATE at the end); "running" before. Same recipe, data and tau give bitwise the
    same curve on the CPU at one thread, also through `state_dict` and `load_state_dict`. With several
    threads or on a GPU sums may be ordered differently and curves agree only to rounding.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        tau: int,
        device: torch.device | None = None,
        model: nn.Module | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.recipe = recipe
        self._clock = clock  # seconds, for train_seconds
        self.device = device or torch.device("cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.tau = tau
        self.likelihood = likelihood(recipe.likelihood)
        self.batch_size = recipe.batch(len(data.train))
        data.require_batch(self.batch_size)
        init_seed, step_seed, order_seed = streams(recipe.seed)

        #: Code of the user's own that the recipe names, as it was when this training began.
        self.sources = {name: code.find(name) for name in recipe.references}
        is_own = model is not None or recipe.model in self.sources
        if model is None:
            pixels = data.pixel_moments() if recipe.output_bias_from_mean else None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(init_seed)
                source = self.sources.get(recipe.model)
                model = build_network(recipe, data.shape, pixels, source.sha256 if source else None)
        elif recipe.model != "mlp":
            raise UserError(
                f"The recipe names a network, {recipe.model}, and another is given: leave out one of them."
            )
        if is_own:
            few, _ = self._inputs(data.valid, 2)
            require_fit(model.to(self.device), self.likelihood, few, recipe.latent_size)
        self.model: nn.Module = model.to(self.device)
        self._step = build_step(self.model, self.likelihood, recipe)
        self.model.train(self._step.has_mode)
        self._random = RandomState(step_seed, self.device)

        self.batches = Batches(
            data.train, self.likelihood, self.batch_size, recipe.latent_size, order_seed, self.device
        )
        self._valid = self._inputs(data.valid, GRID_IMAGES)
        recounts = self._step.averages and counts(self.model)
        self._counted = self._inputs(data.train, GRID_IMAGES) if recounts else None
        self._grid = evaluation_grid(tau)

        self.outcome = "running"
        self.steps = 0
        self.examples = 0
        self.train_seconds = 0.0
        self._number = -1

    def __iter__(self) -> Iterator[Evaluation]:
        while self.outcome == "running":
            due = self._grid[min(self._passed() + 1, len(self._grid) - 1)]
            n_steps = max(1, math.ceil((due - self.examples) / self.batch_size))
            with self._random.active():
                began = self._clock()
                steps = self._take(n_steps)
                self._synchronise()
                self.train_seconds += self._clock() - began
            self._number = self._passed()
            evaluation = self._evaluate(steps)
            if not math.isfinite(evaluation.valid_loss) or not math.isfinite(evaluation.train_loss):
                self.outcome = "diverged"
            elif self._number == len(self._grid) - 1:
                self.outcome = "collapsed" if evaluation.rate < COLLAPSED_RATE else "completed"
            yield evaluation

    def _passed(self) -> int:
        """Number of the last grid point passed; -1 at the start."""
        return int(np.searchsorted(self._grid, self.examples, side="right")) - 1

    def advance(self, steps: int) -> float:
        """Train that many steps without evaluating; the wall seconds they took. For timing alone: the
        grid points passed over are not visited later."""
        with self._random.active():
            self._synchronise()
            began = self._clock()
            self._take(steps)
            self._synchronise()
            return self._clock() - began

    def watch(self, look: Callable[[Tensor, Tensor, float, Taken], object]) -> None:
        """Have `look(x, noise, lr, taken)` called after each step from now on, its gradient's norm known. For finding
        out what went wrong: a watched step is slower."""
        unwatched = self._step.take

        def take(x: Tensor, noise: Tensor, lr: float, beta: float, with_norm: bool = True) -> Taken:  # noqa: ARG001
            taken = unwatched(x, noise, lr, beta, with_norm=True)
            look(x, noise, lr, taken)
            return taken

        self._step.take = take

    def _take(self, n_steps: int) -> _Steps:
        """Train n_steps >= 1 steps."""
        total, last = torch.zeros((), device=self.device), self.steps + n_steps
        lr, beta, norm = self.lr, self.beta, None
        for start in range(0, n_steps, self.batches.at_once):
            n_batches = min(self.batches.at_once, n_steps - start)
            for x, noise in self.batches.draw(self.examples, n_batches):
                lr, beta = self.lr, self.beta
                self.steps += 1
                self.examples += self.batch_size
                loss, norm = self._step.take(x, noise, lr, beta, with_norm=self.steps == last)
                total += loss
                if self.steps % TINY_EVERY == 0:
                    self._step.remove_tiny()
        assert norm is not None
        return _Steps(float(total) / n_steps, float(norm), lr, beta)

    @property
    def lr(self) -> float:
        """Learning rate of the next step; t is where that step ends, so that it never is zero at the start."""
        recipe = self.recipe
        t = (
            min((self.examples + self.batch_size) / self.tau, 1.0)
            if recipe.warmup
            else self.examples / self.tau
        )
        return recipe.lr * lr_factor(recipe.lr_schedule, t, recipe.horizon, recipe.warmup)

    @property
    def beta(self) -> float:
        """Weight of the KL term in the next step."""
        warmup = self.recipe.beta_warmup * self.tau
        return self.recipe.beta * (min(1.0, self.examples / warmup) if warmup else 1.0)

    def _evaluate(self, steps: _Steps) -> Evaluation:
        found = self._scores(self._valid)
        return Evaluation(
            number=self._number,
            examples=self.examples,
            steps=self.steps,
            train_seconds=self.train_seconds,
            train_loss=steps.train_loss,
            valid_loss=found.loss,
            rate=found.rate,
            distortion=found.distortion,
            active_units=found.active_units,
            lr=steps.lr,
            beta=steps.beta,
            grad_norm=steps.grad_norm,
        )

    def evaluate(self, split: Split, limit: int | None = None) -> Scores:
        """Single-sample negative ELBO on a split with the weights this recipe declares as its result."""
        return self._scores(self._inputs(split, limit))

    def _inputs(self, split: Split, limit: int | None) -> tuple[Tensor, Tensor]:
        x, noise = evaluation_inputs(self.likelihood, self.recipe.latent_size, split.all(limit))
        return x.to(self.device), noise.to(self.device)

    def _scores(self, inputs: tuple[Tensor, Tensor]) -> Scores:
        with self.evaluated_weights() as model:
            return scores(cast(Model, model), self.likelihood, *inputs)

    @contextmanager
    def evaluated_weights(self) -> Iterator[nn.Module]:
        """The model in evaluation mode with the one weight set the recipe declares: the average where
        there is an EMA, schedule-free's evaluation weights, else the current ones. Batch normalisation fits them."""
        if self._step.has_mode:
            self.model.eval()
        try:
            statistics = recounted(self.model, *self._counted) if self._counted else nullcontext()
            with self._step.evaluated(), statistics:
                yield self.model
        finally:
            if self._step.has_mode:
                self.model.train()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on to the same curve; tensors and plain values only."""
        return {
            "recipe": self.recipe.to_json(),
            "tau": self.tau,
            "model": self.model.state_dict(),
            "step": self._step.state_dict(),
            "random": self._random.state_dict(),
            "outcome": self.outcome,
            "steps": self.steps,
            "examples": self.examples,
            "train_seconds": self.train_seconds,
            "number": self._number,
        }

    def load_state_dict(self, state: Any) -> None:
        """Continue where `state_dict` was taken. All of it is looked at before anything is changed: ValueError for
        another recipe's or budget's state and for one that doesn't fit (a missing or further key, another shape or
        type, counts that disagree), and then this training is as it was."""
        self._check(state)
        self.model.load_state_dict(state["model"])
        self._step.load_state_dict(state["step"])
        self._random.load_state_dict(state["random"])
        self.outcome = state["outcome"]
        self.steps = state["steps"]
        self.examples = state["examples"]
        self.train_seconds = state["train_seconds"]
        self._number = state["number"]

    def _check(self, state: Any) -> None:
        own = self.state_dict()
        deeper = {"step": None, "random": None}  # looked at by their own
        if isinstance(state, dict):
            deeper = {key: state.get(key) for key in deeper}
        require_like(state, own | deeper, "state")
        if (state["recipe"], state["tau"]) != (own["recipe"], own["tau"]):
            raise ValueError("The saved state belongs to another recipe or budget; start without it.")
        steps, seconds = state["steps"], state["train_seconds"]
        if not (
            steps >= 0
            and state["examples"] == steps * self.batch_size
            and 0.0 <= seconds < math.inf
            and -1 <= state["number"] < len(self._grid)
            and state["outcome"] in OUTCOMES
        ):
            raise ValueError("The saved state's counts disagree; start without it.")
        self._step.check(state["step"], steps)
        self._random.check(state["random"])


def train(
    recipe: Recipe,
    data: Dataset,
    tau: int,
    device: torch.device | None = None,
    model: nn.Module | None = None,
) -> Training:
    """A Training to iterate over: `for evaluation in train(recipe, data, tau): ...`.

    tau is the budget in examples seen. model: a network of your own with `encode` and `decode`
    (`vae.elbo.Model`), which is trained in place; the recipe's architecture and init then say nothing, but
    its latent_size must be the network's. A recipe's `model` names a factory of one instead, which the commands and
    model files find again. Raises UserError for a network that doesn't fit, and when the data has fewer
    examples than a batch.
    """
    return Training(recipe, data, tau, device, model)
