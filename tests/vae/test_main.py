"""`python -m vae`: a model is trained, judged, used to compress and to generate, through files alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae.__main__ import main
from vae.recipe import Recipe

SMALL = ["--set", "hidden=[16]", "--set", "latent_size=3", "--set", "batch_size=64", "--set", "lr=0.01"]
SMALL += ["--budget", "10"]


def call(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["vae", *args])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained by the command line."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "train", "--out", str(path), *SMALL) == 0
    return path


def test_compresses_and_decompresses(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codes of the test split decode to images nearer their originals than the mean image is."""
    codes, images = tmp_path / "codes.npz", tmp_path / "images.npy"
    assert call(monkeypatch, "encode", str(model), "--out", str(codes)) == 0
    assert "300 images of 64 pixels -> 3 numbers each" in capsys.readouterr().out
    assert call(monkeypatch, "decode", str(model), str(codes), "--out", str(images)) == 0
    from vae.data.dataset import load

    data = load("digits")
    original = data.test.all().numpy().reshape(300, 8, 8)
    decoded = np.load(images)
    assert decoded.shape == original.shape
    mean = data.pixel_moments().mean.numpy().reshape(8, 8)
    assert ((decoded - original) ** 2).mean() < 0.95 * ((mean - original) ** 2).mean()
    with np.load(codes) as stored:
        assert (stored["labels"] == data.test.labels.numpy()).all()


def test_evaluates_with_a_tighter_bound(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The IWAE bound is above the ELBO, and grey-pixel cross-entropy is called no likelihood."""
    assert call(monkeypatch, "evaluate", str(model), "--k", "32") == 0
    text = capsys.readouterr().out
    elbo = float(text.split("negative ELBO ")[1].split()[0])
    bound = float(text.split("k = 32: ")[1].split()[0])
    assert bound < elbo
    assert "no likelihood" in text


def test_samples(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples come as a sheet or an array; equal seeds agree, unequal differ."""
    sheet = tmp_path / "sheet.png"
    assert call(monkeypatch, "sample", str(model), "--out", str(sheet), "--n", "9") == 0
    with Image.open(sheet) as image:
        assert image.size[0] == image.size[1]
    arrays = []
    for seed in ("1", "1", "2"):
        path = tmp_path / f"{len(arrays)}.npy"
        assert call(monkeypatch, "sample", str(model), "--out", str(path), "--n", "4", "--seed", seed) == 0
        arrays.append(np.load(path))
    assert (arrays[0] == arrays[1]).all()
    assert (arrays[0] != arrays[2]).any()


def test_trains_an_exported_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe file from `study export` trains here as it is."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(Recipe(hidden=(16,), latent_size=3, batch_size=64).to_toml())
    out = tmp_path / "m.safetensors"
    assert call(monkeypatch, "train", "--recipe", str(recipe), "--out", str(out), "--budget", "1") == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (["evaluate", "nowhere.safetensors"], "No model at nowhere.safetensors", 2),
        (["train", "--out", "m", "--set", "lr"], "FIELD=VALUE", 2),
        (["train", "--out", "m", "--device", "gpu"], "choose auto, cpu, cuda", 2),
        (["train", "--out", "m", "--device", "cuda:99"], "CUDA devices. Use --device cpu or auto", 2),
        (["train", "--out", "m", "--set", "lrr=1"], "Did you mean 'lr'?", 2),
        (["train", "--out", "m", "--set", "lr=-1"], "lr = -1: must be greater than 0", 2),
        (["train", "--out", "m", "--recipe", "none.toml"], "none.toml can't be read", 2),
        (["train", "--out", "m", *SMALL, "--set", "optimizer=sgd", "--set", "lr=100"], "diverged", 1),
    ],
)
def test_refuses_in_one_line(
    args: list[str],
    words: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bad input is one line on stderr with a way out, the right exit code, and no file."""
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *args) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_refuses_codes_and_data_that_do_not_fit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codes of another size and images of another shape are refused with both shapes."""
    codes = tmp_path / "codes.npy"
    np.save(codes, np.zeros((2, 5), dtype=np.float32))
    assert call(monkeypatch, "decode", str(model), str(codes), "--out", str(tmp_path / "x.npy")) == 2
    assert "(2, 5)" in capsys.readouterr().err
    np.save(tmp_path / "other.npy", np.random.default_rng(0).integers(0, 255, (50, 4, 4), dtype=np.uint8))
    assert call(monkeypatch, "evaluate", str(model), "--data", str(tmp_path / "other.npy")) == 2
    assert "(8, 8)" in capsys.readouterr().err
