"""One step of training: the gradient of a batch, clipping, the update, the average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from vae.elbo import Model, objective
from vae.gaussian import kl_divergence, reparameterise
from vae.likelihoods import Likelihood, at_least_fp32
from vae.optim.optimizer import BETA1, BETA2, Optimizer
from vae.recipe import Recipe
from vae.states import require_like
from vae.step.backprop import Backprop, Knobs, Objective
from vae.step.compilation import StepKnobs, compiled, gradient_graph, step_graph
from vae.step.flat import Flat, views

#: Below it an optimizer's moment or momentum moves no weight by as much as a rounding; yet from here 64 steps, each
#: of which keeps at least 0.9 of it, don't lead below the smallest normal float32.
TINY = 1e-33
#: Steps between two removals of what is tiny.
TINY_EVERY = 64

#: (x, noise, beta) -> the objective, a scalar; its gradient is left in the flat tensor.
Gradient = Callable[[Tensor, Tensor, float], Tensor]


class Taken(NamedTuple):
    """What a step leaves behind; tensors, for reading a number off a GPU waits for it."""

    loss: Tensor  # the objective before the step, with its beta and free bits, nats per example
    grad_norm: Tensor | None  # global L2 norm, before clipping; may be None where it wasn't asked for


class Take(Protocol):
    """Takes one step."""

    def __call__(self, x: Tensor, noise: Tensor, lr: float, beta: float, with_norm: bool = True) -> Taken:
        """x: (B, D), prepared. noise: (B, L), standard normal. Autograd's mode is left as it was. The norm takes
        a twentieth of a step: with_norm says whether it is wanted."""


class Rule(Protocol):
    """What a step keeps from one to the next, beside the weights: an optimizer, or what stands for it in a graph."""

    def moments(self) -> Iterable[Tensor]:
        """Its tensors with a number for each weight."""

    def eval(self) -> None:
        """Change the weights to those that the rule would have evaluated."""

    def train(self) -> None:
        """Change them back, bitwise."""

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on. Tensors are shared, not copied."""

    def check(self, state: Any, steps: int) -> None:
        """ValueError unless it is a state of this rule for these weights after so many steps; changes nothing."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a copy of a state that `check` lets pass."""


class Step:
    """Trains a model in place, a batch a call of `take`. The model's parameters are views of one flat tensor.

    average: of the weights, which is evaluated in their stead; or None.
    averages: whether other weights are evaluated than those that are trained.
    has_mode: False where the gradient is made by hand: it has no use for the model's mode, and changing that takes
    longer than a small step.
    """

    def __init__(
        self,
        flat: Flat,
        average: Tensor | None,
        rule: Rule,
        take: Take,
        averages: bool,
        has_mode: bool = True,
    ) -> None:
        self.flat = flat
        self.average = average
        self.take = take
        self.rule = rule
        self.averages = averages
        self.has_mode = has_mode

    @torch.no_grad()
    def remove_tiny(self) -> None:
        """Moments below TINY become 0; to be called every TINY_EVERY steps.

        The moment of a weight whose gradient is 0 from some step on (a dead unit's, a pixel's that is always
        black) shrinks until it is subnormal, and stays so: 0.9 of the smallest number rounds to itself. A
        processor may take a hundred times as long with such numbers: on an Intel Xeon with AMX they made the
        update of 784-500-30 ten times as slow after 500 steps. Other frameworks have the processor round them to
        0, which torch can ask for in the calling thread only.
        """
        for moment in self.rule.moments():
            torch.hardshrink(moment, TINY, out=moment)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within it the model has the one weight set that its recipe declares: the average where there is an
        EMA, schedule-free's evaluation weights, else the current ones. Afterwards all is bitwise as before."""
        self.rule.eval()
        kept = None if self.average is None else self.flat.values.clone()
        if self.average is not None:
            self.flat.values.copy_(self.average)
        try:
            yield
        finally:
            if kept is not None:
                self.flat.values.copy_(kept)
            self.rule.train()

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on beside the model's weights. Tensors are shared, not copied."""
        return {"rule": self.rule.state_dict(), "average": self.average}

    def check(self, state: Any, steps: int) -> None:
        """ValueError unless it is a state of this step after so many were taken; changes nothing."""
        rule = state.get("rule") if isinstance(state, dict) else None
        require_like(state, {"rule": rule, "average": self.average}, "step")
        self.rule.check(rule, steps)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a copy of a state that `check` lets pass."""
        self.rule.load_state_dict(state["rule"])
        if self.average is not None:
            self.average.copy_(state["average"])


def build_step(model: nn.Module, likelihood: Likelihood, recipe: Recipe) -> Step:
    """The recipe's step for a model that is on its device already. Raises UserError for parameters that
    differ in dtype or device."""
    flat = Flat(model)
    average = flat.values.clone() if recipe.ema_decay else None
    known = Backprop.covers(model)
    if known and recipe.compile and recipe.optimizer in ("adam", "adamw"):
        adam = CompiledAdam(flat, average, likelihood, recipe)
        return Step(flat, average, adam, adam.take, average is not None, has_mode=False)
    optimizer = Optimizer(flat.groups(recipe), recipe)
    gradient = by_hand(flat, likelihood, recipe) if known else by_autograd(model, flat, likelihood, recipe)
    take = operation_by_operation(flat, average, optimizer, gradient, recipe)
    averages = average is not None or optimizer.averages
    return Step(flat, average, optimizer, take, averages, has_mode=not known)


def operation_by_operation(
    flat: Flat, average: Tensor | None, optimizer: Optimizer, gradient: Gradient, recipe: Recipe
) -> Take:
    """A step in its parts, for every model and rule: the gradient, clipping, the update, the average."""
    clip_norm, average_step = recipe.clip_norm, 1.0 - recipe.ema_decay

    def take(x: Tensor, noise: Tensor, lr: float, beta: float, with_norm: bool = True) -> Taken:
        loss = gradient(x, noise, beta)
        norm = None
        if with_norm or clip_norm is not None:
            norm = torch.linalg.vector_norm(flat.gradient)
        if norm is not None and clip_norm is not None:  # as torch.nn.utils.clip_grad_norm_
            flat.gradient.mul_((clip_norm / (norm + 1e-6)).clamp(max=1.0))
        optimizer.set_lr(lr)
        optimizer.step()
        if average is not None:
            average.lerp_(flat.values, average_step)
        return Taken(loss, norm)

    return take


class CompiledAdam:
    """Adam for a `VAE` as one graph with everything else that a step does: forward, backward, clipping, update and
    average."""

    def __init__(self, flat: Flat, average: Tensor | None, likelihood: Likelihood, recipe: Recipe) -> None:
        self._flat, self._average, self._recipe = flat, average, recipe
        self._objective = Objective.of(recipe, likelihood, flat.values.dtype, flat.values.device)
        self._first_moment = torch.zeros_like(flat.values)
        self._second_moment = torch.zeros_like(flat.values)
        self._steps = 0

    def take(self, x: Tensor, noise: Tensor, lr: float, beta: float, with_norm: bool = True) -> Taken:  # noqa: ARG002 - it is part of the graph
        """As `Take` says; the norm is always there."""
        recipe, flat = self._recipe, self._flat
        n_decayed = flat.n_matrices if recipe.weight_decay > 0 else 0
        clips = recipe.clip_norm is not None
        graph = step_graph(self._objective, flat.layout, n_decayed, clips, tuple(x.shape), x.device)
        self._steps += 1
        knobs = StepKnobs(
            beta=beta,
            free_bits=recipe.free_bits,
            dropout=recipe.dropout,
            rate=lr / (1.0 - BETA1**self._steps),
            second_moment_factor=(1.0 - BETA2**self._steps) ** -0.5,
            kept=1.0 - lr * recipe.weight_decay,
            clip_norm=recipe.clip_norm or 0.0,
            average_step=1.0 - recipe.ema_decay,
        )
        with torch.no_grad():
            loss, norm = graph(
                flat.values,
                self._first_moment,
                self._second_moment,
                self._average,
                x,
                noise,
                torch.tensor(knobs, device=x.device),
            )
        return Taken(loss, norm)

    def moments(self) -> Iterable[Tensor]:
        """Its first and second moments."""
        return (self._first_moment, self._second_moment)

    def eval(self) -> None:
        """Adam evaluates the weights it trains."""

    def train(self) -> None:
        """They are the same."""

    def state_dict(self) -> dict[str, Any]:
        """As `Rule` says."""
        moments = {"first_moment": self._first_moment, "second_moment": self._second_moment}
        return {"optimizer": "compiled adam", "steps": self._steps} | moments

    def check(self, state: Any, steps: int) -> None:
        """As `Rule` says."""
        require_like(state, self.state_dict(), "rule")
        if (state["optimizer"], state["steps"]) != ("compiled adam", steps):
            raise ValueError(
                f"state of the optimizer '{state['optimizer']}' after {state['steps']} steps, not of "
                f"'compiled adam' after {steps}"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Rule` says."""
        self._first_moment.copy_(state["first_moment"])
        self._second_moment.copy_(state["second_moment"])
        self._steps = state["steps"]


def by_hand(flat: Flat, likelihood: Likelihood, recipe: Recipe) -> Gradient:
    """The gradient of a `VAE` without autograd; in bfloat16 on a copy of the weights in it."""
    of = Objective.of(recipe, likelihood, flat.values.dtype, flat.values.device)
    if recipe.compile:

        def compiled_gradient(x: Tensor, noise: Tensor, beta: float) -> Tensor:
            graph = gradient_graph(of, flat.layout, tuple(x.shape), x.device)
            knobs = torch.tensor([beta, recipe.free_bits, recipe.dropout], device=x.device)
            with torch.no_grad():
                return cast(Tensor, graph(flat.values, flat.gradient, x, noise, knobs))

        return compiled_gradient

    mixed = of.dtype != flat.values.dtype
    values = flat.values.to(of.dtype) if mixed else flat.values
    gradient = torch.zeros_like(values) if mixed else flat.gradient
    backprop = Backprop(of, views(values, flat.layout), views(gradient, flat.layout))

    def eager_gradient(x: Tensor, noise: Tensor, beta: float) -> Tensor:
        # inference_mode: no_grad without its counting of versions, which costs a tenth of a small step
        with torch.inference_mode():
            if mixed:
                values.copy_(flat.values)
            loss = backprop(x, noise, Knobs(beta, recipe.free_bits, recipe.dropout))
            if mixed:
                flat.gradient.copy_(gradient)
        return loss

    return eager_gradient


def by_autograd(model: nn.Module, flat: Flat, likelihood: Likelihood, recipe: Recipe) -> Gradient:
    """The gradient of any model with `encode` and `decode` (`vae.elbo.Model`); bfloat16 by autocast."""
    network = cast(Model, model)

    def loss_of(x: Tensor, noise: Tensor, beta: float | Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
            mean, log_var = network.encode(x)
            parameters = network.decode(reparameterise(mean, log_var, noise))
        distortion = -likelihood.log_prob(at_least_fp32(parameters), x)
        return objective(distortion, kl_divergence(mean, log_var), beta, recipe.free_bits)

    graph = compiled(loss_of) if recipe.compile else loss_of

    def gradient(x: Tensor, noise: Tensor, beta: float) -> Tensor:
        flat.gradient.zero_()
        with torch.enable_grad():
            # A graph takes beta as a tensor: a float would be a constant of it, recompiled at each change.
            loss = graph(x, noise, torch.tensor(beta, device=x.device) if recipe.compile else beta)
            loss.backward()
        return loss.detach()

    return gradient
