"""The house's layers: imports go one way, without a circle; the light rooms stay light; libraries keep to their rooms.

The table says what each package stands on. What those stand on may be imported as well, nothing else may: not at the
top of a file, not inside a function, not for a type alone.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Package or top file of `study` -> what it stands on. `vae` is under all but statistics, stopping and terms.
TABLE: dict[str, set[str]] = {
    "terms": set(),
    "statistics": {"terms"},
    "stopping": {"statistics"},
    "place": {"store"},
    "design": {"terms"},
    "store": {"terms"},
    "curves": {"store", "statistics"},
    "protocol": {"design", "store", "statistics"},
    "workers": {"protocol", "store", "stopping", "place"},
    "tracking": {"workers"},
    "session": {"workers"},
    "replay": {"curves", "stopping"},
    "analysis": {"protocol", "curves", "replay"},
    "aa": {"session", "analysis"},
    "doctor": {"analysis"},
    "figures": {"analysis"},
    "report": {"figures"},
    "dashboard": {"report"},
    "": {"session", "report"},  # the public face, `study/__init__.py`
    "cli": {"dashboard", "aa", "doctor", "tracking", ""},
    "__main__": {"cli"},
}
#: Rooms that know arrays and words only: whoever has curves of their own can use them.
WITHOUT_VAE = {"terms", "statistics", "stopping"}
#: Library -> where it may be imported. Optuna, numpy and torch are everywhere their package's rule lets them.
ROOMS: dict[str, set[str]] = {
    # The public face hands figures out.
    "plotly": {"study/figures/", "study/report/", "study/dashboard/", "study/__init__.py"},
    "jinja2": {"study/report/", "vae/script/"},
    "typer": {"study/cli/", "vae/__main__.py", "vae/command.py", "vae/look.py", "vae/options.py"},
    "sqlalchemy": {"study/store/", "study/workers/", "study/dashboard/", "study/tracking/mlflow.py"},
    "waitress": {"study/dashboard/"},
    "filelock": {"study/store/", "study/analysis/ledger.py"},
    "wandb": {"study/tracking/"},
    "ray": {"study/workers/ray.py"},
    "fsspec": {"study/store/locations.py"},
}
#: What the package must not import, whatever else it stands on.
BANNED: dict[str, set[str]] = {
    "vae/": {"study", "optuna", "sqlalchemy", "plotly", "pandas"},
    "study/terms.py": {"vae", "torch", "optuna", "pandas", "sqlalchemy", "numpy"},
    "study/statistics/": {"vae", "torch", "optuna", "pandas", "sqlalchemy"},
    "study/stopping/": {"vae", "torch", "pandas", "sqlalchemy"},
    "study/design/": {"sqlalchemy", "torch", "pandas"},
}

Sources = Mapping[str, str]
"""Path from the root -> its text."""


def sources() -> dict[str, str]:
    """Every module of ours."""
    paths = sorted([*ROOT.glob("vae/**/*.py"), *ROOT.glob("study/**/*.py")])
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


OURS = sources()


def imports(path: str, text: str) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it or None for a bare import) of every import, those in functions and for types too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def room(module: str) -> str:
    """The package, or the top file, of `study` that a module stands in; "" is the package's own `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def name_of(path: str) -> str:
    """The dotted name of a module."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def below(package: str) -> set[str]:
    """All that a package may import of `study`: what it stands on, what that stands on, and itself."""
    reached = {package}
    for other in TABLE[package]:
        reached |= below(other)
    return reached


def upward(files: Sources) -> list[str]:
    """Imports that the table doesn't allow, as sentences."""
    found = []
    for path, text in files.items():
        if not path.startswith("study/"):
            continue
        package = room(name_of(path))
        for module, taken in imports(path, text):
            if module.split(".")[0] != "study":
                continue
            target = room(module)
            if module == "study" and taken in TABLE:  # `from study import session`
                target = str(taken)
            if target not in below(package):
                found.append(f"{path}: {package or 'study'} -> {target or 'study'}")
    return found


def circles(files: Sources) -> list[str]:
    """The modules of a circle of imports; empty where there is none."""
    names = {name_of(path) for path in files}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path, text in files.items():
        for module, taken in imports(path, text):
            deep = f"{module}.{taken}"
            target = deep if deep in names else module
            if target in names and target != name_of(path):
                graph[name_of(path)].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def strays(files: Sources) -> list[str]:
    """Libraries outside of their rooms, and what a package must not know."""
    found = []
    for path, text in files.items():
        libraries = {module.partition(".")[0] for module, _ in imports(path, text)}
        found += [
            f"{path}: {library}"
            for library, rooms in ROOMS.items()
            if library in libraries and not path.startswith(tuple(rooms))
        ]
        found += [
            f"{path}: {library}"
            for package, banned in BANNED.items()
            if path.startswith(package)
            for library in sorted(libraries & banned)
        ]
    return found


def test_every_room_is_in_the_table() -> None:
    """A new package has to say what it stands on; a room that is gone leaves the table."""
    assert {room(name_of(path)) for path in OURS if path.startswith("study/")} == set(TABLE)


def test_imports_go_one_way() -> None:
    """Each package imports what it stands on, and vae knows nothing of study."""
    assert upward(OURS) == []


def test_there_is_no_circle() -> None:
    """No module imports, by any way round, what imports it."""
    assert circles(OURS) == []


def test_libraries_stay_in_their_rooms() -> None:
    """Figures, the page, the command line and SQL each have their room; statistics know arrays only."""
    assert strays(OURS) == []


@pytest.mark.parametrize("text", ["from {} import x", "def f():\n    from {} import x", "import {}.y"])
@pytest.mark.parametrize("package", TABLE)
def test_a_broken_rule_is_seen(package: str, text: str) -> None:
    """Whatever a package may not import is found when it does, inside of functions too."""
    path = "study/__init__.py" if not package else f"study/{package}/made_up.py"
    for other in TABLE.keys() - below(package) - {""}:
        broken = {path: text.format(f"study.{other}")}
        assert upward(broken) == [f"{path}: {package or 'study'} -> {other}"]
    for other in below(package) - {""}:
        assert upward({path: text.format(f"study.{other}")}) == []


def test_a_circle_is_seen() -> None:
    """Of two modules, and of three by a function."""
    two = {"vae/a.py": "from vae.b import x", "vae/b.py": "from vae import a"}
    assert set(circles(two)) == {"vae.a", "vae.b"}
    three = two | {"vae/b.py": "def f():\n    import vae.c", "vae/c.py": "from vae.a import x"}
    assert set(circles(three)) == {"vae.a", "vae.b", "vae.c"}
    assert circles(two | {"vae/b.py": ""}) == []


@pytest.mark.parametrize(("library", "rooms"), ROOMS.items())
def test_a_library_out_of_its_room_is_seen(library: str, rooms: set[str]) -> None:
    """In a file that isn't its room, and not in its room."""
    assert strays({"study/protocol/made_up.py": f"import {library}"}) == [
        f"study/protocol/made_up.py: {library}"
    ]
    for path in rooms:
        assert (
            strays({f"{path.removesuffix('.py')}": f"from {library} import x"} if path.endswith("/") else {})
            == []
        )


@pytest.mark.parametrize(("package", "banned"), BANNED.items())
def test_what_a_package_must_not_know_is_seen(package: str, banned: set[str]) -> None:
    """Each banned library is found in each such package, by name."""
    path = f"{package}made_up.py" if package.endswith("/") else package
    for library in banned:
        assert f"{path}: {library}" in strays({path: f"def f():\n    from {library}.x import y"})


@pytest.mark.parametrize("package", sorted(WITHOUT_VAE))
def test_light_rooms_load_without_torch(package: str) -> None:
    """Not even indirectly: a fresh Python that loads the room's files has loaded neither torch nor pandas."""
    modules = [
        name_of(path) for path in OURS if path.startswith((f"study/{package}/", f"study/{package}.py"))
    ]
    heavy = ("torch", "pandas") if package == "stopping" else ("torch", "optuna", "pandas", "vae")
    code = f"import sys, {', '.join(modules)}\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", OURS)
def test_packages_are_not_imported_bare(path: str) -> None:
    """`from study.design.space import ...`, never `import study`: Optuna's functions have a local called study."""
    bare = {module.partition(".")[0] for module, taken in imports(path, OURS[path]) if taken is None}
    assert not bare & {"study", "vae"}


@pytest.mark.parametrize("path", OURS)
def test_a_file_says_what_it_is_for(path: str) -> None:
    """Each begins with a docstring."""
    assert ast.get_docstring(ast.parse(OURS[path]))


@pytest.mark.parametrize("path", OURS)
def test_optuna_suggests_and_reports_in_its_rooms(path: str) -> None:
    """`trial.suggest_*` is in study/design/suggest.py, reports in study/workers/trial.py, `optimizer.step()` in vae."""
    text = OURS[path]
    assert ".suggest_" not in text or path == "study/design/suggest.py"
    assert "trial.report(" not in text
    assert "claim.report(" not in text or path == "study/workers/trial.py"
    assert "optimizer.step()" not in text or path.startswith("vae/")
