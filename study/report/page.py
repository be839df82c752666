"""The page: one HTML file that needs nothing else, from sections of figures and tables."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from study.analysis.evidence import Evidence
from study.analysis.sentences import first_screen, missing
from study.figures.panel import Panel
from study.figures.theme import COLOUR_NAMES, DARK, FAMILIES, TEMPLATE
from study.report import words
from study.report.blocks import Picture, Section
from study.report.sections import answer, sections
from study.store.locations import Location
from vae.files import write_bytes

_HERE = Path(__file__).parent
#: What of a sentence stands out: a ratio and its interval.
_RATIO = re.compile(r"\d+(?:\.\d+)?x(?: \[[^\]]*\])?")


def write_report(evidence: Evidence, path: Path, artifacts: Location, data_dir: Path | None) -> Path:
    """Write an experiment's HTML report to `path`, whole or not at all. Nothing is trained or fetched.

    The best model's pictures are made where its file lies under `artifacts` and the data is found (first in
    `data_dir`). Raises FailureError where `path` can't be written."""
    return write_bytes(path, render(evidence, artifacts, data_dir).encode())


def render(evidence: Evidence, artifacts: Location, data_dir: Path | None) -> str:
    """The page's HTML; the same for the same evidence and files."""
    return assemble(
        name=evidence.name,
        data=evidence.experiment.data,
        first=answer(evidence),
        sections=sections(evidence, artifacts, data_dir),
        answer=first_screen(evidence),
        workload=words.workload(evidence),
        sure=words.how_sure(evidence),
        missing=missing(evidence),
        families=[evidence.family(arm) for arm in evidence.arms],
    )


def assemble(
    *,
    name: str,
    data: str,
    first: Section,
    sections: Sequence[Section],
    answer: Sequence[str],
    workload: str,
    sure: Sequence[str],
    missing: Sequence[str],
    families: Sequence[str],
) -> str:
    """A page's HTML from its parts: the first screen's section and sentences, the other sections, what it is of, how
    sure it is, what is missing, and the families that have a mark."""
    scripts = [get_plotlyjs(), _HERE.joinpath("page.js").read_text(encoding="utf-8")]
    return _environment().get_template("page.html.j2").render(
        policy=policy(scripts),
        scripts=[Markup(script) for script in scripts],
        css=Markup(palette_css() + _HERE.joinpath("style.css").read_text(encoding="utf-8")),
        theme=embedded({"template": TEMPLATE.to_plotly_json(), "dark": DARK}),
        name=name,
        data=data,
        first=first,
        sections=sections,
        answer=answer,
        workload=workload,
        sure=sure,
        missing=missing,
        families=[family for family in FAMILIES if family in families and family != "baseline"],
        marks=FAMILIES,
    )  # fmt: skip


def policy(scripts: list[str]) -> str:
    """A content security policy under which nothing runs but these scripts, and nothing is fetched.

    Styles are allowed inline because plotly sets them on elements."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; font-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(value: Any) -> Markup:
    """JSON that can stand in a script element: no character of it means anything to HTML."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # ensure_ascii has already escaped U+2028 and U+2029.
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def specification(panel: Panel) -> Markup:
    """A graph as the page's script draws it: data, layout without the shared template, narrow layout."""
    figure = panel.figure.to_plotly_json()
    layout = {key: value for key, value in figure["layout"].items() if key != "template"}
    return embedded({"data": figure["data"], "layout": layout, "narrow": panel.narrow})


def palette_css() -> str:
    """The colours as CSS variables, in both editions."""
    light = "".join(f"--{name}:{colour};" for name, colour in COLOUR_NAMES.items())
    dark = "".join(f"--{name}:{DARK[colour]};" for name, colour in COLOUR_NAMES.items())
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root:not(.print){{{dark}}}}}\n"
    )


def emphasised(sentence: str) -> Markup:
    """A sentence with its ratios in bold; all else escaped."""
    safe = str(escape(sentence))
    return Markup(_RATIO.sub(lambda found: f'<b class="ratio">{found[0]}</b>', safe))


def data_uri(picture: Picture) -> str:
    """The picture as a PNG data URI."""
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"


def choices(section: Section) -> dict[str, list[str]]:
    """The figures of a section of which the page shows one at a time: choice -> its options."""
    found: dict[str, list[str]] = {}
    for block in section.blocks:
        if block.kind == "figure" and block.choice:
            found.setdefault(block.choice, []).append(block.option)
    return {choice: options for choice, options in found.items() if len(options) > 1}


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("study.report", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"emphasised": emphasised, "specification": specification, "data_uri": data_uri}
    environment.globals["choices"] = choices
    return environment
