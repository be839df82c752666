"""MNIST, Fashion-MNIST and KMNIST: IDX files that are found or downloaded, parsed, and checked by SHA-256."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os.path
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vae.errors import FailureError, UserError

Array = NDArray[Any]

#: Bytes of a file, packed or not; the largest of the three sets' has 47,040,016.
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class IdxSet:
    """A named set of four IDX files, all three sets with the same file names."""

    mirrors: tuple[str, ...]
    sha256: dict[str, str]  # of the .gz as the mirrors serve it
    content_sha256: dict[str, str]  # of the file unpacked; empty where nobody has published it
    folders: tuple[Path, ...] = ()  # where a system package puts it


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"

# SHA-256 of the .gz: TensorFlow Datasets' url_checksums and torchvision's prototype data sets, which agree.
# Of the content: published by several users of the files; Fashion-MNIST's are also what Debian's package
# holds, whose .gz files are packed anew and so differ from upstream's. KMNIST's: none found published.
IDX_SETS = {
    "mnist": IdxSet(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            TRAIN_IMAGES: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            TRAIN_LABELS: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            TEST_IMAGES: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            TEST_LABELS: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        content_sha256={
            TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": IdxSet(
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        sha256={
            TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        content_sha256={
            TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        folders=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's dataset-fashion-mnist
    ),
    "kmnist": IdxSet(
        mirrors=(
            "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        ),
        sha256={
            TRAIN_IMAGES: "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            TRAIN_LABELS: "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            TEST_IMAGES: "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            TEST_LABELS: "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
        content_sha256={},
    ),
}


def read_set(name: str, data_dir: Path | None, *, download: bool) -> tuple[Array, Array, Array, Array]:
    """A named set as uint8: training images (N, H, W) and labels (N,), test images (M, H, W) and labels (M,).

    Each file is taken from the first of `folders(name, data_dir)` that has it, else downloaded to the cache.
    The arrays can't be written to. Raises UserError; FailureError where a download failed.
    """
    images, labels, test_images, test_labels = (
        _read_file(name, file, data_dir, download)
        for file in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
    )
    return images, labels, test_images, test_labels


def _read_file(name: str, file: str, data_dir: Path | None, download: bool) -> Array:
    path = _find(name, file, data_dir) or _download(name, file, data_dir, download)
    try:
        with path.open("rb") as stored:
            raw = _within_bounds(stored, name, path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from None
    content = raw
    if path.suffix == ".gz":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
                content = _within_bounds(packed, name, path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is truncated or no gzip file ({error}). {_replace(name)}") from None
    array = parse_idx(content, str(path), ndim=3 if "images" in file else 1)
    _verify(name, file, path, raw, content)
    return array


def _within_bounds(file: IO[bytes] | gzip.GzipFile, name: str, path: Path) -> bytes:
    """The whole content of a file, packed or unpacked, which is refused where it has more than these sets have."""
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(
            f"{path} has more than {MAX_BYTES:,} bytes, and no file of {name} has. {_replace(name)}"
        )
    return content


def parse_idx(content: bytes, origin: str, *, ndim: int) -> Array:
    """The uint8 array of ndim axes in an IDX file: two zero bytes, the type, ndim, big-endian sizes, values.

    Format: https://yann.lecun.com/exdb/mnist/. The array is a read-only view of `content`. Raises UserError.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise UserError(
            f"{origin} is not an IDX file: it starts with {content[:4]!r}, not with two zero bytes."
        )
    if content[2] != 0x08:
        raise UserError(
            f"{origin} holds IDX type 0x{content[2]:02x}: only 0x08 (uint8) is an image or a label."
        )
    if content[3] != ndim:
        raise UserError(f"{origin} has {content[3]} axes: {ndim} are needed.")
    start = 4 + 4 * ndim
    if len(content) < start:
        raise UserError(f"{origin} is truncated: its header needs {start} bytes, it has {len(content)}.")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=ndim, offset=4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise UserError(f"{origin} is {fault}: shape {shape} needs {expected} bytes, it has {len(content)}.")
    if 0 in shape:
        raise UserError(f"{origin} is empty: its shape is {shape}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def folders(name: str, data_dir: Path | None) -> list[Path]:
    """Where the files of a named set are looked for, in order; the cache is where downloads go."""
    # The set's own folder first: the three sets share their file names.
    own = [] if data_dir is None else [data_dir / name, data_dir]
    return [*own, _cache(name), *IDX_SETS[name].folders]


def _cache(name: str) -> Path:
    import pooch  # imports requests: only named sets need it

    return Path(pooch.os_cache("vae-study")) / name


def _find(name: str, file: str, data_dir: Path | None) -> Path | None:
    candidates = (folder / variant for folder in folders(name, data_dir) for variant in (f"{file}.gz", file))
    # os.path.isfile: a folder that may not be entered counts as one without the file, in every Python.
    return next((path for path in candidates if os.path.isfile(path)), None)


def _verify(name: str, file: str, path: Path, raw: bytes, content: bytes) -> None:
    """Refuse a file that isn't the published one. Contents are compared where their checksum is known: the
    same file packed again has another .gz checksum."""
    known = IDX_SETS[name]
    if file in known.content_sha256:
        what, expected, found = "content", known.content_sha256[file], hashlib.sha256(content).hexdigest()
    elif path.suffix == ".gz":
        what, expected, found = "file", known.sha256[file], hashlib.sha256(raw).hexdigest()
    else:
        raise UserError(
            f"{path} can't be checked: {name}'s checksums are published for the .gz files only. "
            f"Put {file}.gz there in its stead."
        )
    if found == expected:
        return
    owners = [
        n
        for n, other in IDX_SETS.items()
        if found in (*other.content_sha256.values(), *other.sha256.values())
    ]
    hint = f"It is a file of {owners[0]}: keep {name} in a folder {name}/." if owners else _replace(name)
    raise UserError(
        f"{path} has the wrong checksum: SHA-256 of its {what} is {found}, expected {expected}. {hint}"
    )


def _replace(name: str) -> str:
    return f"Delete it to have it downloaded, or get it from {IDX_SETS[name].mirrors[0]}."


def _get(name: str) -> str:
    return f"Put the files of {IDX_SETS[name].mirrors[0]} in one of these folders."


def _download(name: str, file: str, data_dir: Path | None, download: bool) -> Path:
    looked = f"{name}: {file}[.gz] is not in {', '.join(str(folder) for folder in folders(name, data_dir))}"
    if not download:
        raise UserError(f"{looked}, and downloading is off. {_get(name)}")
    import pooch

    known = IDX_SETS[name]
    reasons = []
    for mirror in known.mirrors:
        try:
            return Path(
                pooch.retrieve(
                    mirror + f"{file}.gz",
                    known_hash=f"sha256:{known.sha256[file]}",
                    fname=f"{file}.gz",
                    path=_cache(name),
                )
            )
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
            reasons.append(f"{mirror}: {_reason(error)}")
    raise FailureError(f"{looked}, and the download failed ({'; '.join(reasons)}). {_get(name)}")


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return "wrong SHA-256" if "hash" in str(error) else str(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"HTTP {status}" if status is not None else error.strerror or type(error).__name__
