"""The command that answers with an exit code, for CI and for agents that try changes in a loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from study.cli.analyse import ColumnOptions, QuestionOptions, Sources, refuse_mixed
from study.cli.options import DEFAULT_STORAGE, Storage
from study.cli.terminal import out, quiet, uncollected
from vae.command import grouped
from vae.errors import UserError

if TYPE_CHECKING:
    from study.analysis.findings import Findings

#: What a shell sees: 0 where the verdict says so. 1 and 2 are failures and usage, as everywhere.
EXIT_CODES = {"yes": 0, "no": 3, "undecided": 4}


@grouped
@uncollected()
def gate(
    asked: QuestionOptions,
    columns: ColumnOptions,
    sources: Sources = None,
    named: Annotated[str, typer.Option("--arm", metavar="ARM", help="The arm in question.")] = "",
    require: Annotated[
        str, typer.Option("--require", metavar="faster|not-slower", help="What it must be.")
    ] = "faster",
    by_seconds: Annotated[bool, typer.Option("--seconds", help="Judge seconds, not examples.")] = False,
    ledger: Annotated[
        Path | None,
        typer.Option(
            "--ledger",
            metavar="FILE",
            help="Spend one error level over a stream of proposals; made where it is missing.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="An experiment of --storage in the place of files.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Exit 0 where the verdict says that an arm is what it must be, 3 where it says that it isn't, 4 undecided."""
    from study.analysis.gate import proposal

    if not named:
        raise UserError("Which arm? Give --arm ARM.")
    refuse_mixed(
        sources,
        of_files={
            "An option of columns": columns.given,
            "An option such as --baseline or --target": asked.given,
        },
        of_database={"--name": name is not None},
    )
    findings = _of_files(columns, sources, asked, by_seconds) if sources else _of_database(name, storage)
    proposed = proposal(findings, named, require, by_seconds)
    if ledger is None:
        ruling, line = proposed.rule()
        out.print(line, soft_wrap=True)
        raise SystemExit(EXIT_CODES[ruling])
    from study.analysis.ledger import Entry, judged_once

    def judge(level: float) -> Entry:
        ruling, line = proposed.rule(level)
        return Entry(
            arm=named,
            require=proposed.require.value,
            evidence=proposed.evidence,
            p=proposed.p,
            ruling=ruling.value,
            line=line,
        )

    entry, known = judged_once(ledger, proposed.evidence, judge)
    out.print(f"{entry.line}{' (judged before: nothing was spent)' if known else ''}", soft_wrap=True)
    raise SystemExit(EXIT_CODES[entry.ruling])


def _of_files(
    columns: ColumnOptions, sources: list[str], asked: QuestionOptions, by_seconds: bool
) -> Findings:
    from study.analysis.judge_curves import analyse
    from study.curves.read import called

    question = asked.question()
    findings = analyse(columns.read(sources), question, called(sources[0])).comparison
    if by_seconds and not findings.timed:
        raise UserError(
            "--seconds: not every run has seconds. Name their column with --seconds-from, or leave it out."
        )
    return findings


def _of_database(name: str | None, storage: str) -> Findings:
    quiet()
    from study.analysis.standing import Standing
    from study.store.store import Store

    with Store.open(storage, read_only=True) as store:
        standing = Standing.read(store, store.pick_name(name))
    if standing.comparison is None:
        raise UserError(f"'{standing.name}' is a search alone: there is nothing to compare in it.")
    return standing.comparison
