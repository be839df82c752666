"""Code of the user's own by name: found, hashed, and only then run."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from vae import code
from vae.errors import UserError

TEXT = "import beside\n\nmade = []\n\n\ndef make():\n    made.append(1)\n    return beside.VALUE\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with own.py and what it imports from beside itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text(TEXT)
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("nets.py:make", True),
        ("some folder/nets.py:Net", True),
        ("package.module:Net", True),
        ("C:\\nets.py:make", True),
        ("nets.py", False),
        ("adam", False),
        ("package.module:", False),
        ("package/module:Net", False),
        ("nets.py:make()", False),
        ("a\nb.py:make", False),
        ("x" * 400 + ":y", False),
    ],
)
def test_what_a_reference_is(text: str, is_one: bool) -> None:
    """A file that ends with .py or a module, a colon, and a name."""
    assert code.is_reference(text) is is_one


def test_a_file_is_hashed_before_it_runs(folder: Path) -> None:
    """Finding runs nothing; loading runs the bytes that were hashed, once, and what stands beside can be imported."""
    source = code.find("own.py:make")
    assert source.path == folder / "own.py"
    assert source.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert source.absolute == f"{folder / 'own.py'}:make"
    assert "beside" not in sys.modules
    make = code.load("own.py:make", source.sha256)
    assert make() == 7
    assert code.load(source.absolute, source.sha256) is make
    del sys.modules["beside"]


def test_other_code_under_the_same_name_is_not_run(folder: Path) -> None:
    """The refusal names both hashes, and the file isn't run; where it was it is found again."""
    source = code.find("own.py:make")
    (folder / "own.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UserError, match=rf"not {source.sha256[:12]}.*bring that code back"):
        code.load("own.py:make", source.sha256)
    with pytest.raises(UserError, match="bring that code back"):
        code.require_same(["own.py:make"], {"own.py:make": source.sha256})
    (folder / "kept.py").write_text(TEXT)
    again = code.find_again("own.py:make", str(folder / "kept.py"), source.sha256)
    assert again.path == folder / "kept.py"
    with pytest.raises(UserError, match="fails as it is read: line 1: SystemExit: 3"):
        code.load("own.py:make")


def test_a_package_is_hashed_whole(folder: Path) -> None:
    """Every .py file of it counts, and none is run for that."""
    package = folder / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("from own_package.part import make\n")
    (package / "part.py").write_text("def make():\n    return 1\n")
    before = code.find("own_package:make")
    assert before.path == package
    assert "own_package" not in sys.modules
    assert code.find("own_package.part:make").path == package / "part.py"
    assert code.load("own_package:make", before.sha256)() == 1
    (package / "part.py").write_text("def make():\n    return 2\n")
    with pytest.raises(UserError, match="bring that code back"):
        code.load("own_package:make", before.sha256)
    for name in ("own_package", "own_package.part"):
        del sys.modules[name]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nowhere.py:make", r"there is no file nowhere.py here"),
        ("no_such_module:make", "There is no module 'no_such_module' here: install it"),
        ("own.py:mak", r"own\.py has no 'mak'\. Did you mean 'make'\?"),
        ("own.py:made", "is a list: name a function or a class"),
        ("broken.py:make", "fails as it is read: SyntaxError: .*line 1"),
        ("failing.py:make", "fails as it is read: line 2: ZeroDivisionError: division by zero"),
        ("os:system", "'os' is a module of Python itself"),
        ("numpy._core._multiarray_umath:array", "has no Python source that could be hashed"),
        ("nothing", "name code of your own as file.py:NAME or package.module:NAME"),
    ],
)
def test_what_is_refused(folder: Path, reference: str, words: str) -> None:
    """One line each, with the line of the user's own file where there is one."""
    (folder / "broken.py").write_text("def (\n")
    (folder / "failing.py").write_text("x = 0\ny = 1 / x\n")
    with pytest.raises(UserError, match=words) as error:
        code.load(reference)
    assert "\n" not in str(error.value)
    sys.modules.pop("beside", None)
