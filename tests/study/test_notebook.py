"""The public face: what `import study` gives a notebook, light until it is used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fake_training
import numpy as np
import pandas as pd
import pytest

from study import Answer, Experiments, analyse
from study import open as open_experiments
from study.statistics.verdicts import Verdict
from vae.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def python(folder: Path, code: str) -> str:
    """What a fresh Python prints that runs the code in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def experiments(one_arm: fake_training.Finished) -> Experiments:
    """A finished comparison's database, open."""
    return open_experiments(f"sqlite:///{one_arm.folder / 'optuna.db'}")


def test_importing_loads_nothing_heavy(tmp_path: Path) -> None:
    """`import study` alone loads no torch, Optuna or pandas, and none of our other modules; its names are there."""
    code = (
        "import sys\nbefore = set(sys.modules)\nimport study\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))\n"
        "print([name for name in sys.modules if name.startswith('study.')])\n"
        "print(*map(callable, map(study.__dict__.get, study.__all__)))"
    )
    assert python(tmp_path, code).splitlines() == ["['study']", "[]", "True True True True True"]


def test_a_comparison_is_read_from_a_database(experiments: Experiments) -> None:
    """Arms as a DataFrame with the baseline first, verdicts by arm, sentences; the only experiment needs no name."""
    with experiments:
        assert list(experiments) == ["fake"]
        assert len(experiments) == 1
        answer = experiments.comparison()
        assert experiments.comparison("fake").sentences == answer.sentences
        with pytest.raises(UserError, match="No experiment 'fakes'"):
            experiments.comparison("fakes")
    assert answer.arms["arm"].tolist()[:2] == ["baseline", "twice"]
    speed_up = answer.arms.set_index("arm").loc["twice", "speed_up"]
    assert speed_up == pytest.approx(2.0, rel=0.1)
    assert answer.verdicts["twice"] is Verdict.FASTER
    assert "baseline" not in answer.verdicts
    assert answer.target is not None
    assert "twice" in answer.sentences[0]
    assert "twice" in repr(answer)


def test_a_notebook_shows_a_table(experiments: Experiments) -> None:
    """`_repr_html_` has a row an arm, the sentences and the notes."""
    with experiments:
        html = experiments.comparison()._repr_html_()
    assert html.count("<tr") >= 3
    for words in ("<th>speed-up, examples</th>", "<td>twice</td>", "faster", "<li>"):
        assert words in html


def test_a_notebook_shows_the_interval_that_goes_with_the_verdict() -> None:
    """The table's intervals are those of the sentences, and an arm that misses is at most so fast, as on a terminal."""
    clock = np.arange(1.0, 41.0)
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "epoch": at,
            "value": 60.0 - 10.0 * np.log(at * speed * (1.0 + 0.01 * (seed % own))),
        }
        for own, (arm, speed) in enumerate({"adam": 1.0, "muon": 2.0, "sgd": 0.1}.items(), start=2)
        for seed in range(6)
        for at in clock
    ]
    answer = analyse(pd.DataFrame(rows), baseline="adam", target=35.0)
    shown = re.search(r"[0-9.]+x \[[0-9., ]+\]", answer.sentences[0])
    assert shown is not None
    assert shown.group() in answer._repr_html_()
    assert "at most" in answer._repr_html_()


def test_html_is_escaped() -> None:
    """Nothing of a database becomes markup in a notebook."""
    bad = "<script>alert(1)</script>"
    table = pd.DataFrame([{"arm": bad}])
    html = Answer("x", 1.0, table, {}, [bad], [bad], table, dict)._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 3


def test_the_readme_s_notebook_runs(tmp_path: Path) -> None:
    """The README's section for notebooks runs as it stands: it trains, reads and prints."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- notebook -->\n```python\n(.*?)^```", text, flags=re.S | re.M)
    lines = python(
        tmp_path, f"{code}\nprint(comparison.arms.shape[0], sorted(comparison.verdicts))"
    ).splitlines()
    assert lines[0] == "digits"
    assert lines[1].startswith("On digits, ")
    assert lines[2].startswith("4 ['article', 'cosine', 'output-bias']")
    assert (tmp_path / "optuna.db").exists()
