"""The command that plays stopping early again over recorded curves; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from study.cli.analyse import ColumnOptions, Sources, refuse_mixed
from study.cli.options import DEFAULT_STORAGE, REPORTS, Json, Storage
from study.cli.terminal import beside, out, print_document, quiet, say
from vae.command import grouped
from vae.errors import UserError

if TYPE_CHECKING:
    from study.analysis.replayed import Recording, Replayed

N = TypeVar("N", int, float)


@grouped
def replay(
    columns: ColumnOptions,
    sources: Sources = None,
    name: Annotated[
        str | None, typer.Option("--name", help="An experiment of --storage in the place of files.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    phase: Annotated[
        str | None, typer.Option("--phase", help="With --name: search, confirm or calibration.")
    ] = None,
    every: Annotated[
        int, typer.Option("--every", help="Of files: evaluations between two reports to a pruner.")
    ] = 1,
    orders: Annotated[int, typer.Option("--orders", help="Random orders of arrival.")] = 200,
    workers: Annotated[
        str,
        typer.Option(
            "--simulated-workers",
            metavar="W,...",
            help="Numbers of simulated workers; the first is recommended for.",
        ),
    ] = "1,4",
    patience: Annotated[
        str | None,
        typer.Option(
            "--patience",
            metavar="N,...",
            help="Evaluations without a better value; default: 10 and 20 % of a run.",
        ),
    ] = None,
    min_delta: Annotated[
        str | None,
        typer.Option(
            "--min-delta", metavar="D,...", help="By how much a value must be better, with each patience."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Optuna's threshold; default: the median a quarter into the runs."),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option("--target", help="The value that capping aims at; default: the median run's."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", help="Regret that counts as small: a share of the gap from best to median run."
        ),
    ] = 0.05,
    order_seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the orders.")] = 0,
    processes: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes that compute it; default: one a core.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option("--out", help="Page to write; default: reports/NAME-replay.html.")
    ] = None,
    json: Json = False,
) -> None:
    """What each pruner and patience rule would have saved and cost, on recorded complete curves."""
    quiet()
    from study.analysis.replayed import Settings
    from study.analysis.replayed import replay as play
    from study.place import cores, require_writable
    from study.report.replay_page import write_replay

    if path is not None and path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file, for example {path / 'replay.html'}.")
    # None is 0 to a maximised value too, which is held negated.
    sign = -1.0 if columns.maximise else 1.0
    settings = Settings(
        orders=orders,
        workers=_numbers("--simulated-workers", workers, int),
        seed=order_seed,
        tolerance=tolerance,
        patience=_numbers("--patience", patience, int),
        min_delta=_numbers("--min-delta", min_delta, float),
        threshold=None if threshold is None else sign * threshold,
        target=None if target is None else sign * target,
    )
    settings.require()
    recording = _recording(sources, name, storage, columns, phase, every)
    path = path or REPORTS / f"{recording.name}-replay.html"
    require_writable(path.parent, "The folder of the page")
    n = len(recording.tapes.runs)
    say(f"{n} complete runs; {orders} orders of arrival with {workers} simulated workers ...")
    found = play(recording, settings, processes or cores())
    with beside(json):
        _print(found)
        out.print(f"Report: {write_replay(found, path)}", soft_wrap=True)
    if json:
        from study.analysis.document import of_replay

        print_document(of_replay(found))


def _recording(
    sources: list[str] | None,
    name: str | None,
    storage: str,
    columns: ColumnOptions,
    phase: str | None,
    every: int,
) -> Recording:
    from study.analysis.replayed import from_curves, recorded
    from study.curves.read import called
    from study.store.store import Store

    refuse_mixed(
        sources,
        of_files={"An option of columns": columns.given, "--every": every != 1},
        of_database={"--name": name is not None, "--phase": phase is not None},
    )
    if not sources:
        with Store.open(storage, read_only=True) as store:
            return recorded(store, store.pick_name(name), phase)
    return from_curves(Path(called(sources[0])).stem, columns.read(sources), every)


def _told(correlation: float) -> str:
    """Where the early values are all the same there is none."""
    return "undefined" if math.isnan(correlation) else f"{correlation:.2f}"


def _numbers(option: str, text: str | None, kind: Callable[[str], N]) -> tuple[N, ...]:
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"{option} {text}: write numbers with commas between them, such as 1,4.") from None


def _print(found: Replayed) -> None:
    from study.analysis.replayed import notes, sentences
    from study.cli.tables import replay_table
    from study.curves.recorded import described

    for line in described(found.recording.curves):
        out.print(line, soft_wrap=True)
    for workers in dict.fromkeys(found.settings.workers):
        out.print(f"\nWith {workers} simulated worker{'' if workers == 1 else 's'}:")
        out.print(replay_table(found, workers))
    looks = ", ".join(f"{_told(e.rank_correlation)} at {e.share:.0%}" for e in found.looks)
    out.print(f"\nRank correlation of early and final values: {looks} of the {found.tapes.clock}.")
    for sentence in sentences(found):
        out.print(sentence)
    out.print("\nValidity:")
    for note in notes(found):
        out.print(f"- {note}")
