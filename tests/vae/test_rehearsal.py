"""What is one's own is rehearsed: what would fail an hour later is one line now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vae.data.dataset import load
from vae.errors import UserError
from vae.recipe import Recipe
from vae.rehearsal import rehearse

RECIPE = Recipe(hidden=(8,), latent_size=3, batch_size=64, lr=1e-3)
OWN = """
import torch


class Fine(torch.optim.SGD):
    pass


class Forgetful(torch.optim.SGD):
    steps = 0

    def step(self):
        self.steps += 1
        for group in self.param_groups:
            group["lr"] *= self.steps
        super().step()


class Pickled(torch.optim.SGD):
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["of"] = Pickled
        super().step()


class Local(torch.optim.SGD):
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["of"] = lambda: p
        super().step()


class Idle(torch.optim.SGD):
    def step(self):
        pass


class Stubborn(torch.optim.SGD):
    def load_state_dict(self, state):
        raise SystemExit("not again")


class Exploding(torch.optim.SGD):
    @torch.no_grad()
    def step(self):
        self.param_groups[0]["params"][0].fill_(float("nan"))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """own.py stands in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)


def tried(name: str) -> None:
    rehearse(RECIPE.replace(optimizer=f"own.py:{name}"), load("digits"), 4_000, torch.device("cpu"))


def test_what_works_is_let_pass() -> None:
    """An optimizer that keeps its state where torch does goes on as it would have."""
    tried("Fine")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Forgetful", "goes on otherwise from its saved state than without a stop"),
        (
            "Pickled",
            r"saved and read without pickling: keep tensors and plain values alone \(there is a builtins.type",
        ),
        ("Local", r"keep tensors and plain values alone \(there is a builtins.function in it\)"),
        ("Idle", r"A step of own\.py:Idle changes no weight"),
        ("Stubborn", r"The state of own\.py:Stubborn isn't taken over .*: not again"),
        ("Exploding", r"After one step of own\.py:Exploding weights are NaN or infinite"),
    ],
)
def test_what_would_fail_later_is_told(name: str, words: str) -> None:
    """A state outside the state, one that only pickle holds or that isn't taken back, steps that do nothing, and
    weights that are none."""
    with pytest.raises(UserError, match=words) as error:
        tried(name)
    assert "\n" not in str(error.value)
