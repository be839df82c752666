"""A/A: the whole comparison of a baseline with itself, many times; how often does it find a difference?

Each null arm is the baseline again, tuned with a Sobol scramble and tuning seeds of its own and confirmed on the seeds
that all arms share, as a technique would be: what is measured includes the luck of tuning, and of a whole family.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from study.analysis.words import number
from study.design.build import Request
from study.design.phases import SPLITS_APART
from study.place import Place
from study.session import Session, check
from study.statistics.nulls import null_shares
from study.statistics.verdicts import Rate, Verdict
from study.store.locations import Local
from study.workers.signals import end_with_parent
from vae.errors import UserError

#: Null arms beside a baseline at most: their seeds stand so far apart that more would meet those of another phase.
MAX_NULL_ARMS = 99


@dataclass(frozen=True)
class Said:
    """What was said of one null arm, in examples."""

    ratio: float
    p: float
    """The one that decides."""
    verdict: Verdict


@dataclass(frozen=True)
class Family:
    """One A/A comparison's outcome: a baseline and its null arms."""

    seed: int
    arms: tuple[Said, ...]

    @property
    def verdicts(self) -> list[Verdict]:
        """Each arm's."""
        return [arm.verdict for arm in self.arms]


def measure(place: Place, request: Request, n: int, null_arms: int, say: Callable[[str], None]) -> None:
    """Run and tell n A/A comparisons of so many null arms each, end to end, one a process.

    Each has a database of its own in a folder that is deleted in the end, and a seed of its own: another split, another
    calibration, other tuning points, other trainings. Raises UserError."""
    if n < 1:
        raise UserError(f"--aa {n}: at least one A/A comparison is needed.")
    if not 1 <= null_arms <= MAX_NULL_ARMS:
        raise UserError(f"--null-arms {null_arms}: from 1 to {MAX_NULL_ARMS} null arms can be compared.")
    techniques = null_techniques(null_arms)
    request = request.having(arms=[*techniques], techniques=techniques, stop_at_target=True, combine=False)
    families = []
    with tempfile.TemporaryDirectory(prefix="vae-study-aa-") as folder:
        places = _places(place, n, Path(folder))
        experiment, _ = check(places[0], request)
        first = experiment.seed
        if first + n > SPLITS_APART:
            raise UserError(
                f"--aa {n}: each comparison has a seed of its own, from --seed {first} on, and seeds end at "
                f"{SPLITS_APART - 1}: fewer, or a lower --seed."
            )
        comparisons, arms = "" if n == 1 else "s", "" if null_arms == 1 else "s"
        say(f"{n} A/A comparison{comparisons} of {null_arms} null arm{arms}, R = {experiment.blocks}")
        tasks = [(own, request.having(seed=first + i)) for i, own in enumerate(places)]
        for family in _in_processes(tasks, place.workers):
            say(f"  {_line(family)}")
            families.append(family)
    shares = null_shares([family.verdicts for family in families])
    say(
        f"families with a false verdict: {_share(shares.families)}; of those judged: {_share(shares.families_judged)}"
    )
    say(f"arms with a false verdict: {_share(shares.arms)}; of those judged: {_share(shares.arms_judged)}")
    say(f"arms without a verdict, for missing the target: {_share(shares.unjudged)}")


def _share(rate: Rate) -> str:
    if not rate.n:
        return "none"
    return f"{rate.k} of {rate.n} ({rate.share:.1%} [{rate.low:.1%}, {rate.high:.1%}])"


def _line(family: Family) -> str:
    if len(family.arms) == 1:
        (arm,) = family.arms
        figures = f"{arm.ratio:.3f}x, p {number(arm.p, '.3f')}, " if math.isfinite(arm.ratio) else ""
        return f"seed {family.seed}: {figures}{arm.verdict}"
    words = ", ".join(f"{n} {word}" for word, n in Counter(family.verdicts).items())
    ratios = [arm.ratio for arm in family.arms if math.isfinite(arm.ratio)]
    between = f"{min(ratios):.3f}x to {max(ratios):.3f}x, " if ratios else ""
    return f"seed {family.seed}: {between}{words}"


def null_techniques(n: int) -> dict[str, dict[str, Any]]:
    """n arms that are the baseline again, by name."""
    return {
        f"null-{i}": {"family": "null", "independent": True, "why": "The baseline again."}
        for i in range(1, n + 1)
    }


def _places(place: Place, n: int, folder: Path) -> list[Place]:
    """Where each of n comparisons works, in the folder."""
    return [
        replace(
            place,
            storage=f"sqlite:///{folder}/{i}.db",
            artifacts=Local(folder / str(i)),
            workers=1,
            threads=1,
        )
        for i in range(n)
    ]


def _in_processes(tasks: list[tuple[Place, Request]], workers: int) -> Iterator[Family]:
    # Spawned, not forked: torch's thread pools don't survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(_one, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """In a process of the pool, whose next tasks are in a queue already: end with the one that started it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    end_with_parent(parent.pid)


def _one(place: Place, request: Request) -> Family:
    import optuna
    import torch

    from study.analysis.standing import Standing

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    session = Session.prepare(place, request)
    with session.store:
        session.run_here()
        comparison = Standing.read(session.store, session.experiment.name).comparison
    assert comparison is not None
    measures = [arm.examples for arm in comparison.techniques if arm.examples is not None]
    said = (Said(m.ratio, math.nan if m.p_adjusted is None else m.p_adjusted, m.verdict) for m in measures)
    return Family(session.experiment.seed, tuple(said))
