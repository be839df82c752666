"""Recipes and experiments as a person writes them: TOML and JSON files, read within bounds.

A file may come from anywhere, so nothing in it makes reading take long or much memory: its size, the depth of its
tables, and the digits of its numbers are limited, far above what any recipe or experiment needs.
"""

from __future__ import annotations

import codecs
import json
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Bytes of a file.
MAX_BYTES = 256 * 2**10
#: Tables and lists within each other; dots of a key.
MAX_DEPTH = 16
#: Digits of a whole number. Python itself refuses to write out more than 4,300.
MAX_DIGITS = 100

#: A key of too many parts, wherever it stands: tomllib takes time in the square of their number. A part counts up to
#: 100 characters, so that looking takes time in proportion to the text; of longer ones few fit into a file.
_PART = r"""(?:[\w-]{1,100}+|"(?:[^"\\\n]|\\.){0,100}+"|'[^'\n]{0,100}+')[ \t]{0,100}+"""
_LONG_KEY = re.compile(rf"{_PART}(?:\.[ \t]{{0,100}}+{_PART}){{{MAX_DEPTH}}}")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; line ends as they are.

    Raises OSError; ValueError, with a reason that begins with "it", for what is no such text file.
    """
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe that nobody writes to would be waited for
        raise ValueError("it is a pipe or a device, not a regular file")
    with path.open("rb") as file:  # a directory is refused by the system
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML document. Raises ValueError, in one line."""
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {MAX_DEPTH} parts")
    return _bounded(tomllib.loads, text)  # type: ignore[no-any-return]


def parse_json(text: str) -> Any:
    """The value of a JSON document. Raises ValueError, in one line."""
    return _bounded(json.loads, text)


def _bounded(parse: Callable[[str], Any], text: str) -> Any:
    try:
        values = parse(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError):
        raise
    except ValueError:  # Python's own limit on digits, which both parsers let through
        raise ValueError(f"a whole number has more than {MAX_DIGITS} digits") from None
    _check(values, MAX_DEPTH)
    return values


def _check(value: Any, depth: int) -> None:
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise ValueError(f"a whole number has more than {MAX_DIGITS} digits")
    if isinstance(value, dict | list):
        if depth == 0:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        for part in value.values() if isinstance(value, dict) else value:
            _check(part, depth - 1)
