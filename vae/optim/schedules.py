"""Learning-rate schedules: what the peak is multiplied by, from the warm-up to the horizon."""

from __future__ import annotations

import math
from typing import assert_never

from vae.recipe import ScheduleName

# onecycle: torch.optim.lr_scheduler.OneCycleLR's defaults (pct_start, div_factor, final_div_factor)
_ONECYCLE_PEAK = 0.3
_ONECYCLE_START = 1 / 25
_ONECYCLE_FLOOR = _ONECYCLE_START / 1e4


def lr_factor(schedule: ScheduleName, t: float, horizon: float, warmup: float) -> float:
    """What the peak learning rate is multiplied by at time t; all times are fractions of tau, t >= 0.

    The factor rises linearly from 0 to 1 over the warm-up (Goyal et al. 2017). With s in [0, 1] the part gone
    of the way from its end to the horizon, it is then, and stays at its value at s = 1 (the floor) after it:

    - constant: 1. The horizon doesn't matter.
    - step: 1, 0.1, 0.01, dropping at s = 1/3 and 2/3.
    - exponential: 0.01^s.
    - linear: 1 - s.
    - cosine: (1 + cos(pi s)) / 2 (Loshchilov & Hutter 2017, one cycle).
    - inverse_sqrt: sqrt(w / t) from t = w on, where w is the warm-up, but at least 1 % of the horizon; the
      floor is sqrt(w / horizon): 0.1 without warm-up (Vaswani et al. 2017, eq. 3, scaled to a peak of 1).
    - onecycle: half a cosine up from 1/25 to 1, then half a cosine down to 4e-6 at the horizon (Smith & Topin
      2018 in torch's OneCycleLR form, without its cycling of momentum). The rise takes 30 % of the horizon,
      or the warm-up if there is one: it replaces the linear warm-up.
    """
    if schedule == "onecycle":
        peak = warmup if warmup > 0 else _ONECYCLE_PEAK * horizon
        if t < peak:
            return _half_cosine(_ONECYCLE_START, 1.0, t / peak)
        return _half_cosine(1.0, _ONECYCLE_FLOOR, min(1.0, (t - peak) / (horizon - peak)))
    if t < warmup:
        return t / warmup
    if schedule == "constant":
        return 1.0
    s = min(1.0, (t - warmup) / (horizon - warmup))
    if schedule == "step":
        # 1e-9: t is a quotient of integers, and s = 1/3 must not fall short of it by rounding
        return (1.0, 0.1, 0.01)[min(2, math.floor(3 * s + 1e-9))]
    if schedule == "exponential":
        return math.exp(math.log(0.01) * s)
    if schedule == "linear":
        return 1.0 - s
    if schedule == "cosine":
        return _half_cosine(1.0, 0.0, s)
    if schedule == "inverse_sqrt":
        flat = max(warmup, 0.01 * horizon)
        return math.sqrt(flat / min(max(t, flat), horizon))
    assert_never(schedule)


def _half_cosine(start: float, end: float, s: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * s)) / 2.0
