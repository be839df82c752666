"""Files that are almost right: valid ones with bytes changed, cut out, doubled or cut off.

A reader takes one or refuses it in a UserError, within a bounded time. The same of .npy and .npz, pickles in them too,
is in tests/vae/data/test_sources.py.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.design.build import Request, build, read_toml
from vae.checkpoint import load_model, load_state, save_model, save_state
from vae.data.dataset import Dataset, load
from vae.data.idx import parse_idx
from vae.errors import UserError
from vae.recipe import Recipe
from vae.training import train

EXPERIMENT = b"""
data = "digits"
budget = 5
arms = ["cosine", "mine"]
[recipe]
batch_size = 256
[techniques.mine]
family = "optimizer"
overrides = { optimizer = "nesterov" }
knobs = { warmup = { low = 0.01, high = 0.1, log = true } }
[search.space]
lr = { low = 1e-5, high = 1e-2, log = true }
"""
#: A reader of bytes in a folder, and a valid example for it.
Reader = tuple[Callable[[Path], object], bytes]


def read_idx(path: Path) -> object:
    return parse_idx(path.read_bytes(), path.name, ndim=3)


def read_experiment(path: Path) -> object:
    return build(Request(read_toml(path), source="test"), 1_000, None)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """By the kind of file."""
    folder = tmp_path_factory.mktemp("valid")
    digits: Dataset = load("digits")
    training = train(Recipe(hidden=(4,), latent_size=2), digits, 2_000)
    for _ in training:
        pass
    save_model(folder / "model.safetensors", training, digits)
    save_state(folder / "state.pt", training)
    return {
        "model.safetensors": (load_model, (folder / "model.safetensors").read_bytes()),
        "state.pt": (load_state, (folder / "state.pt").read_bytes()),
        "images-idx3-ubyte": (read_idx, struct.pack(">BBBBIII", 0, 0, 8, 3, 5, 2, 2) + bytes(range(20))),
        "experiment.toml": (read_experiment, EXPERIMENT),
    }


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """One to four changes, most of them near the beginning, where headers are."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        if not changed:
            break
        limit = data.draw(st.sampled_from([min(len(changed), 64), min(len(changed), 2048), len(changed)]))
        at = data.draw(st.integers(0, limit - 1))
        kind = data.draw(st.sampled_from(["byte", "bytes", "cut", "double", "end"]))
        if kind == "byte":
            changed[at] = data.draw(st.integers(0, 255))
        elif kind == "bytes":
            changed[at : at + 8] = data.draw(st.binary(min_size=0, max_size=16))
        elif kind == "cut":
            del changed[at : at + data.draw(st.integers(1, 64))]
        elif kind == "double":
            changed[at:at] = changed[at : at + data.draw(st.integers(1, 64))]
        else:
            del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize(
    "n_examples", [25, pytest.param(2_000, marks=[pytest.mark.faults, pytest.mark.timeout(1200)])]
)
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "images-idx3-ubyte", "experiment.toml"])
def test_a_file_that_is_almost_right_is_read_or_refused(
    name: str, n_examples: int, readers: dict[str, Reader], tmp_path: Path
) -> None:
    """Nothing else ever comes out of a reader, and not later than five seconds."""
    read, content = readers[name]
    assert read_of(read, content, tmp_path / name) is not None

    @settings(
        max_examples=n_examples,
        deadline=timedelta(seconds=5),
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        with contextlib.suppress(UserError):
            read_of(read, mutated(data, content), tmp_path / name)

    check()


def read_of(read: Callable[[Path], Any], content: bytes, path: Path) -> Any:
    path.write_bytes(content)
    return read(path)
