"""The command that judges learning curves from anywhere: nothing is trained and no database is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from study.cli.options import DEFAULT_STORAGE, REPORTS, Json, Storage
from study.cli.terminal import beside, out, print_document, quiet, uncollected
from vae.command import grouped
from vae.errors import UserError

if TYPE_CHECKING:
    from study.analysis.question import Question
    from study.curves.recorded import Curves
    from study.curves.table import Columns

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE...",
        help="CSV, Parquet or JSON lines, folders with a file a run, TensorBoard, MLflow or Optuna.",
    ),
]


@dataclass(frozen=True)
class ColumnOptions:
    """Which column of the curves is what: for every command that reads them."""

    format: Annotated[
        str | None,
        typer.Option(
            "--format", help="csv, parquet, jsonl, tensorboard, mlflow, optuna or wandb; default: what it is."
        ),
    ] = None
    arm: Annotated[str | None, typer.Option("--arm-from", metavar="COLUMN", help="Arms; default: arm.")] = (
        None
    )
    seed: Annotated[
        str | None, typer.Option("--seed-from", metavar="COLUMN", help="Seeds; default: seed.")
    ] = None
    trial: Annotated[
        str | None,
        typer.Option(
            "--trial-from", metavar="COLUMN", help="Runs without seeds, compared unpaired; default: trial."
        ),
    ] = None
    clock: Annotated[
        str | None,
        typer.Option("--clock-from", metavar="COLUMN", help="What counts; default: examples, step or epoch."),
    ] = None
    value: Annotated[
        str | None,
        typer.Option("--value-from", metavar="COLUMN", help="What is to fall; default: value."),
    ] = None
    seconds: Annotated[
        str | None,
        typer.Option("--seconds-from", metavar="COLUMN", help="Seconds of training; default: seconds."),
    ] = None
    ended: Annotated[
        str | None,
        typer.Option(
            "--ended-from",
            metavar="COLUMN",
            help="How a run ended: complete, hit, censored, diverged or failed; default: ended.",
        ),
    ] = None
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="PATTERN",
            help="Arm and seed from a run's path or name, such as '{arm}/seed{seed}.csv'.",
        ),
    ] = None
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="COLUMN=VALUE", help="Only such rows; may be repeated."),
    ] = None
    maximise: Annotated[bool, typer.Option("--maximise", help="Higher values are better.")] = False
    at_zero: Annotated[
        str | None,
        typer.Option(
            "--at-zero",
            metavar="before|after",
            help="A clock of 0 is before training, and left out, or after the first of what is counted.",
        ),
    ] = None

    def columns(self) -> Columns:
        """The mapping meant. Raises UserError."""
        from study.curves.table import Columns

        where = []
        for text in self.where or []:
            column, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"--where {text}: write COLUMN=VALUE, for example --where phase=confirm.")
            where.append((column, value))
        if self.at_zero is not None and self.at_zero not in ("before", "after"):
            raise UserError(f"--at-zero {self.at_zero}: choose before or after.")
        return Columns(
            arm=self.arm,
            seed=self.seed,
            trial=self.trial,
            clock=self.clock,
            value=self.value,
            seconds=self.seconds,
            ended=self.ended,
            run=self.run,
            where=where,
            maximise=self.maximise,
            at_zero="before" if self.at_zero == "before" else "after" if self.at_zero else None,
        )

    def read(self, sources: list[str] | None) -> Curves:
        """The curves of these sources. Raises UserError, FailureError."""
        from study.curves.read import read

        return read(sources or [], self.columns(), self.format)

    @property
    def given(self) -> bool:
        """Whether any of them was."""
        return self != ColumnOptions()


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked of curves: for every command that judges them."""

    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="ARM", help="The arm that all others are compared with."),
    ] = None
    target: Annotated[float | None, typer.Option("--target", help="The value to reach.")] = None
    target_at: Annotated[
        float | None,
        typer.Option(
            "--target-at",
            metavar="SHARE",
            help="Or the share of the budget at which the baseline's median is the target, such as 0.5.",
        ),
    ] = None
    censored_at: Annotated[
        float | None,
        typer.Option(
            "--censored-at", metavar="CLOCK", help="Judge all runs by what they reached until then."
        ),
    ] = None
    unpaired: Annotated[bool, typer.Option("--unpaired", help="Don't pair runs of the same seed.")] = False
    margin: Annotated[
        float | None,
        typer.Option("--margin", help="A speed-up within this of 1 is no verdict; default: 0.02."),
    ] = None

    def question(self, baseline: str | None = None, margin: float | None = None) -> Question:
        """The question meant, with an experiment's own baseline and margin where none is given. Raises UserError."""
        from study.analysis.question import Question
        from study.statistics.family import MARGIN

        against = self.baseline or baseline
        if against is None:
            raise UserError("Against which arm? Give --baseline ARM.")
        margins = (own for own in (self.margin, margin, MARGIN) if own is not None)
        return Question(
            baseline=against,
            target=self.target,
            target_at=self.target_at,
            margin=next(margins),
            censored_at=self.censored_at,
            unpaired=self.unpaired,
        )

    @property
    def given(self) -> bool:
        """Whether any of them was."""
        return self != QuestionOptions()


def refuse_mixed(
    sources: list[str] | None, *, of_files: Mapping[str, bool], of_database: Mapping[str, bool]
) -> None:
    """Raises UserError for an option, given or not, that goes with files where there are none, or with an experiment
    of our own database where there are files."""
    for option in (option for option, given in (of_database if sources else of_files).items() if given):
        if sources:
            raise UserError(f"{option} goes with our own database: leave it out, or the files.")
        raise UserError(f"{option} goes with files: leave it out, or name some.")


@grouped
@uncollected()
def analyse(
    asked: QuestionOptions,
    columns: ColumnOptions,
    sources: Sources = None,
    name: Annotated[
        str | None, typer.Option("--name", help="An experiment of --storage in the place of files.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    path: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Page to write; default: reports/NAME-curves.html, NAME of the first file."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Judge learning curves from anywhere as compare judges its own: time to target, intervals, verdicts, a page."""
    from contextlib import ExitStack

    from study.analysis.judge_curves import analyse as judge
    from study.analysis.standing import Standing
    from study.cli.tables import print_curves
    from study.curves.read import called
    from study.curves.recorded import described
    from study.curves.stored import read_stored
    from study.place import require_writable
    from study.report.curves_page import write_curves_report
    from study.store.store import Store
    from study.terms import BASELINE

    if path is not None and path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file, for example {path / 'curves.html'}.")
    refuse_mixed(
        sources,
        of_files={"An option of columns": columns.given and name is not None},
        of_database={"--name": name is not None},
    )
    with ExitStack() as open_ones:
        standing = None
        if name is not None:
            quiet()
            store = open_ones.enter_context(Store.open(storage, read_only=True))
            standing = Standing.read(store, store.pick_name(name))
            question = asked.question(BASELINE, standing.experiment.margin)
            curves = read_stored(store, standing.name)
            title = stem = standing.name
        else:
            question = asked.question()
            curves = columns.read(sources)
            title = called((sources or [""])[0])
            stem = Path(title).stem
        path = path or REPORTS / f"{stem.removesuffix('-curves')}-curves.html"
        require_writable(path.parent, "The folder of the page")
        with beside(json):
            for line in described(curves):
                out.print(line, soft_wrap=True)
            found = judge(curves, question, title, standing)
            print_curves(out, found)
            out.print(f"Report: {write_curves_report(found, path)}", soft_wrap=True)
    if json:
        from study.analysis.document import of_curves

        print_document(of_curves(found))
