"""`python -m vae`: a model is trained, judged, used to compress and to generate, through files alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from vae.__main__ import main
from vae.checkpoint import load_model
from vae.data.dataset import load
from vae.recipe import Recipe
from vae.use import evaluate

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


def test_pixels_are_drawn(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --draw-pixels a sample's pixels are drawn too: black or white under the Bernoulli, as often white as the
    expected pixels of the same seed's codes say."""
    arrays = []
    for flags in ([], ["--draw-pixels"], ["--draw-pixels"]):
        path = tmp_path / f"{len(arrays)}.npy"
        assert call(monkeypatch, "sample", str(model), "--out", str(path), "--n", "900", *flags) == 0
        arrays.append(np.load(path))
    expected, drawn, again = arrays
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert (drawn == again).all()
    # 900 draws of a pixel: a standard deviation of 1/60 at most, and 64 pixels to look at.
    assert np.abs(drawn.mean(0) - expected.mean(0)).max() < 4.5 / 60


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
        (["train", "--model", "conv", "--set", "model=mlp", "--out", "m.safetensors"], "say one network", 2),
        (["info", "s3://bucket/m.safetensors"], "is no file of this machine: copy it here first", 2),
        (["train", "--out", "m", "--set", "lr"], "FIELD=VALUE", 2),
        (["train", "--out", "m", "--device", "gpu"], "choose auto, cpu, cuda", 2),
        (["train", "--out", "m", "--device", "cuda:99"], "CUDA devices. Use --device cpu or auto", 2),
        (["train", "--out", "m", "--set", "lrr=1"], "Did you mean 'lr'?", 2),
        (["train", "--out", "m", "--set", "lr=-1"], "lr = -1: must be greater than 0", 2),
        (["train", "--out", "m", "--recipe", "none.toml"], "none.toml can't be read", 2),
        (["train", "--out", "m", *SMALL, "--set", "optimizer=sgd", "--set", "lr=100"], "diverged", 1),
        (["train", "--out", "m", "--budget", "inf"], "--budget inf: at most", 2),
        (["train", "--out", "m", "--budget", "1e300"], "--budget 1e+300: at most", 2),
        (["train", "--out", "m", "--budget", "nan"], "--budget", 2),
        (["train", "--out", "m", "--seed", "-3"], "seed = -3", 2),
        (["train", "--out", "."], "can't be written: it is a directory", 1),
        (["train", "--out", "/proc/m"], "/proc/m can't be written", 1),
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


# Which data


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of a user's own and a model trained on it, split by seed 5."""
    folder = tmp_path_factory.mktemp("own")
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4), dtype=np.uint8)
    np.savez(folder / "digits.npz", images=images, labels=np.arange(200))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        args = ["train", "--data", "digits.npz", "--seed", "5", "--out", "m.safetensors", *SMALL]
        assert call(patch, *args) == 0
    return folder


def judged(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.split("negative ELBO ")[1].split()[0]


def test_an_evaluation_can_say_how_far_it_is(own: Path) -> None:
    """Every image goes through once, and the judgement is the same."""
    trained, split = load_model(own / "m.safetensors"), load(str(own / "digits.npz"), seed=5).test
    gone: list[int] = []

    def through(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for batch in batches:
            gone.append(len(batch))
            yield batch

    found = evaluate(trained, split, k=1, limit=20, through=through)
    assert sum(gone) == 20
    assert found == evaluate(trained, split, k=1, limit=20)


def test_the_split_is_the_trainings(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model is judged by the test images of its training without a word of where they are, from any folder, although
    a built-in set has the file's name; another seed, which would judge it by what it was trained on, is refused."""
    monkeypatch.chdir(tmp_path)
    model, data = str(own / "m.safetensors"), str(own / "digits.npz")
    trained = load_model(own / "m.safetensors")
    expected = evaluate(trained, load(data, seed=5).test).scores.loss
    assert call(monkeypatch, "evaluate", model) == 0
    assert judged(capsys) == f"{expected:.3f}"
    assert call(monkeypatch, "evaluate", model, "--data", data, "--seed", "5") == 0
    assert judged(capsys) == f"{expected:.3f}"
    for named in ([], ["--data", data]):
        assert call(monkeypatch, "evaluate", model, "--seed", "0", *named) == 2
        assert (
            "the model was trained on most of its test images: leave --seed away" in capsys.readouterr().err
        )


def test_data_that_is_not_there_is_said(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was moved is named; found in --data-dir it is taken; one that has changed is not, unless it is
    named, and then that is said."""
    monkeypatch.chdir(tmp_path)
    model, data = str(own / "m.safetensors"), own / "digits.npz"
    moved = data.rename(tmp_path / "digits.npz")
    try:
        assert call(monkeypatch, "evaluate", model) == 2
        assert f"{data}, which is not there" in capsys.readouterr().err
        assert call(monkeypatch, "evaluate", model, "--data-dir", str(tmp_path)) == 0
        capsys.readouterr()
        np.savez(data, images=np.zeros((50, 4, 4), dtype=np.float32))
        assert call(monkeypatch, "evaluate", model) == 2
        assert "is not what the model was trained on any more" in capsys.readouterr().err
        assert call(monkeypatch, "evaluate", model, "--data", str(data)) == 0
        assert capsys.readouterr().err.startswith(
            "Note: digits is not the data that the model was trained on"
        )
    finally:
        moved.rename(data)


def test_model_files_of_before_are_read(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They say neither where their data is nor how it was split: the file must be named, and where the split isn't the
    training's that is said."""
    with safe_open(own / "m.safetensors", framework="pt") as file:
        kept = {
            key: value for key, value in file.metadata().items() if key not in ("data_source", "split_seed")
        }
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    model, data = str(tmp_path / "m.safetensors"), str(own / "digits.npz")
    save_file(weights, model, metadata=kept)
    monkeypatch.chdir(own)
    assert call(monkeypatch, "evaluate", model, "--data", data, "--seed", "5") == 0
    assert capsys.readouterr().err == ""
    assert call(monkeypatch, "evaluate", model, "--data", data) == 0
    assert "its test images may have been trained on" in capsys.readouterr().err


def test_a_file_is_encoded_whole_and_in_order(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every image of a file that the user names has its code, however few they are; with --split, and of the training's
    own data, only that part, and `rows` says which images those are."""
    model, out = str(own / "m.safetensors"), str(tmp_path / "codes.npz")

    def codes(*args: str) -> dict[str, np.ndarray]:
        assert call(monkeypatch, "encode", model, "--out", out, *args) == 0
        with np.load(out) as stored:
            return dict(stored)

    data = str(own / "digits.npz")
    whole = codes("--data", data)
    assert whole["rows"].tolist() == whole["labels"].tolist() == list(range(200))
    test = codes("--data", data, "--split", "test")
    assert len(test["rows"]) == 20
    assert test["rows"].tolist() == test["labels"].tolist() == codes()["rows"].tolist()
    assert np.allclose(whole["mean"][test["rows"]], test["mean"], atol=1e-6)
    np.save(tmp_path / "one.npy", np.zeros((1, 4, 4), dtype=np.uint8))
    assert codes("--data", str(tmp_path / "one.npy"))["mean"].shape == (1, 3)
    capsys.readouterr()
    np.save(tmp_path / "nan.npy", np.full((3, 4, 4), np.nan, dtype=np.float32))
    assert call(monkeypatch, "encode", model, "--out", out, "--data", str(tmp_path / "nan.npy")) == 2
    assert "NaN" in capsys.readouterr().err


def test_code_that_makes_the_data_is_named_where_all_of_it_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As wherever else it is run from a model file: a note on stderr."""
    monkeypatch.chdir(tmp_path)
    made = "import numpy\n\n\ndef dots():\n    return numpy.eye(20, 16, dtype='float32').reshape(20, 4, 4)\n"
    Path("dots.py").write_text(made)
    small = ["--set", "hidden=[4]", "--set", "latent_size=2", "--set", "batch_size=full", "--budget", "1"]
    assert call(monkeypatch, "train", "--data", "dots.py:dots", "--out", "m.safetensors", *small) == 0
    capsys.readouterr()
    assert call(monkeypatch, "encode", "m.safetensors", "--out", "c.npz", "--split", "all") == 0
    told = capsys.readouterr()
    assert "20 images of 16 pixels" in told.out
    assert f"Note: runs {tmp_path / 'dots.py'}:dots, SHA-256" in told.err


# What is written


def test_colour_and_flat_data_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sheet of colour images is in colour, whichever way round they are stored; flat ones need --shape, and have it
    in an array too."""
    monkeypatch.chdir(tmp_path)
    for name, shape in (("last", (5, 6, 3)), ("first", (3, 5, 6)), ("flat", (30,))):
        images = np.random.default_rng(0).integers(0, 256, (60, *shape), dtype=np.uint8)
        np.save(f"{name}.npy", images)
        small = [*SMALL[:-2], "--set", "batch_size=16", "--budget", "1"]
        assert (
            call(monkeypatch, "train", "--data", f"{name}.npy", "--out", f"{name}.safetensors", *small) == 0
        )
        flags = ["--n", "4"] if name != "flat" else ["--n", "4", "--shape", "5,6"]
        assert call(monkeypatch, "reconstruct", f"{name}.safetensors", "--out", "r.png", *flags) == 0
        for suffix in ("png", "npy"):
            assert (
                call(monkeypatch, "sample", f"{name}.safetensors", "--out", f"{name}.{suffix}", *flags) == 0
            )
        drawn = np.load(f"{name}.npy")
        assert drawn.shape == (4, *(shape if name != "flat" else (5, 6)))
        if name == "first":
            drawn = drawn.transpose(0, 2, 3, 1)
        with Image.open(f"{name}.png") as sheet:
            assert sheet.mode == ("LA" if name == "flat" else "RGBA")
            factor = sheet.width // 13  # two images of six pixels and a gap
            first = np.asarray(sheet)[: 5 * factor : factor, : 6 * factor : factor, :-1]
        assert (first == np.rint(drawn[0].reshape(5, 6, -1).astype(np.float64) * 255)).all()


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (["sample", "--out", "x.gif"], "end it with .png or .npy", 2),
        (["sample", "--out", "taken/x.png"], "taken/x.png can't be written", 1),
        (["sample", "--out", "x.npy", "--seed", "99999999999999999999999"], "whole number of 64 bits", 2),
        (["sample", "--out", "x.npy", "--n", "999999999999"], "GiB are free: ask for fewer images", 1),
        (["sample", "--out", "x.png", "--n", "999999999999"], "A sheet has at most 10000 images", 2),
        (["sample", "--out", "x.png", "--shape", "9,9"], "--shape 9,9: height and width", 2),
        (["sample", "--out", "x.png", "--shape", "-8,-8"], "--shape -8,-8: height and width", 2),
        (["decode", "zip.npz", "--out", "x.npy"], "zip.npz holds no codes (it is a damaged .npz file)", 2),
        (["decode", "text.npz", "--out", "x.npy"], "text.npz holds no codes (it is no .npz and no .npy)", 2),
        (["decode", "none.npz", "--out", "x.npy"], "none.npz holds no codes (No such file or directory)", 2),
        (["decode", "other.npz", "--out", "x.npy"], "other.npz holds no codes", 2),
        (["decode", "words.npy", "--out", "x.npy"], "this model's codes are numbers of shape (N, 3)", 2),
        (["decode", "short.npy", "--out", "x.npy"], "short.npy holds no codes", 2),
        (["decode", "nan.npy", "--out", "x.npy"], "NaN, infinite or too large", 2),
        (["encode", "--out", "x.npz", "--split", "tset"], "choose train, valid, test or all", 2),
        (["encode", "--out", "taken/x.npz"], "taken/x.npz can't be written", 1),
        (["evaluate", "--split", "all"], "choose train, valid or test", 2),
        (["evaluate", "--data", "no.npy"], "No file no.npy", 2),
    ],
)
def test_what_cannot_be_is_one_line(
    model: Path,
    args: list[str],
    words: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In using a model: a file that is no code, a place that can't be written, a number beyond the machine."""
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    Path("zip.npz").write_bytes(b"PK\x03\x04 and no zip")
    Path("text.npz").write_text("1, 2, 3")
    np.savez("other.npz", codes=np.zeros((2, 3)))
    np.save("words.npy", np.array([["a", "b", "c"]]))
    np.save("nan.npy", np.full((2, 3), np.nan))
    np.save("short.npy", np.zeros((1000, 3)))
    Path("short.npy").write_bytes(Path("short.npy").read_bytes()[:200])
    before = sorted(path.name for path in tmp_path.iterdir())
    assert call(monkeypatch, args[0], str(model), *args[1:]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# What a model makes of images


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sixty colour images of 6 x 5 and a convolutional model of them."""
    folder = tmp_path_factory.mktemp("colour")
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)
    (folder / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "images" / f"{number:02d}.png")
    fields = ["model=conv", "model_options.channels=[4]", "hidden=[8]", "latent_size=3", "batch_size=16"]
    args = [part for field in fields for part in ("--set", field)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(patch, "train", "--data", "images", "--out", "m.safetensors", "--budget", "2", *args) == 0
    return folder


@pytest.mark.parametrize("likelihood", ["cross_entropy", "gaussian", "dynamic_bernoulli"])
def test_codes_have_the_distortion_that_evaluate_reports(
    likelihood: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoded, decoded and scored from the files alone, the test split has evaluate's distortion to the last bit."""
    import torch

    from vae import likelihoods

    monkeypatch.chdir(tmp_path)
    chosen = ["--set", f"likelihood={likelihood}"]
    assert call(monkeypatch, "train", "--out", "m.safetensors", *SMALL, *chosen) == 0
    assert call(monkeypatch, "encode", "m.safetensors", "--out", "c.npz") == 0
    flags = ["--drawn", "--parameters"]
    assert call(monkeypatch, "decode", "m.safetensors", "c.npz", "--out", "p.npy", *flags) == 0
    of, test = likelihoods.likelihood(likelihood), load("digits", likelihood=likelihood).test
    x = of.prepare_eval(test.all(), torch.Generator())
    log_prob = of.log_prob(torch.from_numpy(np.load("p.npy")), x)
    found = evaluate(load_model(Path("m.safetensors")), test, k=1).scores.distortion
    assert float(-log_prob.sum()) / len(x) == found
    assert call(monkeypatch, "decode", "m.safetensors", "c.npz", "--out", "p.png", *flags) == 2


def test_reconstructs_traverses_and_interpolates(
    colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An array of reconstructions is what encode and decode give; the ways begin and end at the images' own; a walk
    changes its own dimension; sheets are in colour."""
    model = str(colour / "m.safetensors")
    monkeypatch.chdir(tmp_path)

    def made(command: str, *args: str) -> np.ndarray:
        assert call(monkeypatch, command, model, "--out", "x.npy", *args) == 0
        found: np.ndarray = np.load("x.npy")
        return found

    assert call(monkeypatch, "encode", model, "--out", "c.npz") == 0
    assert call(monkeypatch, "decode", model, "c.npz", "--out", "d.npy") == 0
    whole = np.load("d.npy")
    assert whole.shape == (6, 6, 5, 3)
    assert np.allclose(made("reconstruct"), whole, atol=1e-6)
    assert np.allclose(made("reconstruct", "--n", "2"), whole[:2], atol=1e-6)
    for flags in ([], ["--spherical"]):
        way = made("interpolate", "--rows", "0,3,1", "--steps", "4", *flags)
        assert way.shape == (8, 6, 5, 3)
        assert np.allclose(way[[0, 3, 4, 7]], whole[[0, 3, 3, 1]], atol=1e-5)
    with np.load("c.npz") as codes:
        z = np.tile(codes["mean"][2], (3, 1))
    z[:, 1] = [-2.0, 0.0, 2.0]
    np.save("z.npy", z)
    assert call(monkeypatch, "decode", model, "z.npy", "--out", "d.npy") == 0
    walk = made("traverse", "--dims", "1", "--row", "2", "--steps", "3", "--span", "2")
    assert np.allclose(walk, np.load("d.npy"), atol=1e-6)
    capsys.readouterr()
    for command, shape in (("reconstruct", (6, 2)), ("traverse", (9, 3)), ("interpolate", (9, 1))):
        assert call(monkeypatch, command, model, "--out", "x.png") == 0
        with Image.open("x.png") as sheet:
            assert sheet.mode == "RGBA"
            factor = sheet.width / (shape[0] * (5 + 1) - 1)
            assert sheet.height == pytest.approx(factor * (shape[1] * (6 + 1) - 1))


def test_info_says_what_a_file_is(
    colour: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Network, data, training, metrics, versions and recipe; a file of before says what it knows; what a file says is
    shown and not obeyed."""
    model = colour / "m.safetensors"
    assert call(monkeypatch, "info", str(model)) == 0
    text = capsys.readouterr().out
    for words in (
        "network   conv,",
        "data      images, fingerprint",
        "outcome collapsed",  # of random pixels a code says nothing
        "test_loss",
        "torch 2.",
    ):
        assert words in text
    assert call(monkeypatch, "info", str(model), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metrics"]["valid_loss"] == pytest.approx(
        told["metrics"]["rate"] + told["metrics"]["distortion"]
    )
    assert told["recipe"]["model_options"] == {"channels": [4], "blocks": 0, "norm": "batch"}
    with safe_open(model, framework="pt") as file:
        kept = {key: file.metadata()[key] for key in ("recipe", "shape", "data_fingerprint")}
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    save_file(weights, tmp_path / "old.safetensors", metadata=kept | {"data_name": "\x1b[31mred"})
    given = kept | {"data_source": "own.py:three_splits"}
    save_file(weights, tmp_path / "given.safetensors", metadata=given)
    assert call(monkeypatch, "info", str(tmp_path / "given.safetensors")) == 0
    assert "from own.py:three_splits; in splits of its own" in capsys.readouterr().out
    assert call(monkeypatch, "info", str(tmp_path / "old.safetensors")) == 0
    text = capsys.readouterr().out
    assert "metrics   not said, a file of before" in text
    assert "\x1b" not in text
    assert r"\x1b[31mred" in text
    (tmp_path / "text.safetensors").write_text("no model")
    assert call(monkeypatch, "info", str(tmp_path / "text.safetensors")) == 2


def test_a_training_leaves_its_picture(colour: Path) -> None:
    """Beside the model lies a PNG that has a curve, and below it images in colour."""
    with Image.open(colour / "m.training.png") as picture:
        assert picture.width >= 640
        assert picture.height > 320
        red, green, blue = (np.asarray(picture)[400:, :, i].astype(int) for i in range(3))
    assert (np.abs(red - green) + np.abs(green - blue) > 30).any()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["reconstruct", "--out", "x.png", "--n", "99"], "--n 99: test has 6 images"),
        (["reconstruct", "--out", "x.gif"], "end it with .png or .npy"),
        (["traverse", "--out", "x.png", "--dims", "0,3"], "--dims 0,3: whole numbers from 0 to 2"),
        (["traverse", "--out", "x.png", "--row", "6"], "--row 6: whole numbers from 0 to 5"),
        (["traverse", "--out", "x.png", "--steps", "1"], "--steps"),
        (["interpolate", "--out", "x.png", "--rows", "1"], "two images or more"),
        (["interpolate", "--out", "x.png", "--rows", "a,b"], "--rows a,b: whole numbers from 0 to 5"),
        (["interpolate", "--out", "x.png", "--split", "tset"], "choose train, valid or test"),
        (["sample", "--out", "x.png", "--device", "tpu"], "choose auto, cpu"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(
    colour: Path,
    args: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A number beyond the images or dimensions there are, a file that is no picture, a device that is none."""
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, args[0], str(colour / "m.safetensors"), *args[1:]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
