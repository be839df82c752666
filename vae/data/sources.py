"""Where images come from: scikit-learn's digits, the named IDX sets, .npy and .npz files, folders of images.

Nothing here runs code from a file: pickled arrays are refused by their header, before a byte of them is read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae.code import Source
from vae.data import idx
from vae.errors import UserError, did_you_mean

Array = NDArray[Any]

#: Arrays up to this size are held in memory; larger ones stay on a memory map.
IN_MEMORY_BYTES = 256 * 2**20
#: Kinds of image arrays: uint8 in 0..255, or floats (half, single, double).
IMAGE_DTYPES = ("uint8", "float16", "float32", "float64")
#: The largest value of an image of so many bits, for those who saved whole numbers.
WHITES = "255 for 8 bits, 4095 for 12, 65535 for 16"
#: Bytes at the beginning of a .npy, of which its header takes some hundred; numpy reads at most 10,000.
HEADER_BYTES = 12_000
#: Axes of an array of images: numpy and torch take 64.
MAX_AXES = 32
#: How many times its size in the file what is held in memory beyond IN_MEMORY_BYTES may unpack to. Images of few
#: colours come to 50; deflate ends at 1,032, with a megabyte of zeros in a kilobyte.
MAX_RATIO = 100
#: Of a message about a damaged file.
SHOWN_CHARACTERS = 200
SHOWN_KEYS = 10

# Keys of an .npz, the first that is there; a lone array under any other key is the images.
# With a test part of its own (x_test) nothing of the rest is held out for testing. Other keys are not read.
IMAGE_KEYS = ("images", "x_train", "train_images", "x", "X", "data", "arr_0")
LABEL_KEYS = ("labels", "y_train", "train_labels", "y", "target", "targets")
TEST_IMAGE_KEYS = ("x_test", "test_images")
TEST_LABEL_KEYS = ("y_test", "test_labels")

NAMES = ("digits", *idx.IDX_SETS)


@dataclass(frozen=True)
class Arrays:
    """What a source holds, before any split. Labels are int64, or None where the source has none."""

    name: str
    origin: str  # for messages: the file or the set
    images: Array  # (N, ...), C order, native byte order; possibly over a memory map
    labels: Array | None  # (N,)
    scale: float  # stored value / scale = pixel
    n_valid: int  # of the N, how many are for validation
    n_test: int  # of the N, how many are for testing; 0 where the source has a test part of its own
    test_images: Array | None = None  # (M, ...)
    test_labels: Array | None = None  # (M,)
    valid_images: Array | None = None  # (V, ...), where the source has a validation part of its own too
    valid_labels: Array | None = None  # (V,)
    code: Source | None = None  # what of the user's own made them


def read(source: str, *, data_dir: Path | None = None, download: bool = True) -> Arrays:
    """The arrays of a set in `NAMES`, of a .npy or .npz file or of a folder of images, which is looked for in the
    working folder and in data_dir. Raises UserError; FailureError where a download failed."""
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"{data_dir}, where data is to be looked for, is no folder.")
    if source == "digits":
        return _read_digits()
    if source in idx.IDX_SETS:
        return _read_idx_set(source, data_dir, download)
    try:
        path = _find_file(source, data_dir)
        if path.is_dir():
            from vae.data.folder import read_folder  # with Pillow, which nothing else here needs

            folder = read_folder(path, IN_MEMORY_BYTES)
            return _of_file(path, folder.images, folder.labels)
        with path.open("rb") as file:
            magic = file.read(6)
            file.seek(0)
            if magic == np.lib.format.MAGIC_PREFIX:
                return _of_file(path, images=_open_npy(file, path))
            if magic[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
                return _read_npz(file, path)
    except OSError as error:
        raise UserError(f"{source} can't be read: {error.strerror or error}.") from None
    if not magic:
        raise UserError(f"{path} is empty (0 bytes): nothing was written to it.")
    if magic[0] == 0x80:
        raise UserError(f"{path} is a Python pickle, which can run code: save the array with numpy.save.")
    if path.suffix == ".py":
        raise UserError(f"{path} is code: name what makes the images in it, {source}:NAME.")
    raise UserError(f"{path} is neither a .npy nor a .npz file (it starts with {magic!r}).")


def _find_file(source: str, data_dir: Path | None) -> Path:
    if not source:
        raise UserError(
            f"No data set '': name one of {', '.join(NAMES)}, or the path of a .npy or .npz file, or of a folder of "
            "images."
        )
    looked = [Path(os.path.expanduser(source))]
    if data_dir is not None and not looked[0].is_absolute():
        looked.append(data_dir / source)
    for path in looked:
        if path.is_file() or path.is_dir():
            return path
        if path.exists():
            raise UserError(f"{path} is not a regular file: data is mapped, which a pipe or device can't be.")
    if looked[0].suffix not in (".npy", ".npz") and len(looked[0].parts) == 1:
        hint = did_you_mean(source.lower().replace("_", "-"), NAMES)
        raise UserError(
            f"No data set '{source}'. {hint} Or give the path of a .npy or .npz file, or of a folder of images."
        )
    raise UserError(f"No file {source}: looked for {' and '.join(str(path.absolute()) for path in looked)}.")


def _read_digits() -> Arrays:
    images, labels = _digits_of_sklearn()
    return Arrays(
        name="digits",
        origin="digits",
        images=images.astype(np.uint8),  # whole numbers 0..16
        labels=labels.astype(np.int64),
        scale=16.0,
        n_valid=300,
        n_test=300,
    )


def _digits_of_sklearn() -> tuple[Array, Array]:
    """Images (1797, 8, 8) and labels, from the file in scikit-learn's wheel: importing `sklearn.datasets`, which
    would read the same file, takes a second in every process."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.exists():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    from sklearn.datasets import load_digits  # a scikit-learn that keeps it elsewhere

    digits = load_digits()
    return digits.images, digits.target


def _read_idx_set(name: str, data_dir: Path | None, download: bool) -> Arrays:
    images, labels, test_images, test_labels = idx.read_set(name, data_dir, download=download)
    check_labels(labels, len(images), f"{name}: training labels")
    check_labels(test_labels, len(test_images), f"{name}: test labels")
    check_test(images, test_images, name)
    return Arrays(
        name=name,
        origin=name,
        images=images,
        labels=labels.astype(np.int64),
        scale=255.0,
        n_valid=len(images) // 10,
        n_test=0,
        test_images=test_images,
        test_labels=test_labels.astype(np.int64),
    )


def _of_file(
    path: Path,
    images: Array,
    labels: Array | None = None,
    test_images: Array | None = None,
    test_labels: Array | None = None,
) -> Arrays:
    n_valid = len(images) // 10
    return Arrays(
        name=path.stem if path.is_file() else path.resolve().name,
        origin=str(path),
        images=images,
        labels=labels,
        scale=255.0 if images.dtype == np.uint8 else 1.0,
        n_valid=n_valid,
        n_test=n_valid if test_images is None else 0,
        test_images=test_images,
        test_labels=test_labels,
    )


def _open_npy(file: IO[bytes], path: Path) -> Array:
    header = _header(file, str(path))
    check_images(header, str(path))
    _check_length(header, path.stat().st_size, str(path))
    # Copy-on-write: torch warns about a tensor over memory that can't be written; the file never changes.
    order = "F" if header.fortran else "C"
    mapped = np.memmap(path, header.dtype, "c", header.start, header.shape, order)  # type: ignore[call-overload]
    return native(np.asarray(mapped), str(path))


def _read_npz(file: IO[bytes], path: Path) -> Arrays:
    """The arrays of an .npz, read whole (a compressed member can't be mapped)."""
    with _npz_faults(path), zipfile.ZipFile(file) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        image_key = next((key for key in IMAGE_KEYS if key in keys), keys[0] if len(keys) == 1 else None)
        if image_key is None:
            raise UserError(
                f"{path} has no array of images: keys {_listed(keys)}. "
                f"Call it one of {', '.join(IMAGE_KEYS)} (labels: {', '.join(LABEL_KEYS)})."
            )
        test_key = next((key for key in TEST_IMAGE_KEYS if key in keys), None)
        images = _member(archive, image_key, path)
        labels = _labels(archive, LABEL_KEYS, keys, path, len(images))
        test_images = None if test_key is None else _member(archive, test_key, path)
        test_labels = None
        if test_images is not None:
            check_test(images, test_images, str(path))
            test_labels = _labels(archive, TEST_LABEL_KEYS, keys, path, len(test_images))
    return _of_file(path, images, labels, test_images, test_labels)


def _listed(keys: list[str]) -> str:
    shown = [repr(key) for key in keys[:SHOWN_KEYS]]
    return (
        ", ".join(shown) + (f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "") or "none"
    )


@contextlib.contextmanager
def _npz_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise UserError(
            f"{path} needs more memory than there is: save its images as .npy, which is mapped."
        ) from None
    except NotImplementedError as error:
        raise UserError(f"{path} can't be unpacked ({error}): save it with numpy.savez.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is truncated or damaged ({_first_line(error)}).") from None


def _labels(
    archive: zipfile.ZipFile, names: tuple[str, ...], keys: list[str], path: Path, n: int
) -> Array | None:
    key = next((key for key in names if key in keys), None)
    if key is None:
        return None
    return _member(archive, key, path, n_labels=n).astype(np.int64)


def _member(archive: zipfile.ZipFile, key: str, path: Path, *, n_labels: int | None = None) -> Array:
    """The images under a key, or with n_labels that many labels. All that can be refused is, before any value is
    unpacked: a small file may promise, or unpack to, more than any memory holds."""
    origin = f"{path}: {key if key.isprintable() else repr(key)}"
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as file:
        header = _header(file, origin)
    if n_labels is None:
        check_images(header, origin)
    else:
        check_labels(header, n_labels, origin)
    _check_length(header, info.file_size, origin)
    packed = min(info.compress_size, path.stat().st_size)
    if info.file_size > max(IN_MEMORY_BYTES, MAX_RATIO * packed):
        raise UserError(
            f"{origin} unpacks to {info.file_size:,} bytes, more than {MAX_RATIO} times what it takes in the file: "
            "save its images as .npy, which is mapped."
        )
    if info.file_size > _memory():
        raise MemoryError
    with archive.open(info) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array if n_labels is not None else native(array, origin)


def _memory() -> float:
    """The machine's bytes, where the system tells."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not a Unix, or one without these names
        return math.inf


class _Header(NamedTuple):
    """What the .npy format says before the values, and where these start."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


def _header(file: IO[bytes], origin: str) -> _Header:
    """The header of the .npy at the file's position. `np.load` with allow_pickle=False would refuse objects as well;
    reading it here gives one clear line for each fault, and refuses before anything is mapped or unpacked."""
    beginning = io.BytesIO(file.read(HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(beginning)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version} is for structured arrays")
        reader = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = reader(beginning)
        # numpy takes True and -1 for sizes
        if not all(type(size) is int and 0 <= size < 2**63 for size in shape) or len(shape) > MAX_AXES:
            raise ValueError(f"a shape is up to {MAX_AXES} whole numbers from 0 to 2^63 - 1")
    except _HEADER_FAULTS as error:
        raise UserError(
            f"{origin} is truncated or damaged: its .npy header can't be read ({_first_line(error)})."
        ) from None
    if dtype.hasobject:
        raise UserError(
            f"{origin} holds pickled Python objects, which can run code: save numbers, not objects."
        )
    return _Header(shape, fortran, dtype, beginning.tell())


#: What numpy and Python's parser raise for headers that are none.
_HEADER_FAULTS = (
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def _check_length(header: _Header, found: int, origin: str) -> None:
    """Refuse a header that promises more bytes than there are."""
    expected = header.start + math.prod(header.shape) * header.dtype.itemsize
    if found < expected:
        raise UserError(f"{origin} is truncated: its header promises {expected} bytes, it has {found}.")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:SHOWN_CHARACTERS]


def native(array: Array, origin: str) -> Array:
    """The array in C order and this machine's byte order, as rows of pixels are read and torch needs it."""
    if array.flags.c_contiguous and array.dtype.isnative:
        return array
    if array.nbytes > IN_MEMORY_BYTES:
        raise UserError(
            f"{origin} is in Fortran order or foreign byte order and too large to be turned round in memory "
            f"({array.nbytes} bytes, limit {IN_MEMORY_BYTES}): save numpy.ascontiguousarray(images, dtype)."
        )
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def check_images(header: _Header | Array, origin: str) -> None:
    """Refuse (UserError) what can't be images: another dtype than IMAGE_DTYPES, fewer than two axes, none."""
    shape, dtype = header.shape, header.dtype
    if dtype.newbyteorder("=").name not in IMAGE_DTYPES:
        if dtype.kind in "iu":  # never "as uint8": what is above 255 would wrap round
            way_out = f"divide whole numbers by the largest there can be ({WHITES}) and save them as float32"
        elif dtype.kind in "bf":
            way_out = "convert them with .astype('float32')"
        else:
            way_out = "save real numbers"
        kind = str(dtype)[:SHOWN_CHARACTERS]
        raise UserError(
            f"{origin} has dtype {kind}: images are uint8 (0..255) or float16, float32, float64; {way_out}."
        )
    if len(shape) < 2:
        raise UserError(f"{origin} has shape {shape}: images are (N, ...), one row an example.")
    if min(shape) < 1:
        raise UserError(f"{origin} is empty: its shape is {shape}.")


def check_labels(labels: _Header | Array, n: int, origin: str) -> None:
    """Refuse (UserError) labels of n images that aren't n whole numbers."""
    if labels.dtype.kind not in "iu":
        kind = str(labels.dtype)[:SHOWN_CHARACTERS]
        raise UserError(f"{origin} has dtype {kind}: labels are whole numbers.")
    if labels.shape != (n,):
        raise UserError(f"{origin} has shape {labels.shape}, but there are {n} images: labels are ({n},).")


def check_test(images: Array, test_images: Array, origin: str, part: str = "test") -> None:
    """Refuse (UserError) test images of another shape or dtype than the training images."""
    train = images.shape[1:], images.dtype.name
    test = test_images.shape[1:], test_images.dtype.name
    if train != test:
        raise UserError(
            f"{origin}: {part} images are {test[1]} {test[0]}, training images {train[1]} {train[0]}."
        )
