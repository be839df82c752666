"""The report's sentences and tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from study.analysis.evidence import Evidence
from study.analysis.sentences import first_screen, missing
from study.report import words
from study.report.blocks import Table
from study.report.sections import answer, sections

#: What means something within a line of GitHub's Markdown; `$` for those that render formulas. A bracket alone
#: means nothing, so that intervals stay readable: only what makes a link, a definition or a box to tick does.
_MARKUP = re.compile(r"[\\`*_|~$]|^[\[#]|\](?=[(\[:])")
_HTML = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;"})
#: At the start of a line: a list, a heading's underline.
_LINE_START = re.compile(r"^(?:([-+](?= |$)|[-=](?=[-= ]*$))|(\d+)([.)])(?= |$))")


def render(evidence: Evidence) -> str:
    """The tables of an experiment, with the answer and what limits it, as GitHub-flavoured Markdown; the same for
    the same evidence."""
    first = answer(evidence)
    parts = [f"# {markdown_text(evidence.name)}: {first.title}", *map(markdown_text, first_screen(evidence))]
    unfinished = missing(evidence)
    if unfinished:
        parts.append(f"**Unfinished.** {markdown_text(' '.join(unfinished))}")
    parts.append(f"**Workload.** {markdown_text(words.workload(evidence))}")
    sure = words.how_sure(evidence)
    if sure:
        parts.append(f"**How sure, and why.** {markdown_text(' '.join(sure))}")
    for section in [first, *sections(evidence)]:
        blocks: list[str] = []
        for block in section.blocks:
            if block.kind == "table":
                blocks.append(table(block))
            elif block.kind == "notes":
                blocks.append("\n".join(f"- {markdown_text(item)}" for item in block.items))
            elif block.kind == "text" and block.open:
                code = "\n".join(f"    {line}" for line in block.text.splitlines())
                blocks.append(f"{markdown_text(block.title.removesuffix(':'))}:\n\n{code}")
        if section.missing and not section.blocks:
            blocks.append(markdown_text(section.missing))
        if blocks:
            heading = [] if section is first else [f"## {section.title}"]
            parts += [*heading, *blocks]
    return "\n\n".join(parts) + "\n"


def table(shown: Table) -> str:
    """A table with its caption above; numbers are aligned right."""
    rules = ["---:" if title in shown.numeric else "---" for title in shown.titles]
    rows = [[cell.text for cell in row] for row in shown.rows]
    body = "\n".join([_line(shown.titles), f"| {' | '.join(rules)} |", *map(_line, rows)])
    return f"{markdown_text(shown.caption)}\n\n{body}"


def _line(cells: Sequence[str] | Iterable[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


def markdown_text(text: object) -> str:
    """Text as Markdown that shows it letter by letter: one line, no markup, no HTML, no image."""
    line = _MARKUP.sub(r"\\\g<0>", " ".join(str(text).split())).translate(_HTML)
    return _LINE_START.sub(lambda found: f"{found[2] or ''}\\{found[1] or found[3]}", line)
