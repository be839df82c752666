"""Guided tuning of one arm (METHOD steps 2 and 3): coarse points, then rounds round the vertex of its response.

Everything follows from the runs of the rounds that have ended, so it is the same for any number of workers, after any
kill, and in a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from study.design.phases import GUIDED_ROUNDS
from study.design.space import Dimension, Space, is_range
from study.statistics.curves import Curve, targets_reached
from study.statistics.response import Axis, Reference, Response, losses_at, reference, respond
from vae.recipe import MAX_LR


@dataclass(frozen=True, eq=False)
class TuningRun:
    """One tuning trial that has ended with a curve."""

    params: Mapping[str, Any]
    curve: Curve


@dataclass(frozen=True, eq=False)
class Round:
    """Points to run next: each to `examples`, all on the round's own seed."""

    number: int
    """1 for the first after the coarse points."""
    points: list[dict[str, Any]]
    space: Space
    """The dimensions that the points are of: a range may have been widened."""
    examples: float


@dataclass(frozen=True, eq=False)
class Guided:
    """What guided tuning has found."""

    params: dict[str, Any]
    """The vertex: it need not have been trained."""
    space: Space
    """The dimensions it is a point of: a range may have been widened."""
    reached: bool
    """Whether a coarse point reached the tuning target."""
    where: Reference
    widened: tuple[str, ...] = ()
    """Ranges that were widened because a vertex lay on their edge: "lr high"."""
    edges: tuple[str, ...] = ()
    """Fields whose vertex lies on an edge of the range in the end: "lr high"."""
    fields: tuple[str, ...] = ()
    """The fields of the response's axes, in their order."""
    response: Response | None = None
    """None where there was nothing to guide: a single point, or choices alone."""

    def variance(self, rng: np.random.Generator) -> float:
        """What E may still owe to the luck of this tuning, in ln E (`Response.tuning_variance`)."""
        return 0.0 if self.response is None else self.response.tuning_variance(rng)


def guide(
    space: Space, rounds: Sequence[Sequence[TuningRun]], *, target: float, tau: float, slope: float
) -> Round | Guided | None:
    """What an arm's tuning asks for next, or what it has found; None where no coarse point left a curve.

    `rounds`: the coarse points, then each round that has ended. `target`: the tuning target, nats per example;
    `slope`: the calibration's, nats per e-fold of examples, above 0, or NaN where it is unknown. Choices and whole
    numbers stay as the best coarse point has them, and only runs that share them say something of the rest.
    """
    coarse = rounds[0]
    if not coarse:
        return None
    curves = [run.curve for run in coarse]
    where = reference(curves, target, tau, slope)
    best = dict(coarse[int(losses_at(curves, where.examples).argmin())].params)
    reached = bool(targets_reached(curves, target)[1].any())
    fields = tuple(field for field in best if is_range(field, space[field]))
    if not fields or len(coarse) < 2:
        return Guided(best, space, reached, where)
    others = {field: value for field, value in best.items() if field not in fields}
    alike = [
        [run for run in runs if all(run.params.get(field) == value for field, value in others.items())]
        for runs in rounds
    ]
    axes = tuple(_axis(field, space[field]) for field in fields)
    known = [run for runs in alike for run in runs]
    response = respond(
        axes,
        np.array(
            [[_coordinate(field, space[field], run.params[field]) for field in fields] for run in known]
        ),
        losses_at([run.curve for run in known], where.examples),
        where.slope,
        np.repeat(np.arange(len(rounds)), [len(runs) for runs in alike]),
    )
    number = len(rounds)
    if number <= GUIDED_ROUNDS:
        response = response.widened()
        wide = _widened(space, fields, axes, response.axes)
        params = [best | _values(fields, wide, point) for point in response.next_points()]
        return Round(number, params, wide, where.examples)
    wide = _widened(space, fields, axes, response.axes)
    return Guided(
        best | _values(fields, wide, response.vertex),
        wide,
        reached,
        where,
        widened=_sides(fields, [_grown(*pair) for pair in zip(axes, response.axes, strict=True)]),
        edges=_sides(
            fields, [axis.edge(float(v)) for axis, v in zip(response.axes, response.vertex, strict=True)]
        ),
        fields=fields,
        response=response,
    )


def _sides(fields: Sequence[str], sides: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(f"{field} {side}" for field, side in zip(fields, sides, strict=True) if side)


def _grown(before: Axis, after: Axis) -> str | None:
    sides = [
        side for side, grown in (("low", after.low < before.low), ("high", after.high > before.high)) if grown
    ]
    return " and ".join(sides) or None


def _axis(field: str, dimension: Dimension) -> Axis:
    assert dimension.low is not None
    assert dimension.high is not None
    if field != "lr":
        return Axis.knob()
    axis = Axis.lr(dimension.low, dimension.high)
    return replace(axis, spare_high=min(axis.spare_high, float(np.log10(MAX_LR)) - axis.high))


def _coordinate(field: str, dimension: Dimension, value: float) -> float:
    return float(np.log10(value)) if field == "lr" else dimension.unit(value)


def _widened(space: Space, fields: Sequence[str], before: Sequence[Axis], after: Sequence[Axis]) -> Space:
    """The space with the ranges that its axes have by now."""
    wide = dict(space)
    for field, old, new in zip(fields, before, after, strict=True):
        if _grown(old, new):
            high = min(10.0**new.high, MAX_LR)  # to the last bit
            wide[field] = Dimension(low=10.0**new.low, high=high, log=space[field].log)
    return wide


def _values(fields: Sequence[str], space: Space, point: np.ndarray) -> dict[str, Any]:
    """Recipe values of a point in the axes' coordinates, within their ranges to the last bit."""
    values = {}
    for field, at in zip(fields, point, strict=True):
        dimension = space[field]
        assert dimension.low is not None
        assert dimension.high is not None
        value = 10.0 ** float(at) if field == "lr" else dimension.at(field, float(at))
        values[field] = min(max(value, dimension.low), dimension.high)
    return values
