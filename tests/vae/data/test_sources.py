"""Files of images: what is read, where it is looked for, and every refusal. The IDX sets: test_idx.py."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae.data import sources
from vae.data.dataset import load
from vae.errors import UserError

in_tmp_path = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def grey(n: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 2), dtype=np.uint8)


def refusal(source: str | Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        sources.read(str(source), **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- .npy ----


@pytest.mark.parametrize("dtype", ["u1", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_gives_the_array_that_was_saved(tmp_path: Path, dtype: str, order: str) -> None:
    """Every accepted dtype, byte order and memory order reads as the same values, in C order and native."""
    array = np.asarray(grey() / (1 if dtype == "u1" else 255), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "x.npy", array)
    images = sources.read(str(tmp_path / "x.npy")).images
    assert np.array_equal(images, array)
    assert images.flags.c_contiguous
    assert images.dtype.isnative


@pytest.mark.parametrize(
    "array", [np.asfortranarray(grey()), grey().astype(">f4")], ids=["fortran", "big-endian"]
)
def test_foreign_order_too_large_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: np.ndarray
) -> None:
    """Turning it round would be a copy of the whole file: refused, with what to do."""
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", array.nbytes - 1)
    np.save(tmp_path / "x.npy", array)
    assert "ascontiguousarray" in refusal(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("dtype", "way_out"),
    [
        (
            "int64",
            "divide whole numbers by the largest there can be (255 for 8 bits, 4095 for 12, 65535 for 16)",
        ),
        ("int8", "divide whole numbers by the largest there can be"),
        ("uint16", "divide whole numbers by the largest there can be"),
        ("bool", ".astype('float32')"),
        ("longdouble", ".astype('float32')"),
        ("complex64", "save real numbers"),
        ("<U3", "save real numbers"),
        ("datetime64[s]", "save real numbers"),
    ],
)
def test_other_dtypes_are_refused(tmp_path: Path, dtype: str, way_out: str) -> None:
    """Images are uint8 or float; the refusal names what it found and a way that keeps the values: whole numbers above
    255 would wrap round in uint8."""
    np.save(tmp_path / "x.npy", np.zeros((20, 4), dtype))
    message = refusal(tmp_path / "x.npy")
    assert f"has dtype {np.dtype(dtype)}" in message
    assert way_out in message
    assert ".astype('uint8')" not in message


def test_structured_array_is_refused(tmp_path: Path) -> None:
    """Fields are not pixels."""
    np.save(tmp_path / "x.npy", np.zeros((20, 4), [("a", "f4"), ("b", "u1")]))
    assert "has dtype [('a', '<f4'), ('b', 'u1')]" in refusal(tmp_path / "x.npy")


@pytest.mark.parametrize("shape", [(), (20,)])
def test_arrays_without_an_axis_of_pixels_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """0-D and 1-D arrays hold no images."""
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    assert f"has shape {shape}: images are (N, ...)" in refusal(tmp_path / "x.npy")


@pytest.mark.parametrize("shape", [(0, 4), (20, 0), (20, 3, 0)])
def test_empty_arrays_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """No examples, or no pixels."""
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    assert f"is empty: its shape is {shape}" in refusal(tmp_path / "x.npy")


class Exploit:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    """An object array in .npy or .npz and a bare pickle are refused; the code in them does not run."""
    trap = tmp_path / "ran"
    objects = np.array([[Exploit(trap)]] * 20, dtype=object)
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "b.npz", images=objects)
    np.savez(tmp_path / "c.npz", images=grey(20), labels=objects[:, 0])
    (tmp_path / "d.npy").write_bytes(pickle.dumps(Exploit(trap)))
    for name in ("a.npy", "b.npz", "c.npz"):
        assert "pickled Python objects" in refusal(tmp_path / name)
    assert "is a Python pickle" in refusal(tmp_path / "d.npy")
    assert not trap.exists()


@in_tmp_path
@given(data=st.data(), name=st.sampled_from(["x.npy", "x.npz", "z.npz"]))
def test_a_truncated_file_is_refused(tmp_path: Path, data: st.DataObject, name: str) -> None:
    """Cut anywhere, .npy and .npz files end in one clear line and not in a numpy or zip error."""
    np.save(tmp_path / "x.npy", grey())
    np.savez(tmp_path / "x.npz", images=grey(), labels=np.arange(40))
    np.savez_compressed(tmp_path / "z.npz", images=grey(), labels=np.arange(40))
    whole = (tmp_path / name).read_bytes()
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    message = refusal(cut)
    assert any(word in message for word in ("truncated", "empty", "neither"))


@settings(in_tmp_path, max_examples=300)
@given(data=st.data(), name=st.sampled_from(["x.npy", "x.npz", "z.npz"]))
@pytest.mark.filterwarnings(
    "ignore::SyntaxWarning", "ignore::DeprecationWarning"
)  # from numpy's header parser
def test_a_damaged_file_never_crashes(tmp_path: Path, data: st.DataObject, name: str) -> None:
    """With any few bytes changed a file is read or refused: no other error ever comes out."""
    np.save(tmp_path / "x.npy", grey())
    np.savez(tmp_path / "x.npz", images=grey(), labels=np.arange(40))
    np.savez_compressed(tmp_path / "z.npz", images=grey(), labels=np.arange(40))
    content = bytearray((tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / f"damaged-{name}"
    damaged.write_bytes(content)
    with contextlib.suppress(UserError):
        assert sources.read(str(damaged)).images.ndim >= 2


def test_truncated_npy_says_how_much_is_missing(tmp_path: Path) -> None:
    """Bytes promised and bytes found."""
    np.save(tmp_path / "x.npy", grey())
    os.truncate(tmp_path / "x.npy", 300)
    assert "is truncated: its header promises 368 bytes, it has 300" in refusal(tmp_path / "x.npy")


# ---- .npz ----


@pytest.mark.parametrize("key", [*sources.IMAGE_KEYS, "anything"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_keys_of_images(tmp_path: Path, key: str, save: object) -> None:
    """Each documented key, and any key that stands alone."""
    save(tmp_path / "x.npz", **{key: grey()})  # type: ignore[operator]
    assert np.array_equal(sources.read(str(tmp_path / "x.npz")).images, grey())


@pytest.mark.parametrize("key", sources.LABEL_KEYS)
def test_npz_keys_of_labels(tmp_path: Path, key: str) -> None:
    """Each documented key; labels come as int64."""
    np.savez(tmp_path / "x.npz", **{"images": grey(), key: np.arange(40, dtype=np.uint8)})  # type: ignore[arg-type]
    labels = sources.read(str(tmp_path / "x.npz")).labels
    assert labels is not None
    assert labels.dtype == np.int64
    assert labels.tolist() == list(range(40))


def test_npz_with_a_test_part_keeps_it(tmp_path: Path) -> None:
    """Keras's mnist.npz layout: validation from x_train, test is x_test in its order."""
    np.savez(
        tmp_path / "x.npz",
        x_train=grey(40),
        y_train=np.arange(40),
        x_test=grey(7, seed=1),
        y_test=np.arange(7),
    )
    dataset = load(str(tmp_path / "x.npz"))
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (36, 4, 7)
    assert dataset.test.labels is not None
    assert dataset.test.labels.tolist() == list(range(7))
    assert np.array_equal(dataset.test.base.numpy(), grey(7, seed=1).reshape(7, 6))


def test_npz_without_a_known_key_lists_its_keys(tmp_path: Path) -> None:
    """Two unknown arrays: not guessed at."""
    np.savez(tmp_path / "x.npz", left=grey(), right=grey())
    message = refusal(tmp_path / "x.npz")
    assert "keys 'left', 'right'" in message
    assert "images, x_train" in message
    zipfile.ZipFile(tmp_path / "none.npz", "w").close()
    assert "keys none" in refusal(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": grey(), "labels": np.arange(39)}, "labels has shape (39,), but there are 40 images"),
        ({"images": grey(), "labels": np.eye(40)}, "labels has dtype float64: labels are whole numbers"),
        ({"images": grey(), "labels": np.eye(40, dtype=int)}, "labels has shape (40, 40)"),
        (
            {"images": grey(), "x_test": grey()[:, :2]},
            "test images are uint8 (2, 2), training images uint8 (3, 2)",
        ),
        (
            {"images": grey(), "x_test": grey() / 255},
            "test images are float64 (3, 2), training images uint8 (3, 2)",
        ),
        ({"images": grey(), "x_test": grey(0)}, "x_test is empty: its shape is (0, 3, 2)"),
        (
            {"images": grey(), "x_test": grey(3), "y_test": np.arange(4)},
            "y_test has shape (4,), but there are 3",
        ),
        ({"images": grey().astype(int)}, "images has dtype int64"),
    ],
)
def test_inconsistent_npz_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    """Labels against images, test part against training part."""
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    assert words in refusal(tmp_path / "x.npz")


def test_npz_of_unknown_compression_is_refused(tmp_path: Path) -> None:
    """A member whose method the zip library does not know is named as such."""
    np.savez(tmp_path / "x.npz", images=grey())
    content = bytearray((tmp_path / "x.npz").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(signature) + offset
        content[at : at + 2] = b"\x63\x00"
    (tmp_path / "x.npz").write_bytes(content)
    assert "can't be unpacked" in refusal(tmp_path / "x.npz")


# ---- paths and names ----


def test_missing_file_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the working folder, then to data_dir."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    message = refusal("x.npy", data_dir=there)
    assert f"No file x.npy: looked for {here / 'x.npy'} and {there / 'x.npy'}" in message
    np.save(there / "x.npy", grey())
    assert sources.read("x.npy", data_dir=there).origin == str(there / "x.npy")
    assert f"looked for {tmp_path / 'y'}." in refusal(tmp_path / "y", data_dir=there)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fashon-mnist", "Did you mean 'fashion-mnist'?"),
        ("Fashion_MNIST", "Did you mean 'fashion-mnist'?"),
        ("digit", "Did you mean 'digits'?"),
        ("imagenet", "There are: digits, mnist, fashion-mnist, kmnist."),
        ("~nobody-of-this-name", "No data set"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, words: str) -> None:
    """A typing error is answered with the name that was meant."""
    message = refusal(name)
    assert words in message
    assert "path of a .npy or .npz" in message


def test_what_is_no_data_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory, a pipe, an empty file, text, code, and a data_dir that is none."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.npy")
    Path("empty.npy").touch()
    Path("text.npy").write_text("not an array")
    assert "has no images in it: .png, .jpg, .jpeg" in refusal(tmp_path)
    assert "is not a regular file" in refusal("pipe.npy")
    assert "is empty (0 bytes)" in refusal("empty.npy")
    assert "neither a .npy nor a .npz file (it starts with b'not an')" in refusal("text.npy")
    Path("own.py").write_text("def images(): ...")
    assert "is code: name what makes the images in it, own.py:NAME" in refusal("own.py")
    assert "No data set ''" in refusal("")
    assert "is no folder" in refusal("digits", data_dir=tmp_path / "nowhere")


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    """Permission denied is told, not raised; tried as a user whom the file's mode binds."""
    path = tmp_path / "x.npy"
    np.save(path, grey())
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        assert "can't be read: Permission denied" in refusal(path)
    finally:
        if root:
            os.seteuid(0)
