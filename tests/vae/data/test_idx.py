"""The named IDX sets: format, where they are looked for, checksums, downloads. No test needs a network."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.data import idx, sources
from vae.data.dataset import load
from vae.errors import FailureError, UserError

FASHION = Path("/usr/share/datasets/fashion-mnist")
FILES = (idx.TRAIN_IMAGES, idx.TRAIN_LABELS, idx.TEST_IMAGES, idx.TEST_LABELS)


def grey(n: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 2), dtype=np.uint8)


def refusal(source: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        sources.read(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()


@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_idx_round_trip(shape: list[int], seed: int) -> None:
    """What is written by the format's description is read back."""
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(idx.parse_idx(idx_bytes(array), "x", ndim=len(shape)), array)


@settings(deadline=None)
@given(cut=st.integers(0, 255))
def test_truncated_idx_is_refused(cut: int) -> None:
    """Cut anywhere: in the magic number, in the sizes or in the values."""
    content = idx_bytes(grey())
    with pytest.raises(UserError, match=r"x is truncated|x is not an IDX file"):
        idx.parse_idx(content[:cut], "x", ndim=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG" + bytes(20), "is not an IDX file"),
        (bytes([0, 0, 0x0D, 3]) + bytes(20), "holds IDX type 0x0d"),
        (idx_bytes(np.zeros(4, np.uint8)), "has 1 axes: 3 are needed"),
        (idx_bytes(grey()) + b"\0", r"is too long: shape \(40, 3, 2\) needs 256 bytes, it has 257"),
        (idx_bytes(np.zeros((0, 3, 2), np.uint8)), r"is empty: its shape is \(0, 3, 2\)"),
    ],
)
def test_other_content_is_no_idx(content: bytes, words: str) -> None:
    """Magic, type, number of axes and length are checked."""
    with pytest.raises(UserError, match=words):
        idx.parse_idx(content, "x", ndim=3)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Four small IDX files that pass for mnist: their checksums are put in place of the real ones."""
    arrays = {
        idx.TRAIN_IMAGES: grey(50),
        idx.TRAIN_LABELS: np.arange(50, dtype=np.uint8) % 10,
        idx.TEST_IMAGES: grey(12, seed=1),
        idx.TEST_LABELS: np.arange(12, dtype=np.uint8) % 10,
    }
    contents = {name: idx_bytes(array) for name, array in arrays.items()}
    patched = replace(
        idx.IDX_SETS["mnist"],
        mirrors=("http://127.0.0.1:9/",),  # the discard port: nobody listens
        sha256={name: hashlib.sha256(packed(content)).hexdigest() for name, content in contents.items()},
        content_sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )
    monkeypatch.setitem(idx.IDX_SETS, "mnist", patched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return contents


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def put(folder: Path, contents: dict[str, bytes], *, gz: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / (f"{name}.gz" if gz else name)).write_bytes(packed(content) if gz else content)


@pytest.mark.parametrize("gz", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("folder", ["data/mnist", "data", "cache/vae-study/mnist"])
def test_named_set_is_found_and_split(tmp_path: Path, small: dict[str, bytes], folder: str, gz: bool) -> None:
    """In data_dir/NAME, data_dir or the cache, packed or not: the test file is the test split."""
    put(tmp_path / folder, small, gz=gz)
    (tmp_path / "data").mkdir(exist_ok=True)
    dataset = load("mnist", data_dir=tmp_path / "data", download=False)
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (45, 5, 12)
    assert np.array_equal(dataset.test.base.numpy(), grey(12, seed=1).reshape(12, 6))
    assert dataset.test.labels is not None
    assert dataset.test.labels.tolist() == [i % 10 for i in range(12)]
    assert dataset.train.scale == 255.0


def test_a_set_packed_anew_is_the_same_set(tmp_path: Path, small: dict[str, bytes]) -> None:
    """Another gzip level or time stamp, as in Debian's package, changes no content and is accepted."""
    put(tmp_path, small, gz=True)
    for file in tmp_path.glob("*.gz"):
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), compresslevel=1, mtime=12345))
    assert len(load("mnist", data_dir=tmp_path, download=False).train) == 45


def test_wrong_checksum_is_refused(tmp_path: Path, small: dict[str, bytes]) -> None:
    """One changed pixel: the file, what was expected, what was found and the way out."""
    put(tmp_path, small, gz=False)
    path = tmp_path / idx.TRAIN_IMAGES
    content = bytearray(path.read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    path.write_bytes(content)
    message = refusal("mnist", data_dir=tmp_path)
    for words in (str(path), expected, hashlib.sha256(content).hexdigest(), "wrong checksum", "Delete it"):
        assert words in message


def test_a_file_of_another_set_is_named(tmp_path: Path, small: dict[str, bytes]) -> None:
    """The sets share their file names: mnist's files where kmnist's are looked for are told apart."""
    put(tmp_path, small, gz=True)
    assert "It is a file of mnist: keep kmnist in a folder kmnist/" in refusal("kmnist", data_dir=tmp_path)


def test_unpacked_file_without_a_known_checksum_is_refused(tmp_path: Path, small: dict[str, bytes]) -> None:
    """KMNIST's checksums are known for the .gz alone: an unpacked file is not trusted unchecked."""
    put(tmp_path, small, gz=False)
    assert "checksums are published for the .gz files only" in refusal("kmnist", data_dir=tmp_path)


@pytest.mark.parametrize("content", [packed(b"x" * 100)[:-5], b"<html>404</html>"], ids=["cut", "html"])
def test_damaged_gz_is_refused(tmp_path: Path, small: dict[str, bytes], content: bytes) -> None:
    """A download that was cut off, or an error page saved under the name."""
    put(tmp_path, small, gz=True)
    (tmp_path / f"{idx.TEST_LABELS}.gz").write_bytes(content)
    assert "is truncated or no gzip file" in refusal("mnist", data_dir=tmp_path)


@pytest.mark.usefixtures("small")
def test_offline_says_where_it_looked(tmp_path: Path) -> None:
    """No file and no network: one line with every folder and what each mirror said."""
    with pytest.raises(FailureError) as caught:
        sources.read("mnist", data_dir=tmp_path)
    message = str(caught.value)
    folders = f"{tmp_path / 'mnist'}, {tmp_path}, {tmp_path / 'cache/vae-study/mnist'}"
    assert f"mnist: {idx.TRAIN_IMAGES}[.gz] is not in {folders}" in message
    assert "http://127.0.0.1:9/: ConnectionError" in message
    assert "\n" not in message
    assert "downloading is off" in refusal("mnist", data_dir=tmp_path, download=False)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a web server on this machine, and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            """Nothing on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", folder
        server.shutdown()
        thread.join()


def test_download_checks_and_caches(
    tmp_path: Path, small: dict[str, bytes], mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead first mirror is passed over; what the second serves is cached, and used when it is gone."""
    address, served = mirror
    dead = idx.IDX_SETS["mnist"]
    monkeypatch.setitem(idx.IDX_SETS, "mnist", replace(dead, mirrors=(*dead.mirrors, address)))
    put(served, small, gz=True)
    first = load("mnist")
    assert sorted(path.name for path in (tmp_path / "cache/vae-study/mnist").iterdir()) == sorted(
        f"{name}.gz" for name in FILES
    )
    for path in served.iterdir():
        path.unlink()
    assert load("mnist").fingerprint == first.fingerprint


def test_download_of_something_else_is_refused(
    tmp_path: Path, small: dict[str, bytes], mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that lacks the file, or serves another, is named with the reason, and nothing is cached."""
    address, served = mirror
    monkeypatch.setitem(idx.IDX_SETS, "mnist", replace(idx.IDX_SETS["mnist"], mirrors=(address,)))
    assert f"{address}: HTTP 404" in refusal("mnist")
    put(served, {name: content + b"\0" for name, content in small.items()}, gz=True)
    assert f"{address}: wrong SHA-256" in refusal("mnist")
    assert not list((tmp_path / "cache").rglob("*ubyte*"))


def test_checksums_of_fashion_mnist_are_those_of_debians_files() -> None:
    """The recorded checksums are the truth about files that this machine has."""
    if not FASHION.is_dir():
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("needs Debian's package dataset-fashion-mnist")
    known = idx.IDX_SETS["fashion-mnist"].content_sha256
    for name in FILES:
        with gzip.open(FASHION / f"{name}.gz") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == known[name]


def test_recorded_checksums_are_complete() -> None:
    """Each set has one for each of its four files, no two alike, and at least one mirror."""
    digests = []
    for known in idx.IDX_SETS.values():
        assert set(known.sha256) == set(FILES)
        assert set(known.content_sha256) in (set(), set(FILES))
        assert known.mirrors
        digests += [*known.sha256.values(), *known.content_sha256.values()]
    assert len(set(digests)) == len(digests) == 20
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
