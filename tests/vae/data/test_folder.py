"""A folder of images: read whole, in one order, and refused in one line before a bomb goes off."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae.data.dataset import load
from vae.data.folder import read_folder
from vae.errors import UserError

IN_MEMORY = 2**20


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]


def colour(seed: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises so many black pixels and that has hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("in_memory", [IN_MEMORY, 0])
def test_every_pixel_in_the_order_of_the_names(tmp_path: Path, in_memory: int) -> None:
    """Colour PNGs come back bit for bit, sorted by path, in memory and on a memory map alike; labels are the
    subfolders' numbers, and files that are no images are passed over."""
    for number, name in enumerate(("b/2.png", "b/10.PNG", "a/1.png")):
        write(tmp_path / name, colour(number))
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    found = read_folder(tmp_path, in_memory)
    assert isinstance(found.images, np.memmap) is False
    assert (found.images == np.stack([colour(2), colour(1), colour(0)])).all()
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1]


def test_grey_among_colours_is_made_colour_and_grey_alone_stays(tmp_path: Path) -> None:
    """Grey images are (N, H, W); one with colours among them makes all (N, H, W, 3), without a change of value."""
    grey = colour(0)[..., 0]
    write(tmp_path / "0.png", grey)
    write(tmp_path / "1.jpeg", np.full((6, 5), 77, np.uint8), quality=95)
    found = read_folder(tmp_path, IN_MEMORY)
    assert found.images.shape == (2, 6, 5)
    assert found.labels is None
    assert (found.images[0] == grey).all()
    assert (found.images[1] == 77).all()
    write(tmp_path / "2.png", colour(2))
    found = read_folder(tmp_path, IN_MEMORY)
    assert (found.images[0] == grey[..., None]).all()
    assert (found.images[2] == colour(2)).all()


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    """It has the folder's name, a tenth each for validation and testing, and a fingerprint of its pixels."""
    for number in range(20):
        write(tmp_path / "flowers" / f"{number}.png", colour(number))
    data = load("flowers", data_dir=tmp_path)
    assert (data.name, data.shape) == ("flowers", (6, 5, 3))
    assert [len(split) for split in (data.train, data.valid, data.test)] == [16, 2, 2]
    row = int(data.test.numbers[0])
    name = sorted(f"{number}.png" for number in range(20))[row]
    expected = colour(int(name.removesuffix(".png"))).reshape(-1) / np.float32(255)
    assert np.allclose(data.test.all(1)[0], expected)
    write(tmp_path / "flowers" / "3.png", colour(99))
    assert load("flowers", data_dir=tmp_path).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("1.png", colour(1, height=7), "is 5 x 7 pixels, .*0.png is 5 x 6: a data set has one size"),
        ("1.png", np.zeros((6, 5, 4), np.uint8), "but RGBA; it is transparent"),
        ("1.png", np.zeros((6, 5), np.uint16), "but I;16; it has more than 8 bits: divide"),
        ("1.png", b"GIF89a", "it is no PNG and no JPEG inside"),
        ("1.jpg", b"\xff\xd8\xff\xe0", "1.jpg can't be read"),
        ("1.png", png_of(100_000, 100_000), "promises more than 16,777,216 pixels"),
        ("1.png", png_of(10_000, 10_000), "promises more than 16,777,216 pixels"),
        ("1.png", png_of(5, 6)[:45], "1.png can't be read"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: bytes | np.ndarray, words: str) -> None:
    """One line with the file, what it is and the way out; a bomb is refused by its header."""
    write(tmp_path / "0.png", colour(0))
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        write(tmp_path / name, content)
    with pytest.raises(UserError, match=words) as refused:
        read_folder(tmp_path, IN_MEMORY)
    assert "\n" not in str(refused.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe called like an image is refused."""
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(UserError, match="it is no regular file"):
        read_folder(tmp_path, IN_MEMORY)
