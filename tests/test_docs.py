"""The README and its pages: commands, flags, keys, techniques and files named there are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from study.cli.app import app as study_app
from study.design.build import Request, build
from study.design.techniques import BUILT_IN
from vae.__main__ import app as vae_app
from vae.data import sources

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def options(program: str) -> dict[str, set[str]]:
    """command -> its flags, of `study` or `vae`, as typer has made them."""
    group = typer.main.get_command({"study": study_app, "vae": vae_app}[program])
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        parts = [command, *getattr(command, "commands", {}).values()]  # `launch` has commands of its own
        params = [param for part in parts for param in part.params]
        found[name] = {flag for param in params for flag in (*param.opts, *param.secondary_opts)} | {"--help"}
    return found


def code(text: str) -> list[str]:
    """Every line of a shell block and every piece of code in a sentence."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    without = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return lines + [piece.replace("\n", " ") for piece in re.findall(r"`([^`]+)`", without)]


def calls(page: Path) -> list[tuple[str, str, list[str]]]:
    """(program, command, flags) of each call of ours on a page."""
    found = []
    for line in code(page.read_text(encoding="utf-8")):
        for call in re.split(r"&&|\|", line):
            words = call.partition("#")[0].split()
            for program in ("study", "vae"):
                if words[1:3] == ["-m", program] and len(words) > 3:
                    found.append((program, words[3], [w for w in words[4:] if w.startswith("--")]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_in_the_docs_are_there(page: Path) -> None:
    """`python -m study X --flag` of a page is a command of the program, and so is its flag."""
    known = {program: options(program) for program in ("study", "vae")}
    for program, command, flags in calls(page):
        assert command in known[program], f"{page.name}: python -m {program} {command}"
        for flag in flags:
            assert flag.partition("=")[0] in known[program][command], f"{page.name}: {command} {flag}"


def test_the_test_finds_calls() -> None:
    """The README has calls of most commands, so the test above looks at something."""
    assert len({command for _, command, _ in calls(ROOT / "README.md")}) >= 8


def test_the_readme_names_every_command() -> None:
    """No command of either program is left out of the README's table."""
    table = README[README.index("## Commands") : README.index("An experiment file says")]
    for program in ("study", "vae"):
        for command in options(program):
            assert re.search(rf"`[^`]*\b{command}\b", table), f"{program} {command}"


def test_flags_named_alone_are_there() -> None:
    """A flag in a sentence (`--set lr=3e-4`) is one of some command's."""
    known = set().union(*options("study").values(), *options("vae").values())
    for piece in code(README):
        if piece.startswith("--"):
            for flag in re.findall(r"--[a-z-]+", piece):
                assert flag in known, piece


def test_every_technique_has_its_line() -> None:
    """The README's table of techniques is the catalogue's: name, family, why."""
    lines = [f"| `{t.name}` | {t.family} | {t.why} |" for t in BUILT_IN]
    assert "\n".join(lines) in README


def test_keys_of_an_npz_are_named() -> None:
    """Every key that is read from an .npz is in the README, and no other."""
    table = README[README.index("## Your data") : README.index("```python\nimport numpy")]
    rows = [line for line in table.splitlines() if "`.npz`" in line or "label" in line or "x_test" in line]
    named = set(re.findall(r"`(\w+)`", "\n".join(rows)))
    keys = {*sources.IMAGE_KEYS, *sources.LABEL_KEYS, *sources.TEST_IMAGE_KEYS, *sources.TEST_LABEL_KEYS}
    assert named == keys


def test_the_experiment_file_is_valid() -> None:
    """The README's experiment file is read and resolved as a user's is."""
    (text,) = re.findall(r"^```toml\n(.*?)^```", README, flags=re.S | re.M)
    experiment = build(Request(tomllib.loads(text), source="README"), 54_000, None)
    assert experiment.arms == ("cosine", "muon", "wide-momentum")
    assert experiment.recipe.batch_size == 256


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_docs_are_there(page: Path) -> None:
    """Links and pictures of a page lead to files of this repository."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        assert link.startswith("http") or (page.parent / link).exists(), link
