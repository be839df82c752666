"""The command line: help without torch, one line and the right exit code for every mistake, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from command_line import Call

from study.cli import app as cli
from study.design.techniques import BUILT_IN
from vae.recipe import Recipe

COMMANDS = {"run", "search", "compare", "worker", "show", "export", "report", "dashboard", "techniques"}
ROOT = Path(__file__).resolve().parents[3]


def python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python in a folder, with this project on its path last, as if it were installed."""
    code = "import sys, runpy; sys.path.append(sys.argv.pop(1)); sys.path.insert(0, ''); " + args[0]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", code, str(ROOT), *args[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_there_are_these_commands() -> None:
    """The commands are those of the README; a new one needs its place in these tests."""
    assert {
        command.name or command.callback.__name__
        for command in cli.app.registered_commands
        if command.callback
    } >= COMMANDS


def test_help_is_quick_and_whole(tmp_path: Path) -> None:
    """Every command explains itself and each of its options, and none of that imports torch."""
    code = (
        "import sys\nfrom study.cli.app import app\n"
        "for c in app.registered_commands:\n"
        "    app([c.name or c.callback.__name__, '--help'], standalone_mode=False)\n"
        "app(['--help'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'optuna', 'pandas', 'scipy', 'plotly') if m in sys.modules])"
    )
    done = python(tmp_path, f"exec({code!r})")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    pages = done.stdout.split("Usage: ")[1:]
    assert len(pages) == len(cli.app.registered_commands) + 1
    for page in pages:
        assert max(map(len, page.splitlines())) <= 80
        assert len(page.split("Options:")[0].splitlines()) >= 3  # a sentence of what it does
        for line in page.split("Options:")[1].splitlines():
            assert not line.startswith("  --") or line.strip() != line.split()[0], f"{line} has no help"


def test_without_a_command_there_is_help(call: Call) -> None:
    """No arguments: the help, on stdout, and no error."""
    result = call()
    assert result.code == 0
    assert "Commands:" in result.out
    assert result.err == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("serach", "Did you mean 'search'"),
        ("compare --armss cosine", "No such option: --armss"),
        ("compare --seeds x", "--seeds"),
        ("compare --arms cosin", "Unknown arm 'cosin'. Did you mean 'cosine'"),
        ("compare --arms baseline", "at least one arm"),
        ("compare --seeds 0", "seeds = 0: must be greater than or equal to 1"),
        ("compare --tune-trials 0", "tune_trials = 0: must be greater than or equal to 1"),
        ("run --tune-trials 0", "tune_trials = 0"),
        ("run --search-trials -1", "search.trials = -1: must be greater than or equal to 0"),
        ("search --trials 0", "--search-trials 0: a search needs at least one trial"),
        ("compare --blocks 0", "blocks = 0"),
        ("compare --model conv --set model=mlp", "--model conv and --set model=mlp: say one network"),
        ("compare --blocks 3 --seeds 20", "seeds (20) must be divisible by blocks (3)"),
        ("compare --margin 1", "margin = 1.0: must be less than 1"),
        ("compare --aa 0", "--aa 0: at least one"),
        ("compare --aa 1 --null-arms 0", "--null-arms 0: from 1 to 99"),
        ("compare --aa 1 --null-arms 100", "--null-arms 100: from 1 to 99"),
        ("compare --null-arms 2", "--null-arms goes with --aa"),
        ("compare --aa 1 --dry-run", "leave out --dry-run"),
        ("compare --aa 1 --arms cosine", "--arms doesn't go with --aa"),
        ("compare --aa 1 --combine", "--combine doesn't go with --aa"),
        ("compare --aa 1 --run-to-budget", "--run-to-budget doesn't go with --aa"),
        ("compare --aa 2 --seed 9999", "from --seed 9999 on, and seeds end at 9999"),
        ("run --run-to-budget", "No such option"),
        ("compare --seeds 7 --blocks 2", "seeds (7) must be divisible by blocks (2)"),
        ("compare --target -5", "target = -5 is out of reach"),
        ("compare --target 3", "out of reach"),
        ("compare --target nan", "target = nan"),
        ("compare --margin 1", "margin = 1"),
        ("compare --budget 0", "budget = 0"),
        ("compare --seed -1", "seed = -1"),
        ("compare --set lr", "write FIELD=VALUE"),
        ("compare --set lrr=1", "Did you mean 'lr'"),
        ("compare --set lr=-1", "lr = -1"),
        ("compare --set lr=fast", "lr = 'fast'"),
        ("compare --set seed=3", "See --seed"),
        ("compare --set batch_size=5000", "batch_size 5000 is more than the 1197"),
        ("compare --set likelihood=bernouli", "'bernoulli'"),
        ("compare --data digit", "Did you mean 'digits'"),
        ("compare --data nowhere.npy", "No file nowhere.npy"),
        ("compare --data=", "command line: data is ''"),
        ("run --name=", "the name ''"),
        ("run --threads 0", "--threads"),
        ("compare --data-dir nowhere", "nowhere"),
        ("compare --file nowhere.toml", "No experiment file nowhere.toml"),
        ("compare --file typo.toml", "Did you mean 'seeds'"),
        ("techniques --file typo.toml", "Did you mean 'seeds'"),
        ("compare --name a/b", "--name"),
        ("compare --name ..", "--name"),
        ("compare --device gpu", "choose auto, cpu, cuda, cuda:N or mps"),
        ("compare --device meta", "choose auto, cpu, cuda, cuda:N or mps"),
        ("compare --device cuda:99", "CUDA devices"),
        ("compare --workers 0", "--workers"),
        ("compare --storage optuna.db", "not a database URL"),
        ("compare --storage mysql://x/y", "mysql"),
        ("compare --storage sqlite:///no/such/folder/x.db", "No folder"),
        ("compare --storage sqlite:////dev/null", "/dev/null is no regular file"),
        ("show --storage sqlite:////dev/null", "/dev/null is no regular file"),
        ("compare --aa 0", "--aa 0"),
        ("compare --aa 2 --dry-run", "--dry-run"),
        ("search --sampler grid", "sampler = 'grid'"),
        ("search --pruner asha", "pruner = 'asha'"),
        ("search --patience -1", "patience = -1"),
        ("show", "No database optuna.db"),
        ("export --format xlsx", "No database optuna.db"),
        ("export --artifacts other", "--artifacts other is where --models copies from: add --models"),
        ("report", "No database optuna.db"),
        ("worker --name x", "No database optuna.db"),
        ("worker", "--name"),
    ],
)
def test_mistakes_are_told_in_one_line(call: Call, tmp_path: Path, args: str, words: str) -> None:
    """A mistake exits with 2 and one line on stderr: the rule, the value, the way out. Nothing is written, and no
    download is begun."""
    (tmp_path / "typo.toml").write_text("sedes = 3\n")
    result = call(*args.split())
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("Error: ")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["typo.toml"]


def test_a_failure_is_no_mistake(call: Call, tmp_path: Path) -> None:
    """Where the input was fine and the work can't be done the exit code is 1: here a damaged database."""
    (tmp_path / "optuna.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5_000)
    for command in ("show", "compare"):
        result = call(command)
        assert result.code == 1
        assert result.err.startswith("Error: optuna.db")
        assert result.err.count("\n") == 1


def test_mistakes_come_before_downloads(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be refused without the data is refused before the data is fetched."""
    from study import session

    def load(*args: object, **kwargs: object) -> None:  # noqa: ARG001
        raise AssertionError("the data was loaded")

    monkeypatch.setattr(session, "load", load)
    for args in ("--arms cosin", "--seeds 0", "--target -1", "--set lr=-1"):
        assert call("compare", "--data", "mnist", *args.split()).code == 2


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --debug an error comes with its traceback instead of one line."""
    from vae.errors import UserError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "compare", "--arms", "cosin", "--debug"])
    with pytest.raises(UserError, match="cosine"):
        cli.run()


def test_dry_run_writes_nothing(call: Call, tmp_path: Path) -> None:
    """--dry-run checks everything, prints the plan and the estimated time, and leaves no file."""
    result = call("run", "--arms", "cosine,he", "--search-trials", "3", "--dry-run", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    assert "arms: baseline, cosine, he; K = 8 tuning points and 2 guided rounds, S = 20" in result.out
    assert (
        f"{3 + 24 + 24 + 5 + 80} trials (3 search, 24 tune, 24 guided, 5 calibration, 80 confirm)"
        in result.out
    )
    assert "minutes" in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("in_the_way", "words"),
    [("reports", "The folder of the report can't be written to: reports"), ("artifacts", "--artifacts")],
)
def test_folders_are_tried_before_anything_is_trained(
    call: Call, tmp_path: Path, in_the_way: str, words: str, dry_run: list[str]
) -> None:
    """A folder that results couldn't be written to in the end stops a command before it begins."""
    (tmp_path / in_the_way).write_text("a file where a folder belongs")
    result = call("compare", "--arms", "cosine", *dry_run)
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert "Not a directory" in result.err
    assert result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [in_the_way]


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (
            "report --out file/r.html",
            "The folder of the report can't be written to: file: Not a directory",
            1,
        ),
        ("report --out folder", "--out folder is a folder: name a file", 2),
        ("report --figures file", "--figures can't be written to: file: Not a directory", 1),
        ("report", "The folder of the report can't be written to: reports", 1),
        ("export --out file", "--out can't be written to: file: Not a directory", 1),
    ],
)
def test_where_results_go_is_tried_before_they_are_made(
    call: Call, tmp_path: Path, args: str, words: str, code: int
) -> None:
    """What a reading command can't write to is said before the database is looked at."""
    for name in ("file", "reports"):
        (tmp_path / name).write_text("a file where a folder belongs")
    (tmp_path / "folder").mkdir()
    if args == "report --figures file":
        (tmp_path / "reports").unlink()
    result = call(*args.split())
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_workers_and_threads(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """--threads sets each worker's threads, else OMP_NUM_THREADS bounds them; more than the cores is warned of."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = ["search", "--dry-run", "--device", "cpu"]
    assert "1 worker x 2 threads" in call(*plan, "--workers", "1").out
    assert "1 worker x 1 thread;" in call(*plan, "--workers", "1", "--threads", "1").out
    result = call(*plan, "--workers", "100")
    assert result.code == 0
    assert result.err.startswith("Warning: 100 workers x 1 thread share 2 cores")
    assert "--workers 2" in result.err
    assert result.err.count("\n") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "1 worker x 1 thread;" in call(*plan, "--workers", "1").out


def test_names_and_paths_are_shown_as_they_are(call: Call, tmp_path: Path) -> None:
    """Brackets and emoji codes in a path are letters, on every line of the output."""
    name = "[red]a[b]:smile:.npy"
    (tmp_path / "[x]").mkdir()
    np.save(tmp_path / "[x]" / name, np.random.default_rng(0).random((80, 2, 2), dtype=np.float32))
    args = ["search", "--data", f"[x]/{name}", "--name", "x", "--set", "batch_size=8"]
    result = call(*args, "--dry-run", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    assert f"x: {name[:-4]}, 64 train" in result.out
    assert f"No file [y]/{name}" in call("search", "--data", f"[y]/{name}", "--name", "x").err


def test_a_file_and_flags_meet(call: Call, tmp_path: Path) -> None:
    """Flags win over the file, the file over the defaults."""
    (tmp_path / "e.toml").write_text('arms = ["cosine"]\nseeds = 4\ntune_trials = 2\n[search]\ntrials = 7\n')
    result = call("run", "--file", "e.toml", "--seeds", "6", "--dry-run")
    assert "K = 2 tuning points and 2 guided rounds, S = 6 seeds" in result.out
    assert "7 search" in result.out
    assert "search" not in call("compare", "--file", "e.toml", "--dry-run").out
    assert "arms" not in call("search", "--file", "e.toml", "--dry-run").out


@pytest.mark.parametrize("shadow", ["vae.py", "vae/__init__.py"])
def test_a_shadowing_file_is_named(tmp_path: Path, shadow: str) -> None:
    """A vae.py of the user's in the working folder is noticed and named, before it is imported."""
    path = tmp_path / shadow
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('imported')")
    done = python(tmp_path, "runpy.run_module('study', run_name='__main__')", "techniques")
    assert done.returncode == 2
    assert shadow in done.stderr
    assert "rename it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_files_of_the_users_never_stand_in_for_ours(tmp_path: Path) -> None:
    """The installed command trains in a folder that holds a vae.py and a study.py of the user's: its workers are
    this program too."""
    for name in ("vae.py", "study.py"):
        (tmp_path / name).write_text("raise SystemExit('the file of the user was imported')")
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).random((80, 2, 2), dtype=np.float32))
    args = ["search", "--data", "pixels.npy", "--trials", "1", "--budget", "1", "--workers", "1"]
    args += ["--device", "cpu", "--set", "batch_size=8", "--set", "latent_size=2"]
    done = python(tmp_path, "sys.path.pop(0); from study.__main__ import main; main()", *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Best model: artifacts/pixels/best.safetensors" in done.stdout


def test_techniques_are_listed_at_80_columns(call: Call) -> None:
    """Every technique is listed whole with its change, its knobs, why and the source, on an 80-column terminal."""
    result = call("techniques")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out
    names = {line.split()[0] for line in result.out.splitlines() if line.startswith("  ") and line[2] != " "}
    assert names == {technique.name for technique in BUILT_IN}
    words = " ".join(result.out.split())
    for technique in BUILT_IN:
        assert technique.why in words
        assert technique.source in words
        assert f"slot: {technique.slot}" in words
        assert f"\n{technique.family}\n" in "\n" + result.out
    assert "init = xavier_uniform" in words
    assert "batch_size x 0.25" in words
    assert "+2 hidden layers" in words
    assert "lr_schedule = cosine, tunes horizon" in words


def test_techniques_of_a_file_are_listed(call: Call, tmp_path: Path) -> None:
    """Techniques of an experiment file are listed beside the built-in ones."""
    (tmp_path / "mine.toml").write_text(
        '[techniques.mine]\noverrides = { init = "orthogonal" }\nwhy = "Mine."\n'
    )
    result = call("techniques", "--file", "mine.toml")
    assert "mine" in result.out
    assert "Mine." in result.out


def test_a_real_search_from_the_command_line(call: Call, tmp_path: Path) -> None:
    """`search` trains in worker processes, prints the best recipe, keeps its model, writes the report; run again it
    has nothing to do; `export` writes that recipe as TOML."""
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).random((80, 2, 2), dtype=np.float32))
    args = [
        "search",
        "--data",
        "pixels.npy",
        "--trials",
        "2",
        "--budget",
        "2",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    args += ["--set", "batch_size=8", "--set", "latent_size=2"]
    result = call(*args)
    assert (result.code, result.err) == (0, "")
    assert "Search: 2 trials" in result.out
    assert "Best model: artifacts/pixels/best.safetensors" in result.out
    assert (tmp_path / "reports" / "pixels.html").stat().st_size > 10_000
    assert call("export", "--format", "csv", "--models").code == 0
    kept = tmp_path / "artifacts" / "pixels" / "best.safetensors"
    assert (tmp_path / "export" / "pixels-best.safetensors").read_bytes() == kept.read_bytes()
    gone = call("export", "--models", "--artifacts", f"local://{tmp_path}/elsewhere")
    assert gone.code == 0
    assert gone.err.startswith("No model of search trial ")
    best = Recipe.load(tmp_path / "export" / "pixels-best.toml")
    assert best == Recipe.load(tmp_path / "artifacts" / "pixels" / "best.toml")
    assert best.batch_size == 8
    with (tmp_path / "export" / "pixels-best.toml").open("rb") as file:
        assert tomllib.load(file)["latent_size"] == 2
    result = call("search", "--data", "pixels.npy", "--budget", "3")
    assert result.code == 2
    assert "budget = 2.0, not 3.0" in result.err
