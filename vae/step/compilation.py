"""The training step as graphs of torch.compile, each compiled once in a process and kept.

A graph depends on shapes and on what is switched on. Learning rate, beta and the like travel in one tensor, so
that no schedule, and no trial that only tunes them, compiles again.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.likelihoods import at_least_fp32
from vae.optim.optimizer import BETA1, BETA2, EPSILON
from vae.step.backprop import Backprop, Knobs, Objective
from vae.step.flat import Layout, views


class StepKnobs(NamedTuple):
    """The numbers of one step; floats outside the graph, 0-dim tensors inside."""

    beta: Any
    free_bits: Any
    dropout: Any
    rate: Any  # lr / (1 - beta1^t), Kingma & Ba 2015, algorithm 1
    second_moment_factor: Any  # 1 / sqrt(1 - beta2^t)
    kept: Any  # 1 - lr * weight_decay
    clip_norm: Any
    average_step: Any  # 1 - ema_decay


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of the whole function, for static shapes.

    The code object is copied: torch counts recompilations per code object and gives up after 8, which a
    search over shapes would reach.
    """
    code = function.__code__.replace()
    own = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    return torch.compile(own, fullgraph=True, dynamic=False)


@functools.lru_cache(maxsize=128)
def gradient_graph(
    objective: Objective,
    layout: Layout,
    batch: tuple[int, ...],  # noqa: ARG001 - a key: each batch size is a graph of its own
    device: torch.device,  # noqa: ARG001 - likewise
) -> Callable[..., Any]:
    """(values (n,), gradient (n,) to overwrite, x, noise, knobs (3,)) -> loss."""

    def graph(values: Tensor, gradient: Tensor, x: Tensor, noise: Tensor, knobs: Tensor) -> Tensor:
        loss, fresh = _loss_and_gradient(objective, layout, values, x, noise, Knobs(*knobs.unbind()))
        gradient.copy_(fresh)
        return loss

    return compiled(graph)


@functools.lru_cache(maxsize=128)
def step_graph(
    objective: Objective,
    layout: Layout,
    n_decayed: int,
    clips: bool,
    batch: tuple[int, ...],  # noqa: ARG001 - a key, as above
    device: torch.device,  # noqa: ARG001
) -> Callable[..., Any]:
    """(values, first and second moment, average or None, each (n,), changed in place; x, noise, step knobs)
    -> loss and gradient norm. The first n_decayed values decay."""

    def graph(
        values: Tensor, m: Tensor, v: Tensor, average: Tensor | None, x: Tensor, noise: Tensor, knobs: Tensor
    ) -> tuple[Tensor, Tensor]:
        knob = StepKnobs(*knobs.unbind())
        loss, gradient = _loss_and_gradient(objective, layout, values, x, noise, Knobs(*knob[:3]))
        norm = torch.linalg.vector_norm(gradient)
        if clips:
            gradient = gradient * (knob.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        if n_decayed:
            decays = torch.arange(len(values), device=values.device) < n_decayed
            values.mul_(torch.where(decays, knob.kept, 1.0))
        m.mul_(BETA1).add_(gradient, alpha=1.0 - BETA1)
        v.mul_(BETA2).add_(gradient * gradient, alpha=1.0 - BETA2)
        values.sub_(knob.rate * m / (v.sqrt() * knob.second_moment_factor + EPSILON))
        if average is not None:
            average.add_((values - average) * knob.average_step)
        return loss, norm

    return compiled(graph)


def _loss_and_gradient(
    objective: Objective, layout: Layout, values: Tensor, x: Tensor, noise: Tensor, knobs: Knobs
) -> tuple[Tensor, Tensor]:
    backprop = Backprop(objective, views(values.to(objective.dtype), layout))
    loss = backprop(x, noise, knobs)
    gradients = backprop.named_gradients()
    return loss, torch.cat([at_least_fp32(gradients[name]).flatten() for name, _ in layout])
