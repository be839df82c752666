"""A/A: the whole comparison of a baseline with itself, many times; how often does it find a difference?

The second baseline is tuned with a Sobol scramble of its own and confirmed on seeds of its own, so what is
measured includes the luck of tuning (METHOD: "why a naive search can't answer the question").
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from study.design.build import Request
from study.place import Place
from study.session import Session, check
from study.statistics.verdicts import Rate, Verdict, false_verdict_rate
from study.workers.signals import end_with_parent
from vae.errors import UserError

NULL_ARM = "second-baseline"
NULL = {NULL_ARM: {"family": "null", "independent": True, "why": "The baseline again."}}


@dataclass(frozen=True)
class AA:
    """One A/A comparison's outcome."""

    seed: int
    ratio: float
    p: float
    verdict: Verdict


def measure(
    place: Place, request: Request, n: int, block_counts: Sequence[int], say: Callable[[str], None]
) -> None:
    """Run and tell n A/A comparisons for each R. Raises UserError."""
    if n < 1:
        raise UserError(f"--aa {n}: at least one A/A comparison is needed.")
    for blocks in block_counts:
        say(f"R = {blocks}: {n} A/A comparisons")
        results, rate = run_aa(
            place,
            request,
            n,
            blocks,
            lambda aa: say(f"  seed {aa.seed}: {aa.ratio:.3f}x, p {aa.p:.3f}, {aa.verdict}"),
        )
        say(
            f"R = {blocks}: false verdicts {rate.k} of {rate.n} ({rate.share:.0%} [{rate.low:.0%}, {rate.high:.0%}]), "
            f"p below 0.05 in {sum(result.p < 0.05 for result in results)} of {len(results)}"
        )


def run_aa(
    place: Place, request: Request, n: int, blocks: int, on_result: Callable[[AA], None]
) -> tuple[list[AA], Rate]:
    """n end-to-end A/A comparisons at R = blocks, one a process on each of the place's workers.

    Each has a database of its own in a temporary folder, and a seed of its own: another split, other tuning
    points, other trainings. Returns the outcomes by seed and the share of false verdicts. Raises UserError."""
    request = request.having(blocks=blocks, arms=[NULL_ARM], techniques=NULL, stop_at_target=True)
    first = int(request.values.get("seed") or 0)
    with tempfile.TemporaryDirectory(prefix="vae-study-aa-") as folder:
        places = [
            replace(
                place,
                storage=f"sqlite:///{folder}/{i}.db",
                artifacts=Path(folder) / str(i),
                workers=1,
                threads=1,
            )
            for i in range(n)
        ]
        check(places[0], request)
        tasks = [(places[i], request.having(seed=first + i)) for i in range(n)]
        results = []
        for result in _in_processes(tasks, place.workers):
            on_result(result)
            results.append(result)
    results.sort(key=lambda result: result.seed)
    return results, false_verdict_rate([result.verdict for result in results])


def _in_processes(tasks: list[tuple[Place, Request]], workers: int) -> Iterator[AA]:
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


def _one(place: Place, request: Request) -> AA:
    import optuna
    import torch

    from study.analysis.arm import find
    from study.analysis.evidence import read

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    session = Session.prepare(place, request)
    with session.store:
        session.run_here()
        comparison = read(session.store, session.experiment.name).comparison
    assert comparison is not None
    null = find(comparison.arms, NULL_ARM)
    assert null is not None
    assert null.examples is not None
    return AA(session.experiment.seed, null.examples.ratio, null.examples.estimate.p, null.examples.verdict)
