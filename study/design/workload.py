"""Workload: what every arm of an experiment shares beside its recipe, derived once."""

from __future__ import annotations

from dataclasses import dataclass

#: Training sets below this size get the defaults made for digits: a small network and more epochs.
SMALL_DATA = 10_000


@dataclass(frozen=True)
class Workload:
    """The data, its size and the budget: the same in every trial of an experiment."""

    data: str
    """A named data set or the path of a file."""
    n_train: int
    """Training examples."""
    tau: int
    """The budget in examples seen."""
    dimensions: int | None = None
    """Pixels of an example where they have whole levels, so that losses are bits as well; None where they haven't, and
    in an experiment of before."""

    @classmethod
    def of(cls, data: str, n_train: int, epochs: float) -> Workload:
        """The workload of so many epochs of the training split."""
        return cls(data, n_train, max(1, round(epochs * n_train)))

    @property
    def small_data(self) -> bool:
        """Whether it gets the defaults made for digits."""
        return is_small(self.n_train)


def is_small(n_train: int) -> bool:
    """Whether a training set of n_train examples gets the defaults made for digits."""
    return n_train < SMALL_DATA
