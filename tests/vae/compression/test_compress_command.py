"""`python -m vae compress` and `decompress`: through files, other processes and damage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae.__main__ import main
from vae.checkpoint import load_model
from vae.compression.beside import beside
from vae.compression.file import compress, decompress, read_header, sha256_of
from vae.data.dataset import load, load_whole
from vae.errors import UserError

SMALL = ["--set", "hidden=[16]", "--set", "latent_size=2", "--set", "batch_size=64", "--set", "lr=0.01"]


def call(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["vae", *args])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of 8 bits, a model of them, another of black and white, and the images compressed by the first."""
    folder = tmp_path_factory.mktemp("compress")
    rng = np.random.default_rng(0)
    images = (rng.random((300, 1, 1, 3)) * 200 + rng.random((300, 4, 3, 3)) * 55).astype(np.uint8)
    np.save(folder / "images.npy", images)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, likelihood in (("m", "discretised_logistic"), ("bw", "bernoulli"), ("c", "cross_entropy")):
            args = ["train", "--data", "images.npy", "--out", f"{name}.safetensors", "--budget", "4", *SMALL]
            assert call(patch, *args, "--set", f"likelihood={likelihood}") == 0
        assert call(patch, "compress", "images.npy", "--model", "m.safetensors", "--out", "x.bb") == 0
    return folder


def test_another_process_with_other_threads_gives_the_same_bytes_back(folder: Path, tmp_path: Path) -> None:
    """Bit by bit, in colour, whatever the number of threads."""
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    back, model = tmp_path / "back.npy", str(folder / "m.safetensors")
    args = ["decompress", str(folder / "x.bb"), "--model", model, "--out", str(back)]
    subprocess.run(
        [sys.executable, "-m", "vae", *args], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    assert np.load(back).tobytes() == np.load(folder / "images.npy").tobytes()
    assert np.load(back).shape == (300, 4, 3, 3)


def test_what_it_took_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes and bits per dimension beside the ELBO's, the initial bits, and what four other formats take."""
    monkeypatch.chdir(folder)
    out = tmp_path / "y.bb"
    args = ["compress", "images.npy", "--model", "m.safetensors", "--out", str(out), "--beside"]
    assert call(monkeypatch, *args) == 0
    lines = capsys.readouterr().out.splitlines()
    n_bytes = out.stat().st_size
    assert (
        f"300 images of shape (4, 3, 3): {n_bytes} bytes, {8 * n_bytes / 10_800:.4f} bits per dim" in lines[0]
    )
    assert "of the negative ELBO's" in lines[0]
    assert "of the bytes are initial bits" in lines[1]
    assert [line.split("  ")[0] for line in lines[2:]] == ["PNG", "WebP lossless", "zstd -19", "bz2 -9"]


def test_black_and_white(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of 0 and 255 come back as they were; of grey ones their binarisation does, and that is said."""
    monkeypatch.chdir(tmp_path)
    model = str(folder / "bw.safetensors")
    np.save("bw.npy", np.random.default_rng(1).choice([0, 255], (50, 4, 3, 3)).astype(np.uint8))
    for source, note in ((str(folder / "images.npy"), "has pixels between black and white"), ("bw.npy", "")):
        assert call(monkeypatch, "compress", source, "--model", model, "--out", "x.bb") == 0
        error = capsys.readouterr().err
        assert note in error
        assert bool(note) == bool(error)
        assert call(monkeypatch, "decompress", "x.bb", "--model", model, "--out", "back.npy") == 0
        assert set(np.unique(np.load("back.npy"))) == {0, 255}
        capsys.readouterr()
    assert np.array_equal(np.load("back.npy"), np.load("bw.npy"))


def test_no_format_is_given_less_than_the_image() -> None:
    """Fair coins, one a colour: whatever says that it takes fewer bits than there are has lost some."""
    images = np.random.default_rng(2).choice([0, 255], (60, 16, 16, 3)).astype(np.uint8)
    taken = {other.name: other.n_bytes for other in beside(images, black_and_white=True)}
    assert min(taken.values()) >= images.size // 8, taken


def test_digits_keep_their_seventeen_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test part of a named set, in the split's order, as it is stored."""
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "--set", "likelihood=discretised_logistic", "--budget", "0.5"]
    assert call(monkeypatch, "train", "--out", "m.safetensors", *small) == 0
    assert call(monkeypatch, "compress", "digits", "--model", "m.safetensors", "--out", "x.bb") == 0
    assert call(monkeypatch, "decompress", "x.bb", "--model", "m.safetensors", "--out", "back.npy") == 0
    test = load("digits").test
    assert np.array_equal(np.load("back.npy").reshape(300, 64), test.base[test.rows].numpy())
    assert capsys.readouterr().err == ""


def test_a_block_at_a_time_is_in_memory(folder: Path, tmp_path: Path) -> None:
    """More images than a block takes are written in several, and come out of as many."""
    path, model = tmp_path / "x.bb", folder / "m.safetensors"
    trained, digest = load_model(model), sha256_of(model)
    part, _ = load_whole(str(folder / "images.npy"))
    with path.open("wb") as file:
        written = compress(trained, digest, part, file, block_pixels=36 * 70)
    assert written.n_bytes == path.stat().st_size
    with path.open("rb") as file:
        blocks = list(decompress(trained, digest, read_header(file, path), file, path))
    assert [len(block) for block in blocks] == [70, 70, 70, 70, 20]
    assert np.array_equal(np.concatenate(blocks), np.load(folder / "images.npy"))


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_said(data: st.DataObject, folder: Path, tmp_path: Path) -> None:
    """A file of which a byte is another, one is missing at any place, or to which one is added gives no image and one
    clear line."""
    whole = (folder / "x.bb").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "add", "drop"]))
    damaged = {
        "flip": whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
        "cut": whole[:at],
        "add": whole + bytes([at % 256]),
        "drop": whole[:at] + whole[at + 1 :],
    }[how]
    path = tmp_path / "damaged.bb"
    path.write_bytes(damaged)
    trained, digest = load_model(folder / "m.safetensors"), sha256_of(folder / "m.safetensors")
    with path.open("rb") as file, pytest.raises(UserError) as refused:
        list(decompress(trained, digest, read_header(file, path), file, path))
    assert "damaged" in str(refused.value) or "is no file that" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (
            ["decompress", "x.bb", "--model", "bw.safetensors", "--out", "y.npy"],
            "with another model (SHA-256",
            2,
        ),
        (["decompress", "x.bb", "--model", "m.safetensors", "--out", "y.png"], "end it with .npy", 2),
        (["decompress", "no.bb", "--model", "m.safetensors", "--out", "y.npy"], "no.bb can't be read", 2),
        (["decompress", "images.npy", "--model", "m.safetensors", "--out", "y.npy"], "is no file that", 2),
        (["decompress", "damaged.bb", "--model", "m.safetensors", "--out", "y.npy"], "damaged", 1),
        (
            ["compress", "images.npy", "--model", "c.safetensors", "--out", "y.bb"],
            "discretised_logistic (8-bit",
            2,
        ),
        (["compress", "digits", "--model", "m.safetensors", "--out", "y.bb"], "(4, 3, 3)", 2),
        (["compress", "float.npy", "--model", "m.safetensors", "--out", "y.bb"], "images of uint8", 2),
        (["compress", "no.npy", "--model", "m.safetensors", "--out", "y.bb"], "No file no.npy", 2),
        (
            ["compress", "images.npy", "--model", "m.safetensors", "--out", "y.bb", "--split", "x"],
            "choose train",
            2,
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    folder: Path,
    args: list[str],
    words: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another model, another likelihood, images of another kind, a file that is none: and nothing is written."""
    monkeypatch.chdir(folder)
    np.save("float.npy", np.zeros((3, 4, 3, 3), dtype=np.float32))
    whole = Path("x.bb").read_bytes()
    Path("damaged.bb").write_bytes(whole[:-9] + b"x" + whole[-8:])
    before = sorted(path.name for path in folder.iterdir())
    assert call(monkeypatch, *args) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before
