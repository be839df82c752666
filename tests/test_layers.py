"""The house's layers: imports go one way, the light modules stay light, no file grows past reading."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("vae/**/*.py"), *ROOT.glob("study/**/*.py")])
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported bare) of every import in a file, those in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or "", False


def packages(path: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in imports(path)}


def test_there_are_files() -> None:
    """The tests below look at all our modules."""
    names = {path.name for path in FILES}
    assert {"recipe.py", "training.py", "comparison.py", "speed_up.py", "page.py"} <= names
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_one_way(path: Path) -> None:
    """study imports vae and never the other way; vae knows no Optuna, no database and no report."""
    if path.is_relative_to(ROOT / "vae"):
        assert not packages(path) & {"study", "optuna", "sqlalchemy", "plotly", "pandas", "rich"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_statistics_know_arrays_only(path: Path) -> None:
    """What turns arrays into estimates knows neither torch nor Optuna, nor where the arrays come from."""
    if not path.is_relative_to(ROOT / "study" / "statistics"):
        return
    assert not packages(path) & {"torch", "optuna", "vae", "pandas", "sqlalchemy"}
    ours = {module for module, _ in imports(path) if module.startswith("study")}
    assert all(module.startswith("study.statistics.") for module in ours)


def test_statistics_load_without_torch_and_optuna() -> None:
    """Not even indirectly: a fresh Python that loads them has loaded neither."""
    code = (
        "import sys, study.statistics.speed_up, study.statistics.curves, study.statistics.verdicts\n"
        "print([name for name in ('torch', 'optuna', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_packages_are_not_imported_bare(path: Path) -> None:
    """`from study.design.space import ...`, never `import study`: Optuna's functions have a local called study."""
    assert not {module.partition(".")[0] for module, bare in imports(path) if bare} & {"study", "vae"}


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("plotly", {"study/report/", "study/figures/", "study/dashboard"}),
        ("jinja2", {"study/report/"}),
        ("typer", {"study/cli/", "vae/__main__.py", "vae/command.py"}),
        ("sqlalchemy", {"study/store/"}),
    ],
)
def test_libraries_stay_in_their_rooms(package: str, rooms: set[str]) -> None:
    """Figures, the page, the command line and SQL each have their room."""
    more = {"study/workers/"}
    allowed = rooms | more if package == "sqlalchemy" else rooms
    for path, name in zip(FILES, IDS, strict=True):
        if package in packages(path) and not (package == "sqlalchemy" and name.startswith("study/dashboard")):
            assert name.startswith(tuple(allowed)), name


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    """No module has more than 400 lines, and each begins with what it is for."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_optuna_suggests_and_reports_in_its_rooms(path: Path) -> None:
    """`trial.suggest_*` is in study/design/space.py, reports in study/workers/trial.py, `optimizer.step()` in vae."""
    name = str(path.relative_to(ROOT))
    text = path.read_text(encoding="utf-8")
    assert ".suggest_" not in text or name == "study/design/space.py"
    assert "trial.report(" not in text
    assert "claim.report(" not in text or name == "study/workers/trial.py"
    assert "optimizer.step()" not in text or name.startswith("vae/")
