"""How often verdicts are wrong, found or missing: whole studies, drawn from real learning curves.

Every study draws its own Sobol points, tuning seeds, calibration and confirmation seeds, and is judged by the
product's own functions (`study.statistics`); only the training is replaced by a table of curves. `before` is the
protocol of two finalists, `guided` that of METHOD: coarse points, two guided rounds, the vertex.

No constant may be chosen by these figures and be believed by them: use other seeds for one and the other (--seed).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import typer
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from benchmarks.verdict_world import BASELINE, OUTPUT_BIAS, Rows, World, world
from study.design.space import Dimension, sobol_points
from study.protocol.selection import judge
from study.statistics.calibration import Calibration, calibrate_target
from study.statistics.curves import MISS, Array, Curve, Hits, best_points, targets_reached, tuning_score
from study.statistics.family import MARGIN
from study.statistics.judgement import Pair, judge_family
from study.statistics.nulls import null_shares
from study.statistics.response import Axis, losses_at, reference, respond
from study.statistics.speed_up import simultaneous_interval, speed_up
from study.statistics.verdicts import Rate, Verdict, rate, verdict

K = 8
CALIBRATION_SEEDS = 5
TARGET_AT = 0.5
LOW, HIGH = 3e-4, 3e-2


@dataclass(frozen=True)
class Tuned:
    """What tuning found, and what it cost in examples."""

    lr: float
    variance: float
    cost: float


#: Simultaneous limits of each arm's ratio.
Limits = list[tuple[float, float]]


@dataclass(frozen=True)
class Confirmed:
    """Confirmation of every arm on the same S seeds, the baseline first."""

    examples: list[Array]  # (S,) each, misses at tau
    hits: list[Hits]  # (S,) each
    tuned: list[Tuned]


@dataclass(frozen=True)
class Protocol:
    """One way to tune, confirm and judge."""

    name: str
    seeds: int
    tune: Callable[[World, Calibration, np.random.Generator], Tuned]
    conclude: Callable[[Confirmed], tuple[list[Verdict], Limits]]
    finalists: bool = False
    """The point that is calibrated on is chosen over more seeds than one."""
    spare: int = 0
    """Calibration seeds that may miss the target."""


@dataclass(frozen=True)
class Scenario:
    """What the arms of a study really are: their true speed-ups, None for the technique that was really trained.
    `paired`: all arms share their confirmation seeds."""

    name: str
    ratios: Sequence[float | None]
    paired: bool = True


@dataclass(frozen=True)
class Table:
    """Which curves a study is drawn from, as `World` has it."""

    smooth: bool = True
    held_out: bool = False

    def world(self, ratio: float | None) -> World:
        """The world of an arm with this true speed-up."""
        if ratio is None:
            return world(OUTPUT_BIAS, self.smooth, held_out=False, speed_up=1.0)
        return world(BASELINE, self.smooth, self.held_out, ratio)


@dataclass(frozen=True)
class Study:
    """One simulated study of M arms."""

    truth: Array  # (M,) true ratios
    verdicts: list[Verdict]
    limits: Array  # (M, 2) simultaneous; NaN for what wasn't judged
    cost: float  # tau an arm, the baseline counted as one
    lost: Array  # (M + 1,) ln of the expected E at the tuned lr over that at the best one, the baseline first


def coarse(at: World, rng: np.random.Generator, high: float = HIGH) -> tuple[Array, list[Curve]]:
    """K Sobol points of a range that ends at `high`, and their runs on one tuning seed."""
    space = {"lr": Dimension(low=LOW, high=high, log=True)}
    lrs = np.array([p["lr"] for p in sobol_points(space, {}, K, int(rng.integers(2**31)))])
    row = int(rng.integers(at.rows))
    return lrs, [at.train(float(lr), row, rng) for lr in lrs]


def capped_cost(E: Array, keep: int) -> float:
    """Examples of runs one after the other, each ended at its target or where `keep` earlier ones were faster."""
    cost = 0.0
    for i, examples in enumerate(E):
        best = np.sort(E[:i])[keep - 1] if i >= keep else np.inf
        cost += min(float(examples), float(best))
    return cost


def best_finalist(
    at: World,
    lrs: Array,
    curves: Sequence[Curve],
    score: Callable[[Curve], float],
    miss: float,
    rng: np.random.Generator,
) -> tuple[float, list[Curve]]:
    """The better of the two best points over two more seeds each, and the runs that this took."""
    finalists = best_points([score(curve) for curve in curves], 2)
    seeds = at.draw_rows(2, rng)
    reruns = [at.train_all(float(lrs[i]), seeds, rng) for i in finalists]
    scores = [
        np.array([score(curve) for curve in (curves[i], *again)])
        for i, again in zip(finalists, reruns, strict=True)
    ]
    return float(lrs[finalists[judge(scores, miss)]]), [curve for again in reruns for curve in again]


def tune_finalists(at: World, calibration: Calibration, rng: np.random.Generator) -> Tuned:
    """Coarse points, the best two on two more seeds: fewest misses, then the lowest mean score."""
    target = calibration.tuning_target
    lrs, curves = coarse(at, rng)
    lr, reruns = best_finalist(
        at, lrs, curves, lambda curve: tuning_score(curve, target, at.tau), miss=MISS, rng=rng
    )
    cost = capped_cost(at.examples(curves, target), keep=2) + float(at.examples(reruns, target).sum())
    return Tuned(lr, 0.0, cost)


def tune_guided(
    at: World, calibration: Calibration, rng: np.random.Generator, high: float = HIGH, widen: bool = True
) -> Tuned:
    """Coarse points of a range that ends at `high`, two guided rounds, the vertex."""
    lrs, curves = coarse(at, rng, high)
    compared = reference(curves, calibration.tuning_target, at.tau, -calibration.slope / np.log(2.0))
    cost = capped_cost(at.examples(curves, calibration.tuning_target), keep=1)
    axis = Axis.lr(LOW, high)
    axes = (axis if widen else replace(axis, spare_low=0.0, spare_high=0.0),)
    points, losses = np.log10(lrs)[:, None], losses_at(curves, compared.examples)
    rounds = np.zeros(K, dtype=np.int64)
    for number in (1, 2):
        more = respond(axes, points, losses, compared.slope, rounds).widened().next_points()
        row = int(rng.integers(at.rows))
        runs = [at.train(float(10.0**lr), row, rng) for (lr,) in more]
        points = np.concatenate([points, more])
        losses = np.concatenate([losses, losses_at(runs, compared.examples)])
        rounds = np.concatenate([rounds, np.full(len(more), number)])
        cost += len(more) * compared.examples
    response = respond(axes, points, losses, compared.slope, rounds)
    return Tuned(float(10.0 ** response.vertex[0]), response.tuning_variance(rng), cost)


def judge_before(arms: Confirmed) -> tuple[list[Verdict], Limits]:
    """Margin 5 %, the simultaneous interval of each arm's own spread; one miss and there is no verdict."""
    estimates = [speed_up(arms.examples[0], A) for A in arms.examples[1:]]
    verdicts = [
        verdict(estimate, hit, arms.hits[0], family=len(estimates), margin=0.05)
        for estimate, hit in zip(estimates, arms.hits[1:], strict=True)
    ]
    return verdicts, [simultaneous_interval(estimate, len(estimates)) for estimate in estimates]


def judge_guided(arms: Confirmed) -> tuple[list[Verdict], Limits]:
    """Spread shared between arms, the luck of tuning in the interval, Holm's p against the margin, first look."""
    n = len(arms.examples[0])
    pairs = [
        Pair(np.arange(n), arms.examples[0], arms.hits[0], E, hit, tuning_variance=tuned.variance)
        for E, hit, tuned in zip(arms.examples[1:], arms.hits[1:], arms.tuned[1:], strict=True)
    ]
    family = judge_family(pairs, baseline_variance=arms.tuned[0].variance, looks=[n], margin=MARGIN)
    said = [found[0] for found in family if found is not None]
    return [arm.verdict for arm in said], [arm.simultaneous for arm in said]


def calibrate(base: World, protocol: Protocol, rng: np.random.Generator) -> Calibration:
    """The target of one study: the baseline's best point by final loss, on five fresh seeds."""
    lrs, curves = coarse(base, rng)

    def final(curve: Curve) -> float:
        # A training that was stopped ahead of tau got there with less: the earlier, the better.
        return float(curve.valid_loss[-1]) + 0.01 * float(np.log(curve.examples[-1] / base.tau))

    if protocol.finalists:
        best, _ = best_finalist(base, lrs, curves, final, miss=np.inf, rng=rng)
    else:
        best = float(lrs[best_points([final(curve) for curve in curves], 1)[0]])
    runs = base.train_all(best, base.draw_rows(CALIBRATION_SEEDS, rng), rng)
    return calibrate_target(runs, base.tau, TARGET_AT, spare=protocol.spare)


def simulate(protocol: Protocol, scenario: Scenario, of: Table, rng: np.random.Generator) -> Study:
    """One study from calibration to verdicts."""
    base = of.world(1.0)
    arms = [of.world(ratio) for ratio in scenario.ratios]
    calibration = calibrate(base, protocol, rng)
    tuned = [protocol.tune(at, calibration, rng) for at in (base, *arms)]
    seeds: Rows = base.draw_rows(protocol.seeds, rng)
    runs = [base.train_all(tuned[0].lr, seeds, rng)]
    for at, arm in zip(arms, tuned[1:], strict=True):
        rows = at.paired_rows(seeds, rng) if scenario.paired else at.draw_rows(protocol.seeds, rng)
        runs.append(at.train_all(arm.lr, rows, rng))
    E = [at.examples(curves, calibration.target) for at, curves in zip((base, *arms), runs, strict=True)]
    hits = [targets_reached(curves, calibration.target)[1] for curves in runs]
    verdicts, limits = protocol.conclude(Confirmed(E, hits, tuned))
    limits = [pair if word.judged else (np.nan, np.nan) for pair, word in zip(limits, verdicts, strict=True)]
    cost = (sum(arm.cost for arm in tuned) + sum(float(e.sum()) for e in E)) / base.tau / len(tuned)
    expected = {at: expected_log_examples(at, calibration.target) for at in {base, *arms}}
    lost = [
        np.interp(np.log(arm.lr), np.log(at.lrs), expected[at]) - expected[at].min()
        for at, arm in zip((base, *arms), tuned, strict=True)
    ]
    truth = [
        float(np.exp(expected[base].min() - expected[at].min())) if ratio is None else ratio
        for at, ratio in zip(arms, scenario.ratios, strict=True)
    ]
    return Study(np.array(truth), verdicts, np.array(limits), cost, np.array(lost))


def expected_log_examples(at: World, target: float) -> Array:
    """ln of the mean E over all seeds at each learning rate of the table, (24,)."""
    return np.log([at.examples(curves, target).mean() for curves in at.curves])


PROTOCOLS = {
    "before": Protocol("before", 10, tune_finalists, judge_before, finalists=True),
    "guided": Protocol("guided", 20, tune_guided, judge_guided, spare=1),
}
SCENARIOS = (
    Scenario("10 nulls", [1.0] * 10),
    Scenario("33 nulls", [1.0] * 33),
    Scenario("1 null on seeds of its own", [1.0], paired=False),
    Scenario("1.1, 1.2, 1.5, 1 / 1.2 and 6 nulls", [1.1, 1.2, 1.5, 1 / 1.2, *[1.0] * 6]),
    Scenario("output-bias as it was trained", [None]),
)


def figures(scenario: Scenario, studies: Sequence[Study]) -> dict[str, str]:
    """What studies got wrong, found and cost, a line each."""
    truth = np.array([study.truth for study in studies])
    limits = np.array([study.limits for study in studies])
    null = truth == 1.0
    nulls = null_shares(
        [
            [word for word, ratio in zip(study.verdicts, study.truth, strict=True) if ratio == 1.0]
            for study in studies
        ]
    )
    missed = ((limits[..., 0] > truth) | (limits[..., 1] < truth)).any(axis=1)
    lines = {}
    if null.any():
        lines = {
            "families with a false verdict": words(nulls.families),
            "nulls with a false verdict, of all": words(nulls.arms),
            "nulls with a false verdict, of those judged": words(nulls.arms_judged),
            "nulls without a verdict": words(nulls.unjudged),
        }
    lines["families whose simultaneous intervals all hold"] = words(rate(int((~missed).sum()), len(studies)))
    for k, ratio in enumerate(scenario.ratios):
        if ratio == 1.0:
            continue
        true = float(np.mean(truth[:, k]))
        right = sum(
            study.verdicts[k] is (Verdict.FASTER if true > 1.0 else Verdict.SLOWER) for study in studies
        )
        lines[f"found, true ratio {true:.2f}"] = words(rate(right, len(studies)))
    lost = np.array([study.lost for study in studies])
    lines["cost, tau an arm"] = f"{np.mean([study.cost for study in studies]):.1f}"
    lines["ln E lost to tuning, mean"] = f"{lost.mean():.3f}"
    lines["sd of two tunings' difference"] = f"{(lost[:, 1:] - lost[:, :1]).std():.3f}"
    return lines


def words(share: Rate) -> str:
    """A share with its interval and counts."""
    return (
        f"{share.share:.1%} [{share.low:.1%}, {share.high:.1%}], {share.k} of {share.n}" if share.n else "-"
    )


def main(
    studies: Annotated[
        int, typer.Option(min=1, help="Studies of ten arms; a quarter of 33, twice as many of one.")
    ] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="The curves unsmoothed over lr.")] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only seeds that no constant was chosen on.")
    ] = False,
) -> None:
    """False verdicts, coverage, power and cost of the protocols on real curves."""
    table = Table(not raw, held_out)
    typer.echo(
        f"seed {seed}, {'raw' if raw else 'smoothed over lr'}, {'held-out' if held_out else 'all'} seeds"
    )
    for scenario in SCENARIOS:
        arms = len(scenario.ratios)
        n = 2 * studies if arms == 1 else studies if arms == 10 else max(1, studies // 4)
        for protocol in PROTOCOLS.values():
            start = time.perf_counter()
            rng = np.random.default_rng([seed, *map(ord, scenario.name + protocol.name)])
            with threadpool_limits(1):  # matrices of 80 rows: threads would take ten times as long
                lines = figures(scenario, [simulate(protocol, scenario, table, rng) for _ in range(n)])
            seconds = time.perf_counter() - start
            typer.echo(f"\n{protocol.name}: {scenario.name}, {n} studies ({seconds:.0f} s)")
            for what, figure in lines.items():
                typer.echo(f"  {what:50}{figure}")
