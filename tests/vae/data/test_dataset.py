"""Splits, batches and fingerprints. Sources: test_sources.py, test_idx.py; bad pixels: test_pixels.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from vae.data import dataset as data
from vae.data import sources
from vae.data.dataset import Dataset, Split, load
from vae.errors import UserError

FASHION = Path("/usr/share/datasets/fashion-mnist")


def save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def grey(n: int = 40, shape: tuple[int, ...] = (3, 2), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def unit(n: int = 40, shape: tuple[int, ...] = (3, 2), dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).random((n, *shape)).astype(dtype)


def all_rows(dataset: Dataset) -> list[bytes]:
    return [
        row.numpy().tobytes() for split in (dataset.train, dataset.valid, dataset.test) for row in split.all()
    ]


# ---- the named sets ----


def test_digits_are_sklearns_digits_divided_by_16() -> None:
    """The three splits together are scikit-learn's 1797 images over 16, each once, with its label."""
    dataset = load("digits")
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (1197, 300, 300)
    assert dataset.shape == (8, 8)
    assert dataset.size == 64
    truth = load_digits()
    expected = Counter(
        (image.astype(np.float32).tobytes(), int(label))
        for image, label in zip(truth.data / 16, truth.target, strict=True)
    )
    found: Counter[tuple[bytes, int]] = Counter()
    for split in (dataset.train, dataset.valid, dataset.test):
        assert split.labels is not None
        found.update(
            (row.numpy().tobytes(), int(label)) for row, label in zip(split.all(), split.labels, strict=True)
        )
    assert found == expected


def test_fashion_mnist_keeps_its_test_file() -> None:
    """Debian's files: 54,000 + 6,000 of the train file, and the test split is the test file in its order."""
    if not FASHION.is_dir():
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("needs Debian's package dataset-fashion-mnist")
    dataset = load("fashion-mnist", download=False)
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (54_000, 6_000, 10_000)
    assert dataset.shape == (28, 28)
    assert dataset.test.labels is not None
    assert dataset.test.labels[:5].tolist() == [9, 2, 1, 1, 6]  # the test file's first labels
    labels = torch.cat([dataset.train.labels, dataset.valid.labels])  # type: ignore[list-item]
    assert labels.bincount().tolist() == [6_000] * 10
    assert dataset.train.base.dtype == torch.uint8
    # The mean that users of torchvision normalise Fashion-MNIST with.
    assert dataset.pixel_moments().mean.mean().item() == pytest.approx(0.2860, abs=5e-4)


# ---- splits ----


@settings(deadline=None, max_examples=50)
@given(n=st.integers(10, 500), seed=st.integers(0, 2**32 - 1))
def test_split_rows_are_a_partition_fixed_by_the_seed(n: int, seed: int) -> None:
    """Every example is in exactly one split, and the same seed gives the same split."""
    splits = data.split_rows(n, n // 10, n // 10, seed)
    assert [len(rows) for rows in splits] == [n - 2 * (n // 10), n // 10, n // 10]
    assert sorted(np.concatenate(splits).tolist()) == list(range(n))
    again = data.split_rows(n, n // 10, n // 10, seed)
    assert all(np.array_equal(a, b) for a, b in zip(splits, again, strict=True))


def test_split_of_seed_0_never_changes() -> None:
    """A database of an older version still speaks of the same split."""
    train, valid, test = data.split_rows(20, 2, 2, seed=0)
    assert (valid.tolist(), test.tolist()) == ([18, 1], [19, 8])
    assert len(train) == 16


def test_other_seed_other_split() -> None:
    """Seeds 0 and 1 validate on different digits."""
    a, b = load("digits", seed=0), load("digits", seed=1)
    assert not torch.equal(a.valid.all(), b.valid.all())
    assert a.fingerprint != b.fingerprint


def test_first_of_a_split_is_a_sample_of_it(tmp_path: Path) -> None:
    """A file sorted by class still validates on every class, in its first 20 images already."""
    path = tmp_path / "sorted.npz"
    labels = np.repeat(np.arange(4), 250)
    np.savez(path, images=grey(1000), labels=labels)
    valid = load(str(path)).valid
    assert valid.labels is not None
    assert set(valid.labels[:20].tolist()) == {0, 1, 2, 3}


def test_file_is_split_80_10_10(tmp_path: Path) -> None:
    """A .npy keeps every row once: 10 % for validation, 10 % for testing."""
    images = grey(105)
    dataset = load(save(tmp_path / "data.npy", images))
    assert dataset.name == "data"
    assert dataset.shape == (3, 2)
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (85, 10, 10)
    expected = (images.reshape(105, 6) / np.float32(255)).astype(np.float32)
    assert Counter(all_rows(dataset)) == Counter(row.tobytes() for row in expected)


# ---- batches ----


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "mapped"])
def test_batch_is_the_stored_rows_over_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, mapped: bool
) -> None:
    """A batch equals numpy's own indexing of the file, in memory and over a map, whatever the dtype."""
    if mapped:
        monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    images = grey(60) if dtype == "uint8" else unit(60, dtype=dtype)
    dataset = load(save(tmp_path / "x.npy", images), seed=3)
    split = dataset.train
    rows = data.split_rows(60, 6, 6, seed=3)[0]
    index = torch.tensor([5, 0, 47, 5])
    batch = split.batch(index)
    expected = images.reshape(60, 6)[rows[index.numpy()]].astype(np.float32)
    expected = expected / np.float32(255) if dtype == "uint8" else expected
    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), expected)
    assert torch.equal(split.all(3), split.batch(torch.arange(3)))
    assert torch.equal(split.all(10_000), split.all())
    assert (dataset.train.base is dataset.test.base) == mapped
    assert len(split.base) == (60 if mapped else 48)


def test_writing_to_a_batch_leaves_the_data_alone(tmp_path: Path) -> None:
    """Augmenting a batch in place changes neither the split nor the file."""
    path = tmp_path / "x.npy"
    save(path, unit())
    before = path.read_bytes()
    split = load(str(path)).train
    index = torch.arange(4)
    kept = split.batch(index).clone()
    split.batch(index).zero_()
    assert torch.equal(split.batch(index), kept)
    assert path.read_bytes() == before


def test_mapped_data_never_writes_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a write into the mapped tensor itself stays in memory (copy-on-write)."""
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    path = tmp_path / "x.npy"
    save(path, grey())
    before = path.read_bytes()
    load(str(path)).train.base.zero_()
    assert path.read_bytes() == before


def test_batch_out_of_range_is_an_error() -> None:
    """An index beyond the split is no example of another split."""
    split = load("digits").valid
    with pytest.raises(IndexError):
        split.batch(torch.tensor([300]))


def test_to_another_device_compacts_the_rows() -> None:
    """What moves are this split's rows alone, uint8 as uint8, float64 as float32; labels go along."""
    base = torch.arange(40, dtype=torch.uint8).reshape(10, 4)
    split = Split(base, torch.tensor([7, 2]), torch.tensor([1, 0]), 255.0)
    moved = split.to("meta")  # a device without memory, so a test needs no GPU
    assert moved.base.shape == (2, 4)
    assert moved.base.dtype == torch.uint8
    assert {moved.base.device.type, moved.rows.device.type} == {"meta"}
    assert moved.labels is not None
    assert moved.labels.device.type == "meta"
    assert moved.batch(torch.tensor([1]), "meta").dtype == torch.float32
    assert Split(base.double(), split.rows, None, 1.0).to("meta").base.dtype == torch.float32


def test_to_the_cpu_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory map stays a memory map on the CPU."""
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    split = load(save(tmp_path / "x.npy", grey())).train
    assert split.to("cpu").base.data_ptr() == split.base.data_ptr()


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_pixel_moments_are_those_of_the_training_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Mean and variance over train alone, whatever the chunk and however far from 0; a caller may write to what it
    gets."""
    monkeypatch.setattr(data, "CHUNK_BYTES", chunk)
    rows = data.split_rows(200, 20, 20, seed=0)[0]
    far = np.random.default_rng(0).normal(1e4, 2.0, (200, 3, 2)).astype(np.float32)
    for images, likelihood, scale in ((grey(200), "cross_entropy", 255), (far, "gaussian", 1)):
        dataset = load(save(tmp_path / "x.npy", images), likelihood=likelihood)
        pixels = images[rows].reshape(160, 6).astype(np.float64) / scale
        for _ in range(2):
            mean, variance = dataset.pixel_moments()
            np.testing.assert_allclose(mean.numpy(), pixels.mean(0), rtol=1e-6)
            np.testing.assert_allclose(variance.numpy(), pixels.var(0), rtol=1e-6)
            mean.zero_()
            variance.zero_()


def test_batch_larger_than_the_training_set_is_refused() -> None:
    """1197 digits fill a batch of 1197 and not one of 1198."""
    dataset = load("digits")
    dataset.require_batch(1197)
    with pytest.raises(UserError, match="batch_size 1198 is more than the 1197 training examples of digits"):
        dataset.require_batch(1198)


# ---- fingerprint ----


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 239), bit=st.integers(0, 7))
def test_one_bit_changes_the_fingerprint(tmp_path: Path, position: int, bit: int) -> None:
    """No pixel of the file can change without the fingerprint changing."""
    images = grey(40)
    path = save(tmp_path / "x.npy", images)
    before = load(path).fingerprint
    images.reshape(-1)[position] ^= 1 << bit
    save(tmp_path / "x.npy", images)
    assert load(path).fingerprint != before


def test_fingerprint_is_of_content_and_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, container, chunks, mapping don't matter; seed, labels, dtype, shape, scale and test part do."""
    images, labels = grey(40), np.arange(40) % 3
    npy = save(tmp_path / "a.npy", images)
    same = load(npy).fingerprint
    assert len(same) == 64
    np.savez_compressed(tmp_path / "b.npz", images=images)
    assert load(str(tmp_path / "b.npz")).fingerprint == same
    with monkeypatch.context() as patch:
        patch.setattr(sources, "IN_MEMORY_BYTES", 0)
        patch.setattr(data, "CHUNK_BYTES", 7)
        assert load(npy).fingerprint == same
    with monkeypatch.context() as patch:
        rescaled = replace(sources.read(npy), scale=16.0)
        patch.setattr(sources, "read", lambda *_args, **_options: rescaled)
        assert load(npy).fingerprint != same

    np.savez(tmp_path / "labelled.npz", images=images, labels=labels)
    np.savez(tmp_path / "relabelled.npz", images=images, labels=labels[::-1])
    np.savez(tmp_path / "tested.npz", images=images, x_test=images[:4])
    np.savez(tmp_path / "tested2.npz", images=images, x_test=images[1:5])
    others = [
        load(npy, seed=1),
        load(save(tmp_path / "c.npy", images.reshape(40, 6))),
        load(save(tmp_path / "d.npy", (images / 255).astype("f4"))),
        load(save(tmp_path / "e.npy", (images / 255).astype("f4").astype("f8"))),
        *(load(str(tmp_path / f"{name}.npz")) for name in ("labelled", "relabelled", "tested", "tested2")),
    ]
    assert len({same, *(dataset.fingerprint for dataset in others)}) == 1 + len(others)


# ---- memory ----

_USE = """
import sys, torch
from vae.data.dataset import load

def peak():  # bytes; ru_maxrss would start at the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

before = peak()
split = load(sys.argv[1]).train
for start in range(0, len(split), 20_000):
    split.batch(torch.arange(start, min(start + 500, len(split))))
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_mapped_file_is_never_copied_whole(tmp_path: Path) -> None:
    """A file beyond the limit costs its mapped pages and a few chunks: under 1.25 times its size, not 2."""
    path = tmp_path / "large.npy"
    shape = (350_000, 784)  # 274 MB: just beyond the limit
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)[:, 0] = 255
    size = path.stat().st_size
    assert size > sources.IN_MEMORY_BYTES
    command = [sys.executable, "-c", _USE, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 1.25 * size
