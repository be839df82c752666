"""Small files that promise or unpack to much: refused in one line, in little memory and at once."""

from __future__ import annotations

import gzip
import io
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae.data import idx, sources
from vae.errors import UserError

MIB = 2**20
#: Seconds that a refusal may take on a busy machine; each takes milliseconds on an idle one.
SOON = 20.0


def header_of(shape: object, descr: str = "'|u1'", version: int = 1) -> bytes:
    """A .npy header written out, whatever it says."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + b"\n"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        sources.read(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1_000
    return message


@contextmanager
def bounded(mebibytes: float) -> Iterator[None]:
    """Fails where the block takes more memory or longer than SOON."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        yield
        assert time.monotonic() - began < SOON
        assert tracemalloc.get_traced_memory()[1] < mebibytes * MIB
    finally:
        tracemalloc.stop()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


TERABYTES = [(2**40, 2**12), (2**62, 2**62), (1, 2**63 - 1), (2**40, 1, 1)]


@pytest.mark.parametrize("shape", TERABYTES)
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_headers_that_promise_terabytes_are_refused(
    tmp_path: Path, shape: tuple[int, ...], name: str
) -> None:
    """More values than there are bytes: told as a truncated file, and nothing is set aside for them."""
    if name == "x.npy":
        (tmp_path / name).write_bytes(header_of(shape) + bytes(100))
    else:
        zipped(tmp_path / name, {"images.npy": header_of(shape) + bytes(100)})
    with bounded(4):
        assert "is truncated: its header promises" in refusal(tmp_path / name)


def test_labels_are_refused_by_their_header(tmp_path: Path) -> None:
    """Labels of terabytes, or of strings of a gigabyte each, are refused before any is made."""
    images = io.BytesIO()
    np.save(images, np.full((20, 4), 9, np.uint8))
    for shape, descr, words in (
        ("(2**40,)".replace("2**40", str(2**40)), "'<i8'", "but there are 20 images"),
        ("(20,)", "'<U250000000'", "labels are whole numbers"),
        ("(20,)", "'<i8'", "is truncated: its header promises"),
    ):
        zipped(
            tmp_path / "x.npz",
            {"images.npy": images.getvalue(), "labels.npy": header_of(shape, descr) + bytes(8)},
        )
        with bounded(4):
            assert words in refusal(tmp_path / "x.npz")


BAD_SHAPES = [
    "(-1, 4)",
    "(True, 4)",
    "(20, 4.0)",
    "20",
    "[20, 4]",
    "'ab'",
    "(20, None)",
    f"({10**19}, 4)",
    f"({'9' * 4_000}, 4)",
    f"({'9' * 5_000}, 4)",
    f"({'1, ' * 70})",
    "(" * 150 + "20" + ")" * 150,
    "(" * 4_000,
    "-" * 5_000 + "1",
]


@pytest.mark.parametrize("shape", BAD_SHAPES, ids=range(len(BAD_SHAPES)))
@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # from Python's parser
def test_shapes_that_are_none_are_refused(tmp_path: Path, shape: str) -> None:
    """A size is a whole number from 0 to 2^63 - 1, and there are up to 32: anything else is a damaged header."""
    (tmp_path / "x.npy").write_bytes(header_of(shape) + bytes(80))
    with bounded(64):
        assert "its .npy header can't be read" in refusal(tmp_path / "x.npy")


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Format 2.0 may say that its header has 4 GiB: no more than a header ever has is read or unpacked."""
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
    zipped(tmp_path / "x.npz", {"images.npy": header + bytes(30 * MIB)})
    with bounded(4):
        assert "its .npy header can't be read" in refusal(tmp_path / "x.npz")


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to more than a hundred times its size is not unpacked beyond what is held in memory anyway, and the
    way out works: the same images as .npy."""
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 8 * MIB)
    images = np.zeros((20, MIB), np.uint8)
    images[:, 0] = 255
    np.savez_compressed(tmp_path / "x.npz", images=images)
    with bounded(4):
        message = refusal(tmp_path / "x.npz")
    assert "unpacks to 20,971,648 bytes, more than 100 times" in message
    assert "save its images as .npy" in message
    np.save(tmp_path / "x.npy", images)
    assert sources.read(str(tmp_path / "x.npy")).images.shape == (20, MIB)


def test_what_is_larger_than_the_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An .npz is read whole: one beyond the machine's memory is refused before the system ends the process."""
    monkeypatch.setattr(sources, "_memory", lambda: 1_000.0)
    np.savez(tmp_path / "x.npz", images=np.full((20, 100), 9, np.uint8))
    assert "needs more memory than there is" in refusal(tmp_path / "x.npz")


def test_images_of_few_colours_still_read(tmp_path: Path) -> None:
    """Black and white images that pack forty-fold are no bomb."""
    images = np.zeros((2_000, 784), np.uint8)
    images[:, ::97] = 255
    np.savez_compressed(tmp_path / "x.npz", images=images)
    assert np.array_equal(sources.read(str(tmp_path / "x.npz")).images, images)


def test_names_within_a_zip_stay_on_their_line(tmp_path: Path) -> None:
    """A key is shown escaped where it could write to the terminal, and of thousands the first ten."""
    zipped(tmp_path / "x.npz", {"a\nb\x1b[31m.npy": header_of("(20,)")})
    assert r"'a\nb\x1b[31m'" in refusal(tmp_path / "x.npz")
    zipped(tmp_path / "y.npz", {f"key{i}.npy": b"" for i in range(3_000)})
    assert "'key9' and 2990 more" in refusal(tmp_path / "y.npz")


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IDX file that unpacks to more than any of these sets has is unpacked no further, and one too large is not
    read."""
    monkeypatch.setattr(idx, "MAX_BYTES", 4 * MIB)
    path = tmp_path / f"{idx.TRAIN_IMAGES}.gz"
    path.write_bytes(gzip.compress(bytes(60 * MIB), 1))
    assert path.stat().st_size < 4 * MIB
    for _ in range(2):
        with (
            bounded(32),
            pytest.raises(UserError, match="has more than 4,194,304 bytes, and no file of mnist"),
        ):
            idx.read_set("mnist", tmp_path, download=False)
        path.write_bytes(bytes(5 * MIB))


NUMBERS = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 20, 2**31, 2**63]) | st.booleans()
SHAPES = st.lists(NUMBERS, max_size=6).map(tuple) | st.text(max_size=30)
DESCRS = st.sampled_from(
    [
        "'|u1'",
        "'<f4'",
        "'|O'",
        "'<U99999999'",
        "[('a', '<i4')]",
        "('<f4', (9, 9))",
        "{}",
        "'V0'",
        "'<f16'",
        "8",
    ]
)


@settings(deadline=2_000, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES, descr=DESCRS | st.text(max_size=10).map(repr), version=st.sampled_from([1, 2]))
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_no_header_crashes_or_lasts(tmp_path: Path, shape: object, descr: str, version: int) -> None:
    """Whatever a header says, a .npy and a member of an .npz are read or refused in one line, within a second."""
    content = header_of(shape, descr, version) + bytes(80)
    (tmp_path / "x.npy").write_bytes(content)
    zipped(tmp_path / "x.npz", {"images.npy": content, "labels.npy": content})
    for name in ("x.npy", "x.npz"):
        with suppress(UserError):
            assert sources.read(str(tmp_path / name)).images.nbytes <= 80
