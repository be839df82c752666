"""Data that code of the user's own makes: arrays in, the same splits and refusals as a file's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vae.data.dataset import load, load_whole
from vae.errors import UserError

CODE = """
import numpy as np
import torch

images = (np.arange(100 * 12).reshape(100, 4, 3) % 251).astype(np.uint8)
labels = np.arange(100) % 7


def whole():
    return images


def labelled():
    return images, labels


def tensors():
    return torch.from_numpy(images)


def parts():
    return (images[:60], labels[:60]), images[60:80], (images[80:], labels[80:])


def other_shape():
    return images[:60], images[60:80, :2], images[80:]


def two_and_a_half():
    return images, labels, images, labels


def text():
    return "flowers.npy"


def ragged():
    return [[1.0], [1.0, 2.0]]


def whole_numbers():
    return images.astype(np.int64)


def bad_labels():
    return images, labels[:5]


def failing():
    return {}["flowers"]


def leaving():
    raise SystemExit("no flowers")


def needing(path):
    return images


def too_bright():
    return images.astype(np.float32)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """own.py stands in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(CODE)
    return tmp_path


def test_arrays_are_split_as_a_file_is(here: Path) -> None:
    """Images from code and from a .npy file are the same data, with the same splits and fingerprint."""
    made = load("own.py:whole", seed=3)
    np.save(here / "images.npy", (np.arange(1200).reshape(100, 4, 3) % 251).astype(np.uint8))
    read = load("images.npy", seed=3)
    assert made.fingerprint == read.fingerprint == load("own.py:tensors", seed=3).fingerprint
    assert (made.name, made.source) == ("own-whole", f"{here / 'own.py'}:whole")
    assert made.code is not None
    labelled = load("own.py:labelled", seed=3)
    assert labelled.fingerprint != made.fingerprint
    assert labelled.test.labels is not None
    assert torch.equal(labelled.test.labels, labelled.test.numbers % 7)
    assert len(load_whole("own.py:whole")[0]) == 100


def test_three_splits_are_as_given() -> None:
    """No seed moves an example, and the fingerprint is of all three."""
    data, other = load("own.py:parts"), load("own.py:parts", seed=5)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [60, 20, 20]
    assert data.fingerprint == other.fingerprint
    assert data.seed is None
    images = torch.arange(1200).reshape(100, 12) % 251 / 255
    torch.testing.assert_close(data.train.all(), images[:60])
    torch.testing.assert_close(data.valid.all(), images[60:80][data.valid.numbers])
    torch.testing.assert_close(data.test.all(), images[80:])
    assert data.valid.labels is None
    assert data.valid.numbers.tolist() != sorted(data.valid.numbers.tolist())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other_shape", r"validation images are uint8 \(2, 3\), training images uint8 \(4, 3\)"),
        ("two_and_a_half", r"gives 4 things: give images, \(images, labels\), or \(train, valid, test\)"),
        ("text", "gives a str, not an array of numbers"),
        ("ragged", "gives no array: ValueError"),
        ("whole_numbers", "has dtype int64: images are uint8"),
        ("bad_labels", r"labels has shape \(5,\), but there are 100 images"),
        ("failing", r"own.py:failing fails: line \d+: KeyError: 'flowers'"),
        ("leaving", r"own.py:leaving fails: line \d+: SystemExit: no flowers"),
        ("needing", r"fails: TypeError: needing\(\) missing 1 required positional argument"),
        ("too_bright", "divide by the largest there can be"),
        ("wohle", r"has no 'wohle'. Did you mean 'whole'\?"),
    ],
)
def test_what_is_refused(name: str, words: str) -> None:
    """What is no data, and an error of the code's own, is one line with the way out."""
    with pytest.raises(UserError, match=words) as error:
        load(f"own.py:{name}")
    assert "\n" not in str(error.value)


def test_a_large_map_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be copied or warned about; the way out is named."""
    monkeypatch.setattr("vae.data.bring.IN_MEMORY_BYTES", 1000)
    Path("map.py").write_text(CODE + "\nimages.flags.writeable = False\n")
    with pytest.raises(UserError, match="open it with mode='c'"):
        load("map.py:whole")
