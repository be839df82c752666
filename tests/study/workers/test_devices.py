"""Devices: which worker gets which, and a trial that doesn't fit on one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_training import prepare_search

from study.place import cores, default_workers
from study.store import records
from study.workers.trial import Trainer
from vae.devices import pick_device
from vae.errors import UserError
from vae.training import Training, train


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes torch say that it sees that many CUDA devices."""

    def make(n: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)

    return make


def test_one_worker_a_gpu(gpus: Callable[[int], None]) -> None:
    """By default each GPU has one worker; a worker too many shares; an index means that GPU for all."""
    gpus(3)
    assert default_workers("auto") == default_workers("cuda") == 3
    assert default_workers("cuda:1") == 1
    assert [str(pick_device("auto", i)) for i in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert [str(pick_device("cuda", i)) for i in range(2)] == ["cuda:0", "cuda:1"]
    assert {str(pick_device("cuda:1", i)) for i in range(3)} == {"cuda:1"}
    assert default_workers("cpu") == cores()
    assert {str(pick_device("cpu", i)) for i in range(3)} == {"cpu"}
    with pytest.raises(UserError, match="sees 3 CUDA devices"):
        pick_device("cuda:3")


def test_without_a_gpu_auto_is_the_processor(gpus: Callable[[int], None]) -> None:
    """As many workers as cores; a CUDA device asked for is refused."""
    gpus(0)
    assert default_workers("auto") == cores()
    assert str(pick_device("auto", 1)) == "cpu"
    with pytest.raises(UserError, match="sees 0 CUDA devices"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("allocate", "words"),
    [
        (lambda: torch.empty(10**16), "can't allocate memory"),  # what torch really raises on the CPU
        (
            lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
            "20.00 GiB",
        ),
        (lambda: _raise(MemoryError()), "MemoryError"),
    ],
)
def test_a_trial_that_runs_out_of_memory_fails_alone(
    tmp_path: Path, allocate: Callable[[], Any], words: str
) -> None:
    """It ends as failed with the reason and the way out, what it held is freed, and the study goes on."""
    held: list[weakref.ref[Training]] = []
    freed: list[bool] = []

    def failing(*arguments: Any) -> Training:
        if held and not freed:
            gc.disable()
            freed.append(held[0]() is None)
            gc.enable()
        training = train(*arguments)
        if not held:
            held.append(weakref.ref(training))
            vars(training)["_evaluate"] = lambda _: allocate()
        return training

    session = prepare_search(tmp_path, 3, trainer=Trainer(train=failing))
    session.run_here()
    trials = records.trials(session.store, "fake").set_index("number")
    assert trials["outcome"].tolist()[0] == "failed"
    assert set(trials.loc[1:, "outcome"]) <= {"completed", "collapsed", "pruned"}
    reason = trials.loc[0, "reason"]
    assert reason.startswith("MemoryError: out of memory on cpu: ")
    assert words in reason
    assert "smaller batch_size" in reason
    assert freed == [True]
    session.store.close()


def test_another_error_keeps_its_name(tmp_path: Path) -> None:
    """A RuntimeError that isn't about memory is told as what it is."""
    trainer = Trainer(train=lambda *_: _raise(RuntimeError("mat1 and mat2")))
    session = prepare_search(tmp_path, 1, trainer=trainer)
    session.run_here()
    assert records.trials(session.store, "fake").loc[0, "reason"] == "RuntimeError: mat1 and mat2"
    session.store.close()


def _raise(error: Exception) -> Any:
    raise error
