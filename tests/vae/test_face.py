"""The public face: a handful of names, and torch only when one of them is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vae


def test_importing_vae_imports_little(tmp_path: Path) -> None:
    """Neither torch nor numpy nor pydantic: it takes no time. `--help` and `--version` do without torch too."""
    code = "import sys, vae; print([n for n in ('torch', 'numpy', 'pydantic', 'typer') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    code = (
        "import sys, vae.__main__\n"
        "try: sys.argv = ['vae', 'train', '--help']; vae.__main__.main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_the_face_has_these_names() -> None:
    """Each is documented and is what the command line uses; `dir` shows them, another name is refused."""
    assert vae.__all__ == ["Recipe", "evaluate", "load", "load_model", "train"]
    assert set(vae.__all__) <= set(dir(vae))
    for name in vae.__all__:
        assert getattr(vae, name).__doc__
        assert f"`{name}`" in (vae.__doc__ or "")
    with pytest.raises(AttributeError, match="module 'vae' has no attribute 'fit'"):
        vae.fit  # noqa: B018


def test_a_notebook_needs_no_more(tmp_path: Path) -> None:
    """Train, save, load and judge: the judgement of the loaded model is the training's own."""
    from vae.checkpoint import save_model

    data = vae.load("digits")
    training = vae.train(vae.Recipe(hidden=(16,), latent_size=2, batch_size=64), data, tau=2_000)
    for evaluation in training:
        last = evaluation
    assert last.examples >= 2_000
    save_model(tmp_path / "m.safetensors", training, data)
    found = vae.evaluate(vae.load_model(tmp_path / "m.safetensors"), data.test, k=2)
    assert found.scores.loss == pytest.approx(training.evaluate(data.test).loss, rel=1e-6)
    assert found.n == 300
    assert not found.is_likelihood
