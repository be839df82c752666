"""Learning-rate schedules against torch's own classes and the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from vae.optim.schedules import lr_factor
from vae.recipe import ScheduleName

DECAYING = [name for name in get_args(ScheduleName) if name != "constant"]


def torch_curve(
    make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], n_steps: int
) -> list[float]:
    """The learning rates of steps 0..n_steps-1 of a torch scheduler on a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    curve = []
    for _ in range(n_steps):
        curve.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return curve


N = 300  # steps in these tests

#: For each schedule torch's class with the same parameters, over N steps to the horizon.
TORCH: dict[ScheduleName, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0, total_iters=0),
    "step": lambda o: lr_scheduler.MultiStepLR(o, [N // 3, 2 * N // 3], gamma=0.1),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.01 ** (1 / N)),
    "linear": lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=N),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=N),
}


@pytest.mark.parametrize("schedule", TORCH)
def test_schedule_is_torchs(schedule: ScheduleName) -> None:
    """Step by step to the horizon the factor is that of torch's scheduler, the floor included."""
    ours = [lr_factor(schedule, step / N, 1.0, 0.0) for step in range(N + 1)]
    assert ours == pytest.approx(torch_curve(TORCH[schedule], N + 1), abs=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step", "exponential"])
def test_warmup_and_horizon_are_torchs(schedule: ScheduleName) -> None:
    """A linear warm-up, then the schedule to a horizon before tau, then its floor: torch's SequentialLR."""
    warmup, total = 50, 500

    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        rise = lr_scheduler.LinearLR(optimizer, 1e-12, 1.0, total_iters=warmup)
        return lr_scheduler.SequentialLR(optimizer, [rise, TORCH[schedule](optimizer)], [warmup])

    theirs = torch_curve(make, warmup + N + 1)
    ours = [lr_factor(schedule, t / total, (warmup + N) / total, warmup / total) for t in range(total)]
    assert ours[: warmup + N + 1] == pytest.approx(theirs, abs=1e-9)
    assert set(ours[warmup + N :]) == {ours[warmup + N]}


@pytest.mark.parametrize("warmup_steps", [None, 30, 150])
def test_onecycle_is_torchs(warmup_steps: int | None) -> None:
    """The factor is OneCycleLR's with its defaults; a warm-up moves its peak."""
    # Torch counts a peak of pct_start * total - 1 and an end of total - 1.
    total = N + 1
    peak = 0.3 * N if warmup_steps is None else warmup_steps
    theirs = torch_curve(
        lambda o: lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=total, pct_start=(peak + 1) / total, cycle_momentum=False
        ),
        total,
    )
    warmup = 0.0 if warmup_steps is None else warmup_steps / N
    ours = [lr_factor("onecycle", step / N, 1.0, warmup) for step in range(total)]
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_inverse_sqrt_is_vaswanis() -> None:
    """The factor is min(t w^-1.5, t^-0.5) of Vaswani et al. 2017 with warm-up w, scaled to a peak of 1."""
    w = 0.1
    for t in (0.02, 0.1, 0.25, 0.4, 0.8):
        expected = min(t**-0.5, t * w**-1.5) * w**0.5
        assert lr_factor("inverse_sqrt", t, 0.8, w) == pytest.approx(expected)
    assert lr_factor("inverse_sqrt", 0.5, 0.5, 0.0) == pytest.approx(0.1)
    assert lr_factor("inverse_sqrt", 0.0, 0.5, 0.0) == 1.0


@pytest.mark.parametrize("schedule", DECAYING)
@pytest.mark.parametrize(("horizon", "warmup"), [(1.0, 0.0), (0.3, 0.0), (0.5, 0.2), (1 / 3, 0.1)])
def test_every_schedule_peaks_at_one_and_keeps_its_floor(
    schedule: ScheduleName, horizon: float, warmup: float
) -> None:
    """The factor stays in [0, 1], rises to 1 once, falls to the horizon and stays at its floor afterwards."""
    grid = [lr_factor(schedule, t / 3000, horizon, warmup) for t in range(3001)]
    peak = max(range(3001), key=grid.__getitem__)
    assert max(grid) == pytest.approx(1.0, abs=1e-3)
    assert min(grid) >= 0
    assert grid[: peak + 1] == sorted(grid[: peak + 1])
    assert grid[peak:] == sorted(grid[peak:], reverse=True)
    after = {lr_factor(schedule, t, horizon, warmup) for t in (horizon, (horizon + 1) / 2, 1.0, 1.5)}
    assert max(after) - min(after) < 1e-12
    assert max(after) < 0.7


def test_schedules_scale_with_the_horizon() -> None:
    """Without warm-up, a schedule over half of tau is the one over tau at twice the speed."""
    for schedule in DECAYING:
        for t in (0.0, 0.1, 0.2, 0.37, 0.5):
            assert lr_factor(schedule, t, 0.5, 0.0) == pytest.approx(lr_factor(schedule, 2 * t, 1.0, 0.0))


def test_steps_fall_where_they_should() -> None:
    """The step schedule drops at exactly a third of the way, whatever the fractions round to."""
    for warmup in range(30):
        for third in range(1, 30):
            horizon = (warmup + 3 * third) / 300
            factor = lr_factor("step", (warmup + third) / 300, horizon, warmup / 300)
            assert factor == 0.1
            assert lr_factor("step", (warmup + third - 0.01) / 300, horizon, warmup / 300) == 1.0
