"""The catalogue of techniques in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from study.design.techniques import Technique


def print_techniques(console: Console, known: dict[str, Technique]) -> None:
    """The catalogue by family: what each changes and tunes, its slot, why, and the source."""
    for family in dict.fromkeys(technique.family for technique in known.values()):
        console.print(family)
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=max(map(len, known)) + 2, no_wrap=True)
        table.add_column()
        for t in known.values():
            if t.family == family:
                told = [f"{_change(t)}.", t.why, f"{t.source.removesuffix('.')}." if t.source else ""]
                table.add_row(f"  {t.name}", " ".join(part for part in told if part))
        console.print(table)


def _change(t: Technique) -> str:
    """A technique's change, what is tuned with it, and its slot, in a few words."""
    return f"{t.change} (slot: {t.slot}{'; different model' if t.different_model else ''})"
