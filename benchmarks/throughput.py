"""Examples per second of one VAE in several libraries, in this project, and of the machine's bare arithmetic.

784-500-30, ReLU, Adam at 1e-3, batch 256, cross-entropy on grey pixels, Fashion-MNIST's training split cut to
full batches. Every contestant is a process of its own that waits while another trains. A round is an epoch of
each, in an order that rotates; the first, which compiles and warms up, isn't counted. At the end all have seen
the same number of examples, and the validation loss says whether they learnt the same.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.throughput_peers import (
    CONTESTANTS,
    Contestant,
    CrashError,
    Process,
    install,
    interpreter_for,
    lacking,
)
from benchmarks.throughput_table import (
    BEYOND,
    TITLES,
    Result,
    beyond,
    beyond_the_limit,
    limit_of,
    ratios,
    render,
    rows,
    spread,
    versions_told,
)
from vae.data.dataset import Split, load
from vae.errors import FailureError, UserError, did_you_mean
from vae.evaluation import GRID_IMAGES

BATCH = 256
OURS = "benchmarks.peers.ours"
#: Steps of a slice of the digits part, about a second.
DIGITS_STEPS = 2_000
#: Share of a slice's time that a waiting process may have used up before it is told.
IDLE_SHARE = 0.01
#: Seconds before a slice: OpenMP's threads spin for some milliseconds after the one before.
SETTLE = 0.05
#: What decides how OpenMP's threads wait, told above the table.
OPENMP_WAITING = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads each; default: all cores.")] = None,
    only: Annotated[str | None, typer.Option(help="Contestants, separated by commas.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=BATCH, help="Training images; default: the whole split.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown tables.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write raw figures to this file.")] = None,
    workers_together: Annotated[bool, typer.Option(help="Then one-thread processes side by side.")] = True,
    digits: Annotated[bool, typer.Option(help="Then a small step on one thread.")] = True,
    install_peers: Annotated[
        bool, typer.Option("--install", help="First install what is missing into .bench/.")
    ] = False,
) -> None:
    """Examples per second against other libraries and the machine's own limit, in interleaved rounds."""
    try:
        chosen = choose(only)
        if install_peers and any(interpreter_for(contestant) is None for contestant in chosen):
            install()
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    except FailureError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    threads = threads or available_cpus()
    raw = {"cpu": cpu_name(), "threads": threads, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        n = write_arrays(path, "fashion-mnist", BATCH, examples)
        typer.echo(
            f"{raw['cpu']}, {threads} threads, torch {torch.__version__}, {rounds} rounds of {n:,} examples "
            "after one that isn't counted"
        )
        options = ["--data", str(path), "--threads", str(threads), *cpu_options(threads)]
        results = run(chosen, options, rounds)
        tell(results, markdown=markdown)
        raw["contestants"] = {name: asdict(result) for name, result in results.items()}
        if workers_together:
            limits = {name: result for name, result in results.items() if name.startswith("limit")}
            raw["together"] = tell_together(path, threads, rounds, limits, markdown=markdown)
        if digits:
            raw["digits"] = tell_digits(Path(folder), rounds, markdown=markdown)
    if json_path is not None:
        json_path.write_text(json.dumps(raw, indent=1), encoding="utf-8")


def choose(only: str | None) -> list[Contestant]:
    """The contestants named, or all. Raises UserError."""
    by_name = {contestant.name: contestant for contestant in CONTESTANTS}
    names = list(by_name) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in by_name:
            raise UserError(f"No contestant '{name}'. {did_you_mean(name, by_name)}")
    return [by_name[name] for name in names]


def write_arrays(path: Path, source: str, batch: int, limit: int | None = None) -> int:
    """Write the project's own split as uint8, the training images cut to full batches; how many those are."""
    data = load(source)
    n = min(len(data.train), limit or len(data.train)) // batch * batch
    np.savez(path, train=_pixels(data.train, n), valid=_pixels(data.valid, GRID_IMAGES))
    return n


def _pixels(split: Split, n: int) -> np.ndarray:
    return np.asarray(split.all(n).mul(255).round().to(torch.uint8))


@contextmanager
def started(
    contestants: list[Contestant], options: list[str]
) -> Iterator[tuple[dict[str, Process], dict[str, Result]]]:
    """The processes that came up, by name, and a Result for each contestant; all are killed at the end."""
    processes: dict[str, Process] = {}
    results = {contestant.name: Result(contestant.name) for contestant in contestants}
    with ExitStack() as stack:
        for contestant in contestants:
            interpreter, reason = interpreter_for(contestant), lacking(contestant)
            if interpreter is None or reason is not None:
                results[contestant.name].error = reason
                typer.echo(f"{contestant.name}: skipped, {reason}")
                continue
            # One after the other: a start-up is timed too.
            process = stack.enter_context(Process(contestant, interpreter, options))
            with _crash_told(processes, results[contestant.name]):
                answer = process.ready()
                result = results[contestant.name]
                result.startup_seconds = answer["startup_seconds"]
                result.parameters, result.versions = answer["parameters"], answer["versions"]
                processes[contestant.name] = process
        yield processes, results


@contextmanager
def _crash_told(processes: dict[str, Process], result: Result) -> Iterator[None]:
    try:
        yield
    except CrashError as crash:
        result.error = str(crash)
        processes.pop(result.name, None)
        typer.echo(f"{result.name}: crashed: {crash}")


def run(contestants: list[Contestant], options: list[str], rounds: int) -> dict[str, Result]:
    """A first slice of each, then the rounds, then every loss."""
    with started(contestants, options) as (processes, results):
        for round_number in range(rounds + 1):
            typer.echo(f"round {round_number} of {rounds}", err=True)
            for name in rotated(list(processes), round_number):
                result = results[name]
                time.sleep(SETTLE)
                with _crash_told(processes, result):
                    processes[name].ask("train")
                    answer = processes[name].answer()
                    result.examples += answer["examples"]
                    if round_number == 0:
                        result.first_seconds = answer["seconds"]
                    else:
                        result.slices.append(answer)
        for name in list(processes):
            with _crash_told(processes, results[name]):
                processes[name].ask("loss")
                results[name].loss = processes[name].answer()["loss"]
    return results


def rotated(names: list[str], by: int) -> list[str]:
    """The names in the order of one round: each comes first in its turn, so a drift within rounds favours nobody."""
    by %= max(1, len(names))
    return names[by:] + names[:by]


def tell(results: dict[str, Result], *, markdown: bool) -> None:
    """Versions, the table, and whatever makes it unfair."""
    typer.echo(f"Python {platform.python_version()}, {versions_told(results.values())}")
    waiting = [f"{name}={os.environ[name]}" for name in OPENMP_WAITING if name in os.environ]
    if waiting:
        typer.echo(f"Threads wait with {', '.join(waiting)}")
    typer.echo(
        "Medians [least, most] over rounds; ratios are of the same round; compiled from an empty cache.\n"
        "Validation loss: negative ELBO at beta 1, nats per example, after the same number of examples.\n"
    )
    typer.echo(render([TITLES, *rows(results)], markdown=markdown) + "\n")
    for line in beyond_the_limit(results):
        typer.echo(line)
    ran = [result for result in results.values() if result.slices]
    sizes = {result.parameters for result in ran}
    if len(sizes) > 1:
        typer.echo(f"Not the same model: parameters {', '.join(f'{r.name} {r.parameters:,}' for r in ran)}")
    cores = ", ".join(f"{result.name} {result.cores:.1f}" for result in ran)
    typer.echo(f"Processors kept busy while training: {cores}")
    for result in ran:
        idle = sum(answer["idle_cpu_seconds"] for answer in result.slices)
        trained = sum(answer["seconds"] for answer in result.slices)
        # What it spins in the pause after a slice disturbs nobody.
        if idle > IDLE_SHARE * trained + SETTLE * len(result.slices):
            typer.echo(
                f"{result.name} used {idle:.2f} s of processor while it waited: the others' rates suffer"
            )


def tell_together(
    path: Path, threads: int, rounds: int, limits: dict[str, Result], *, markdown: bool
) -> dict[str, list[float]]:
    """Examples per second of as many one-thread processes as threads, training at once."""
    table = [(f"{threads} processes of one thread", "examples/s together", "of the limit")]
    rates: dict[str, list[float]] = {}
    wrong: list[str] = []
    for kind, arguments in {"ours": (), "ours-bf16": ("--bf16",)}.items():
        team = [Contestant(f"{kind} {i + 1}", OURS, arguments) for i in range(threads)]
        rates[kind] = together(team, ["--data", str(path), "--threads", "1"], rounds)
        if not rates[kind]:
            continue
        limit = limit_of(kind, limits)
        if limit is None or not limit.slices:
            share = "-"
        else:
            reached = float(np.median(rates[kind]) / np.median(limit.rates))
            share = f"{reached:.0%}"
            wrong += [beyond(f"{kind}, {threads} processes", reached)] if reached > BEYOND else []
        table.append((kind, spread(np.array(rates[kind]), "{:,.0f}"), share))
    typer.echo("\n" + render(table, markdown=markdown))
    for line in wrong:
        typer.echo(line)
    return rates


def together(team: list[Contestant], options: list[str], rounds: int) -> list[float]:
    """Examples per second of the team as a whole, one figure a round; all start a slice at once."""
    rates = []
    with started(team, options) as (processes, _):
        if len(processes) < len(team):
            return []
        try:
            for _ in range(rounds + 1):
                for process in processes.values():
                    process.ask("train")
                answers = [process.answer() for process in processes.values()]
                examples = sum(answer["examples"] for answer in answers)
                rates.append(examples / max(answer["seconds"] for answer in answers))
        except CrashError as crash:
            typer.echo(f"{team[0].name}: crashed: {crash}")
    return rates[1:]


def tell_digits(folder: Path, rounds: int, *, markdown: bool) -> dict[str, list[float]]:
    """Microseconds a step of 64-128-8, batch 64, on one thread."""
    path = folder / "digits.npz"
    write_arrays(path, "digits", 64)
    options = ["--data", str(path), "--hidden", "128", "--latent", "8", "--batch", "64", "--threads", "1"]
    team = [Contestant("ours", OURS), Contestant("ours-compiled", OURS, ("--compile",))]
    results = run(team, [*options, "--steps", str(DIGITS_STEPS)], rounds)
    micros = {name: 64e6 / result.rates for name, result in results.items() if result.slices}
    gain = ratios(results["ours-compiled"], results["ours"])
    titles = ("digits, 64-128-8, batch 64, one thread", "microseconds a step", "x ours")
    table = [titles] + [
        (name, spread(values, "{:.0f}"), spread(gain) if name == "ours-compiled" else "1.00")
        for name, values in micros.items()
    ]
    typer.echo("\n" + render(table, markdown=markdown))
    return {name: values.tolist() for name, values in micros.items()}


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_options(threads: int) -> list[str]:
    """With fewer threads than processors, hold everyone to as many: not every library can be told a number."""
    if not hasattr(os, "sched_getaffinity") or threads >= available_cpus():
        return []
    return ["--cpus", ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))]


def cpu_name() -> str:
    """The processor's name as its maker writes it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
