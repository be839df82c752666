"""TOML and JSON from anywhere: read within bounds, or refused in one line."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.design.build import read_toml
from vae.documents import MAX_BYTES, parse_json, parse_toml
from vae.errors import UserError
from vae.recipe import Recipe, parse_value

#: Seconds that a refusal may take on a busy machine; each takes milliseconds on an idle one.
SOON = 20.0


def refusals(path: Path) -> list[str]:
    """What the readers of recipes and of experiments say to one file."""
    said = []
    for read in (Recipe.load, read_toml):
        began = time.monotonic()
        with pytest.raises(UserError) as caught:
            read(path)  # type: ignore[operator]
        assert time.monotonic() - began < SOON
        said.append(str(caught.value))
        assert "\n" not in said[-1]
        assert len(said[-1]) < 700
    return said


HOSTILE = {
    "lists": ("lr = " + "[" * 100_000, "nested more than 16 deep"),
    "closed lists": ("lr = " + "[" * 17 + "]" * 17, "nested more than 16 deep"),
    "tables": ("lr = " + "{a = " * 40_000, "nested more than 16 deep"),
    "key": (".".join("a" * 100_000) + " = 1", "a key has more than 16 parts"),
    "quoted key": (".".join(['"\\""'] * 50_000) + " = 1", "a key has more than 16 parts"),
    "inline key": ("lr = {" + " . ".join("a" * 50_000) + " = 1}", "a key has more than 16 parts"),
    "digits": ("seed = " + "9" * 5_000, "a whole number has more than 100 digits"),
    "fewer digits": ("seed = " + "9" * 101, "a whole number has more than 100 digits"),
    "hexadecimal": ("seed = 0x" + "f" * 200_000, "a whole number has more than 100 digits"),
    "length": ("#" * (MAX_BYTES + 1), "it has more than 262,144 bytes"),
    "quotes": ('"\\' * 100_000, "Unescaped"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once(tmp_path: Path, name: str) -> None:
    """Nesting, keys, digits and length have a limit, told by name; no traceback and no waiting."""
    text, words = HOSTILE[name]
    (tmp_path / "x.toml").write_text(text)
    assert all(words in message for message in refusals(tmp_path / "x.toml"))


def test_hostile_json_is_refused_at_once(tmp_path: Path) -> None:
    """A recipe in JSON is held to the same limits."""
    path = tmp_path / "x.json"
    for text, words in (
        ("[" * 100_000, "nested more than 16 deep"),
        ('{"seed": ' + "9" * 5_000 + "}", "a whole number has more than 100 digits"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            Recipe.load(path)


def test_special_files_are_refused(tmp_path: Path) -> None:
    """A pipe nobody writes to is not waited for, a device not read without end, a directory named as one."""
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero")):
        assert all("it is a pipe or a device, not a regular file" in message for message in refusals(path))
    assert all("Is a directory" in message for message in refusals(tmp_path))


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Windows' editors put one before UTF-8; UTF-16 is named, with the way out."""
    for name, text in (("x.toml", "lr = 0.5\n"), ("x.json", '{"lr": 0.5}')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert Recipe.load(tmp_path / name).lr == 0.5
    (tmp_path / "e.toml").write_text('data = "digits"\r\n', encoding="utf-8-sig", newline="")
    assert read_toml(tmp_path / "e.toml") == {"data": "digits"}
    (tmp_path / "e.toml").write_text('data = "digits"\n', encoding="utf-16")
    assert all("it is UTF-16: save it as UTF-8" in message for message in refusals(tmp_path / "e.toml"))


def test_ordinary_texts_are_below_every_limit() -> None:
    """What recipes and experiments hold is read: long lists, dotted keys, sentences with many dots."""
    text = 'x = "And so on. A sentence. Another. ' + "More of it. " * 40 + '"\n'
    text += f"hidden = {[0.5] * 500}\ntechniques.mine.overrides.lr = 1.5\ny = '..................'\n"
    assert parse_toml(text)["techniques"] == {"mine": {"overrides": {"lr": 1.5}}}
    assert parse_json('{"a": [1, 2, {"b": 1e-3}]}') == {"a": [1, 2, {"b": 1e-3}]}


@settings(deadline=2_000)
@given(text=st.text(alphabet="ab.'\"[]{}=,\n\\ 019_-#", max_size=300))
def test_no_text_crashes_the_reader(text: str) -> None:
    """Any text is values or a ValueError, which its readers tell."""
    for parse in (parse_toml, parse_json):
        with suppress(ValueError):
            parse(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, "0x" + "f" * 200_000])
def test_hostile_values_of_set_are_refused(text: str) -> None:
    """--set lr=... of any length ends in a line that can be read."""
    with pytest.raises(UserError) as caught:
        Recipe.from_dict({"lr": parse_value("lr", text)})
    assert len(str(caught.value)) < 400
