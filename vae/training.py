"""The training loop: a generator that yields an Evaluation at every point of the geometric grid.

The library yields, the caller decides: to stop early, simply stop iterating.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from vae.data.dataset import Dataset, Split
from vae.elbo import active_units, elbo_terms, likelihood
from vae.grid import evaluation_grid
from vae.model.mlp import Model, build
from vae.optim.optimizer import lr_factor
from vae.randomness import RandomState, streams
from vae.recipe import Recipe
from vae.step.allocator import keep_freed_memory
from vae.step.backprop import Backprop
from vae.step.step import TINY_EVERY, build_step

#: Images of the validation split that every evaluation on the grid uses, the same for all recipes.
GRID_IMAGES = 2_000
#: Nats per example of KL below which a finished model is called collapsed: z carries no information.
COLLAPSED_RATE = 0.1
#: Seeds the evaluation's noise: fixed, so that losses of different recipes and seeds share it.
EVALUATION_SEED = 20_131_220
#: Largest evaluation batch; bounds memory, changes no result beyond rounding.
EVALUATION_BATCH = 2_000
#: Bytes of float32 pixels that are drawn, converted and prepared at once: several batches where they are
#: small, which saves calls, but never more than a processor's cache holds.
DRAW_BYTES = 2**20


@dataclass(frozen=True)
class Evaluation:
    """What one visit to the grid measured. Losses are nats per example; lower is better."""

    number: int
    """Index of the last grid point passed; strictly increasing, shared by all recipes of one tau."""
    examples: int
    """Training examples seen."""
    steps: int
    """Optimizer steps taken."""
    train_seconds: float
    """Wall seconds spent in training steps; evaluation is off the clock."""
    train_loss: float
    """Mean training objective (with its beta and free bits) since the last evaluation."""
    valid_loss: float
    """Negative ELBO at beta = 1 on the fixed validation images; rate + distortion."""
    rate: float
    """KL(q(z|x) || p(z))."""
    distortion: float
    """-E[log p(x|z)]."""
    active_units: int
    """Latent dimensions whose posterior mean varies over the data by more than 0.01 (Burda et al. 2016)."""
    lr: float
    """Learning rate of the last step."""
    beta: float
    """Weight of the KL term in the last step."""
    grad_norm: float
    """Global L2 norm of the last step's gradient, before clipping."""

    def as_row(self) -> dict[str, Any]:
        """Column name -> value, for the curve table."""
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """A model's evaluation on one split, nats per example, single-sample ELBO with fixed noise."""

    loss: float
    rate: float
    distortion: float
    active_units: int


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
    ) -> None:
        self.recipe = recipe
        self.device = device or torch.device("cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.tau = tau
        self.likelihood = likelihood(recipe.likelihood)
        self.batch_size = recipe.batch(len(data.train))
        data.require_batch(self.batch_size)
        self.n_train = len(data.train)
        init_seed, step_seed, self._order_seed = streams(recipe.seed)

        if model is None:
            pixel_mean = data.pixel_mean() if recipe.output_bias_from_mean else None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(init_seed)
                model = build(recipe, data.size, pixel_mean)
        self.model: nn.Module = model.to(self.device)
        # A gradient made by hand has no use for a module's mode, and changing it takes longer than a small step.
        self._has_mode = not Backprop.covers(self.model)
        self.model.train(self._has_mode)
        self._step = build_step(self.model, self.likelihood, recipe)
        self._random = RandomState(step_seed, self.device)

        self._train = data.train.to(self.device)
        self._valid, self._valid_noise = evaluation_inputs(self, data.valid, GRID_IMAGES)
        self._grid = evaluation_grid(tau)
        self._epoch_order: tuple[int, Tensor] | None = None
        self._draw_batches = max(1, DRAW_BYTES // (4 * data.size * self.batch_size))

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
                began = time.perf_counter()
                steps = self._take(n_steps)
                self._synchronise()
                self.train_seconds += time.perf_counter() - began
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
            began = time.perf_counter()
            self._take(steps)
            self._synchronise()
            return time.perf_counter() - began

    def _take(self, n_steps: int) -> _Steps:
        """Train n_steps >= 1 steps."""
        total, last = torch.zeros((), device=self.device), self.steps + n_steps
        lr, beta, norm = self.lr, self.beta, None
        for start in range(0, n_steps, self._draw_batches):
            for x, noise in self._draw(min(self._draw_batches, n_steps - start)):
                lr, beta = self.lr, self.beta
                self.steps += 1
                self.examples += self.batch_size
                loss, norm = self._step(x, noise, lr, beta, with_norm=self.steps == last)
                total += loss
                if self.steps % TINY_EVERY == 0:
                    self._step.remove_tiny()
        assert norm is not None
        return _Steps(float(total) / n_steps, float(norm), lr, beta)

    def _draw(self, n_batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The next batches, prepared (B, D), and their noise (B, L)."""
        n = n_batches * self.batch_size
        x = self.likelihood.prepare_train(self._train.batch(self._next_indices(n), self.device))
        noise = torch.randn(n, self.recipe.latent_size, device=self.device)
        return zip(torch.split(x, self.batch_size), torch.split(noise, self.batch_size), strict=True)

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

    def _next_indices(self, n: int) -> Tensor:
        """Indices of the next n examples: a piece of an endless row of epoch permutations, so every batch is
        full and an epoch's end falls inside a batch."""
        epoch, offset = divmod(self.examples, self.n_train)
        pieces = [self._order(epoch)[offset : offset + n]]
        while (missing := n - sum(map(len, pieces))) > 0:
            epoch += 1
            pieces.append(self._order(epoch)[:missing])
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _order(self, epoch: int) -> Tensor:
        # Seeded by the epoch's number: a resumed run needs no history to find its place.
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            seed = int(np.random.SeedSequence([self._order_seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(self.n_train, generator=generator).to(self.device)
            self._epoch_order = (epoch, order)
        return self._epoch_order[1]

    def _evaluate(self, steps: _Steps) -> Evaluation:
        with self.evaluated_weights():
            scores = self._scores(self._valid, self._valid_noise)
        return Evaluation(
            number=self._number,
            examples=self.examples,
            steps=self.steps,
            train_seconds=self.train_seconds,
            train_loss=steps.train_loss,
            valid_loss=scores.loss,
            rate=scores.rate,
            distortion=scores.distortion,
            active_units=scores.active_units,
            lr=steps.lr,
            beta=steps.beta,
            grad_norm=steps.grad_norm,
        )

    def evaluate(self, split: Split, limit: int | None = None) -> Scores:
        """Single-sample negative ELBO on a split with the weights this recipe declares as its result."""
        x, noise = evaluation_inputs(self, split, limit)
        with self.evaluated_weights():
            return self._scores(x, noise)

    def _scores(self, x: Tensor, noise: Tensor) -> Scores:
        rate = distortion = 0.0
        means = []
        with torch.inference_mode():
            parts = zip(torch.split(x, EVALUATION_BATCH), torch.split(noise, EVALUATION_BATCH), strict=True)
            for part, eps in parts:
                terms = elbo_terms(cast(Model, self.model), self.likelihood, part, eps)
                rate += float(terms.rate.sum())
                distortion += float(terms.distortion.sum())
                means.append(terms.mean)
            units = active_units(torch.cat(means))
        n = len(x)
        return Scores(
            loss=(rate + distortion) / n, rate=rate / n, distortion=distortion / n, active_units=units
        )

    @contextmanager
    def evaluated_weights(self) -> Iterator[nn.Module]:
        """The model in evaluation mode with the one weight set the recipe declares: the average where
        there is an EMA, schedule-free's evaluation weights, else the current ones."""
        if self._has_mode:
            self.model.eval()
        try:
            with self._step.evaluated():
                yield self.model
        finally:
            if self._has_mode:
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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises ValueError for another recipe's or tau's state."""
        if state["recipe"] != self.recipe.to_json() or state["tau"] != self.tau:
            raise ValueError("The saved state belongs to another recipe or budget; start without it.")
        self.model.load_state_dict(state["model"])
        self._step.load_state_dict(state["step"])
        self._random.load_state_dict(state["random"])
        self.outcome = state["outcome"]
        self.steps = state["steps"]
        self.examples = state["examples"]
        self.train_seconds = state["train_seconds"]
        self._number = state["number"]


def train(
    recipe: Recipe,
    data: Dataset,
    tau: int,
    device: torch.device | None = None,
    model: nn.Module | None = None,
) -> Training:
    """A Training to iterate over: `for evaluation in train(recipe, data, tau): ...`.

    tau is the budget in examples seen. model: a network of your own with `encode` and `decode`
    (`vae.model.mlp.Model`), which is trained in place; the recipe's architecture and init then say nothing, but
    its latent_size must be the network's. Raises UserError when the data has fewer examples than a batch.
    """
    return Training(recipe, data, tau, device, model)


def evaluation_inputs(training: Training, split: Split, limit: int | None) -> tuple[Tensor, Tensor]:
    """Images (n, D) and noise (n, L) of an evaluation: the same for every recipe of one likelihood and
    latent size, whatever its seed."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    x = training.likelihood.prepare_eval(split.all(limit), generator)
    noise = torch.randn(len(x), training.recipe.latent_size, generator=generator)
    return x.to(training.device), noise.to(training.device)
