"""What the dashboard's notes say: any text is shown as it is, and a reader's own words stay."""

from __future__ import annotations

import html
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from study.dashboard.board import with_own_words
from study.dashboard.notes import table
from study.report.markdown import markdown_text

_MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
_WORDS = (
    "**b** _i_ `c` `` [l](u) ![i](u) [r]: <b> </td> <!--x--> <http://u> &lt; &#60; ~~s~~ | \\ # - 1. 2) > + = ---"
    " ``` ~~~ $x$ w"
)
_MARKUP = [*_WORDS.split(), "\n\n", "    ", "\t", " "]
_ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
_TEXT = st.lists(st.sampled_from(_MARKUP) | _ANY, max_size=8).map("".join)


@settings(max_examples=200)
@given(text=_TEXT)
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    """Whatever the database holds is shown letter by letter: no markup, HTML, image or formula comes of it."""
    shown = " ".join(text.split())
    for before in ("", "- ", "**Answer**: "):
        inline = [
            token for token in _MARKDOWN.parse(f"{before}{markdown_text(text)}") if token.type == "inline"
        ]
        parts = [part for token in inline for part in token.children or ()]
        expected = ("Answer: " * before.startswith("**") + shown).rstrip()
        assert "".join(part.content for part in parts) == expected
        assert {part.type for part in parts} <= {"text", "text_special", "strong_open", "strong_close"}


@settings(max_examples=200)
@given(cells=st.lists(_TEXT.filter(lambda text: text.strip() != ""), min_size=3, max_size=3))
def test_no_cell_breaks_out_of_its_table(cells: list[str]) -> None:
    """A row has as many cells as its header, each with its own text."""
    tokens = _MARKDOWN.parse(table(["a", "b", "c"], [[markdown_text(cell) for cell in cells]]))
    shown = [token.content for token in tokens if token.type == "inline"]
    texts = [html.unescape(re.sub(r"\\(.)", r"\1", cell)).strip() for cell in shown]
    assert texts == ["a", "b", "c", *(" ".join(cell.split()) for cell in cells)]


def test_own_words_stay_in_a_note() -> None:
    """What a reader wrote, before or after ours, survives any number of renewals and isn't doubled."""
    first = with_own_words("ours 1", "mine, written before")
    assert with_own_words("ours 1", first) == first
    renewed = with_own_words("ours 2", first + "\nmine, written after")
    assert "ours 1" not in renewed
    assert renewed.startswith("ours 2\n")
    assert renewed.endswith("mine, written before\nmine, written after")
