"""The report's sentences and tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from study.analysis.evidence import Evidence, collect
from study.report import words as facts
from study.report.blocks import Table
from study.report.sections import answer, sections
from study.store.store import Store

#: What would end a table's cell or open HTML, code, emphasis or a link.
_ESCAPED = str.maketrans(
    {"\\": r"\\", "|": r"\|", "`": r"\`", "*": r"\*", "<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def write_markdown(store: Store, name: str) -> str:
    """The tables of experiment NAME, with the answer and what limits it, as GitHub-flavoured Markdown."""
    return render(collect(store, name))


def render(evidence: Evidence) -> str:
    """Markdown of the evidence; the same for the same evidence."""
    first = answer(evidence)
    parts = [f"# {escape(evidence.name)}: {first.title}", *map(escape, facts.answer(evidence))]
    unfinished = facts.missing(evidence)
    if unfinished:
        parts.append(f"**Unfinished.** {escape(' '.join(unfinished))}")
    parts.append(f"**Workload.** {escape(facts.workload(evidence))}")
    sure = facts.how_sure(evidence)
    if sure:
        parts.append(f"**How sure, and why.** {escape(' '.join(sure))}")
    for section in [first, *sections(evidence)]:
        blocks: list[str] = []
        for block in section.blocks:
            if block.kind == "table":
                blocks.append(table(block))
            elif block.kind == "notes":
                blocks.append("\n".join(f"- {escape(item)}" for item in block.items))
            elif block.kind == "text" and block.open:
                blocks.append(f"{escape(block.title)}:\n\n    {block.text}")
        if section.missing and not section.blocks:
            blocks.append(escape(section.missing))
        if blocks:
            heading = [] if section is first else [f"## {section.title}"]
            parts += [*heading, *blocks]
    return "\n\n".join(parts) + "\n"


def table(shown: Table) -> str:
    """A table with its caption above; numbers are aligned right."""
    rules = ["---:" if title in shown.numeric else "---" for title in shown.titles]
    rows = [[cell.text for cell in row] for row in shown.rows]
    body = "\n".join([_line(shown.titles), f"| {' | '.join(rules)} |", *map(_line, rows)])
    return f"{escape(shown.caption)}\n\n{body}"


def _line(cells: Sequence[str] | Iterable[str]) -> str:
    return f"| {' | '.join(map(escape, cells))} |"


def escape(text: str) -> str:
    """Text on one line in which nothing is markup or HTML."""
    return " ".join(text.split()).translate(_ESCAPED).replace("](", r"]\(")
