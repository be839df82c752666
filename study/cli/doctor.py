"""The command that checks a database and its files, and mends what can be mended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from study.cli.options import DEFAULT_ARTIFACTS, DEFAULT_STORAGE, Artifacts, Storage
from study.cli.terminal import out, plural, quiet, uncollected
from vae.command import grouped

if TYPE_CHECKING:
    from study.doctor.findings import Finding


@grouped
@uncollected()
def doctor(
    storage: Storage = DEFAULT_STORAGE,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended, after a copy of everything.")
    ] = False,
) -> None:
    """Check a database and its files; exit code 1 where something is wrong that isn't mended."""
    quiet()
    from study.doctor.examine import examine
    from study.doctor.repair import repair as mend
    from study.store.locations import locate
    from study.store.store import Store

    place = locate(artifacts)
    with Store.open(storage, read_only=True) as store:
        findings = examine(store, place)
        _print(findings, f"{store.database.name}: {', '.join(store.experiments()) or 'no experiment'}")
    wrong = [finding for finding in findings if not finding.is_note]
    mendable = [finding for finding in wrong if finding.mend is not None]
    if not wrong:
        return
    if not repair:
        if mendable:
            out.print(f"--repair mends {len(mendable)} of {plural(len(wrong), 'finding')}, after a copy.")
        raise SystemExit(1)
    if mendable:
        with Store.open(storage) as store:
            out.print(f"Copy of before: {mend(store, mendable)}", soft_wrap=True)
            findings = examine(store, place)
        _print(findings, "After the repair:")
    raise SystemExit(any(not finding.is_note for finding in findings))


def _print(findings: Sequence[Finding], title: str) -> None:
    from study.doctor.findings import Check

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in Check:
        own = [finding for finding in findings if finding.check is check]
        for finding in own:
            way_out = f"--repair {finding.way_out}" if finding.mend is not None else finding.way_out
            table.add_row(check, f"Note: {finding.what}" if finding.is_note else finding.what, way_out)
        if not own:
            table.add_row(check, "ok", "")
    out.print(table)
