"""The page: one file, equal bytes, a strict policy, and no text of the database that is markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import sqlite3
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_data import (
    ARMS,
    HOSTILE,
    NAME,
    large_experiment,
    make_hostile,
    report_of,
    store_experiment,
    text_of,
)

from study.analysis.advice import advice
from study.analysis.evidence import Evidence, read
from study.figures import theme
from study.figures.panel import Figure
from study.report import markdown
from study.report.page import embedded, render, write_report
from study.report.sections import answer, sections
from study.store import records
from study.store.locations import Local
from study.store.store import Store
from vae.errors import FailureError

pytest_plugins = ["tiny_study", "report_fixtures"]


class TestPage:
    def test_same_database_same_bytes(self, tiny: Any, tmp_path: Path) -> None:
        """Two reports of one finished experiment are byte for byte the same, pictures and all."""
        pages = []
        for i in range(2):
            with Store.open(tiny.url, read_only=True) as store:
                path = write_report(
                    read(store, tiny.name), tmp_path / f"{i}" / "page.html", Local(tiny.artifacts), None
                )
            pages.append(path.read_bytes())
        assert pages[0] == pages[1]
        assert pages[0].count(b'<img src="data:image/png;base64,') == 3

    def test_every_script_is_in_the_policy(self, made_up: Evidence, tmp_path: Path) -> None:
        """Nothing but plotly.js, once, and the page's own script may run, and both are named by their hash."""
        html = render(made_up, tmp_path, None)
        scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
        directives = dict(part.strip().split(" ", 1) for part in policy.replace("&#39;", "'").split(";"))
        assert len(scripts) == 2
        assert directives["script-src"].split() == [f"'sha256-{digest}'" for digest in hashes]
        assert directives["default-src"] == "'none'"
        assert html.count("<script") == html.count("</script>")
        assert len(re.findall(r"<script(?! type=\"application/json\"| id=\"theme\")[^>]*>", html)) == 2

    def test_headings_are_in_order_and_ids_unique(self, made_up: Evidence, tmp_path: Path) -> None:
        """One h1, no level is skipped, and every link in the page has a place to go to."""
        html = re.sub(r"<script.*?</script>", "", render(made_up, tmp_path, None), flags=re.DOTALL)
        levels = [int(level) for level in re.findall(r"<h([1-6])", html)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        ids = re.findall(r'\sid="([^"]*)"', html)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'href="#([^"]*)"', html)) <= set(ids)

    def test_every_figure_says_what_to_see(self, made_up: Evidence) -> None:
        """Each figure has a title and a caption of one sentence, and each of its graphs has data."""
        figures = [
            b for part in [answer(made_up), *sections(made_up)] for b in part.blocks if isinstance(b, Figure)
        ]
        assert len(figures) > 10
        for figure in figures:
            assert figure.title
            assert re.fullmatch(r"[A-Z][^.]*(\.\d[^.]*)*\.", figure.caption), figure.caption
            assert all(len(panel.figure.data) for panel in figure.panels)

    def test_large_experiment_is_small_and_quick(self, tmp_path: Path) -> None:
        """Twelve arms and over 500 trials with full curves: under 8 MB, in under 10 seconds of processor time."""
        large_experiment(f"sqlite:///{tmp_path / 'optuna.db'}").close()
        with Store.open(f"sqlite:///{tmp_path / 'optuna.db'}", read_only=True) as store:
            assert len(records.trials(store, NAME)) > 500
            began = time.process_time()
            path = write_report(read(store, NAME), tmp_path / "report.html", tmp_path, None)
            seconds = time.process_time() - began
        assert seconds < 10.0
        assert path.stat().st_size < 8e6
        assert len(ARMS) + 1 == 12

    def test_unwritable_place_is_one_line(self, made_up_file: Path, tmp_path: Path) -> None:
        """Where the file can't be, the message names it, and nothing is left behind."""
        (tmp_path / "file").write_text("")
        with (
            Store.open(f"sqlite:///{made_up_file}", read_only=True) as store,
            pytest.raises(FailureError, match=r"page\.html can't be written"),
        ):
            write_report(read(store, NAME), tmp_path / "file" / "page.html", tmp_path, None)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


class TestWords:
    def test_only_images_are_called_images(self, made_up: Evidence) -> None:
        """Nothing is said of images or grey pixels where it isn't known that the examples are some."""
        text = text_of(render(made_up, Path("nowhere"), None))
        assert re.findall(r"[^.]*\b(?:images?|pixels?)\b[^.]*", text) == []

    @pytest.mark.parametrize(
        ("column", "value", "kind"),
        [("seed", "junk", "whole"), ("examples", 9e999, "whole"), ("train_seconds", "x", "number")],
    )
    def test_a_column_of_another_type_is_one_line(
        self, changed: Path, column: str, value: Any, kind: str
    ) -> None:
        """What another program has written into a column of ours is named, not met by a traceback."""
        with closing(sqlite3.connect(changed)) as connection:
            connection.execute(f"UPDATE trial_run SET {column} = ?", (value,))
            connection.commit()
        with pytest.raises(FailureError, match=f"Column {column} .* holds what is no {kind}") as caught:
            report_of(changed)
        assert "\n" not in str(caught.value)


class TestEscaping:
    @pytest.fixture
    def hostile(self, changed: Path) -> Path:
        """Payloads wherever a database can hold free text."""
        make_hostile(changed)
        return changed

    def test_nothing_from_the_database_is_markup(self, hostile: Path) -> None:
        """Free text from the database is shown as text: no tag of it is in the page."""
        html = report_of(hostile)
        assert "<img src=x" not in html
        assert "<script>window" not in html
        assert html.count("<script>") == 2
        assert "&lt;img src=x" in html

    def test_markdown_cells_hold_what_they_hold(self, hostile: Path) -> None:
        """Pipes, tags and links in a cell are text: every row has as many cells as its head."""
        with Store.open(f"sqlite:///{hostile}", read_only=True) as store:
            text = markdown.render(read(store, NAME))
        assert "<img" not in "".join(
            line for line in text.splitlines() if not line.startswith("    ")
        )  # code
        tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
        kinds = {part.type for token in tokens for part in (token, *(token.children or ()))}
        assert not kinds & {"link_open", "image", "html_inline", "html_block", "s_open", "em_open"}
        tables_found = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
        assert len(tables_found) > 5
        for table in tables_found:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1

    @given(st.text())
    def test_embedded_json_is_inert_and_exact(self, text: str) -> None:
        """JSON in the page reads back as it was and holds no character that HTML could act on."""
        found = str(embedded({"key": text}))
        assert not set("<>&\u2028\u2029") & set(found)
        assert json.loads(found) == {"key": text}

    @given(st.text())
    def test_plotly_text_is_escaped(self, text: str) -> None:
        """No tag and no template of a name reaches plotly."""
        found = theme.label_text(text)
        assert not set("<>") & set(found)
        assert "%{" not in found

    def test_long_names_are_cut_with_a_mark(self, new: Store) -> None:
        """A long arm's name fits its axis and is whole in the table."""
        arm = "a" * 40
        technique = {arm: {"overrides": {"init": "he_normal"}, "why": HOSTILE, "source": HOSTILE}}
        store_experiment(new, arms=[arm], techniques=technique, target=30.0)
        evidence = read(new, "new")
        assert evidence.comparison is not None
        assert arm in text_of(render(evidence, Path("nowhere"), None))
        assert len(theme.shorten(arm)) == 26


def test_what_to_use_is_on_the_first_screen(made_up: Evidence) -> None:
    """The sentence "Use ..." and the commands to copy stand in the answer, above its figures."""
    advised = advice(made_up)
    assert advised is not None
    page = render(made_up, Path("nowhere"), None)
    screen = page[page.index('<section id="answer"') :]
    screen = screen[: screen.index("<figure")]
    assert advised.sentence.split(" (")[0] in html.unescape(screen)
    for command in advised.commands:
        assert command in html.unescape(screen)
