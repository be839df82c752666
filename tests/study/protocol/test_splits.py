"""Blocks: each has a split of the data of its own, a target on it, and arms that are paired within it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import fake_training
import numpy as np
import pytest
from fake_training import TWO_BLOCKS, FakeTraining, Finished, arms_table, estimated, loss_at, share_to

from study.analysis.evidence import read
from study.analysis.notes import notes
from study.design.build import Request, build
from study.design.experiment import Experiment
from study.protocol.stored import stored
from study.store import records
from study.store.store import Store
from study.workers.splits import Splits
from study.workers.trial import Trainer
from vae.data.dataset import load
from vae.errors import FailureError

TAU = 64_000
#: The target is calibrated, on few trials; a reference arm is there too.
VALUES: dict[str, Any] = TWO_BLOCKS | {"arms": ["twice"], "tune_trials": 1, "tune_seeds": 1}


def harder(data: Any) -> float:
    """Nats that a split's validation images add to every loss: up to 26, which no target of another split survives."""
    return float(data.valid.numbers.sum() % 80) / 3


class OnTheSplit(FakeTraining):
    """Its losses depend on which images it is validated on."""

    harder = staticmethod(harder)


TRAINER: Any = Trainer(train=OnTheSplit, grid=FakeTraining.grid)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A comparison in two blocks, one of which has harder images; not to be changed."""
    folder = tmp_path_factory.mktemp("split")
    session = fake_training.prepare(folder, TRAINER, **VALUES)
    with session.store:
        session.run_here()
    return Finished(folder, VALUES)


def make(**values: Any) -> Experiment:
    return build(Request(values, source="test"), 1_000, None)


def data_of(folder: Path, experiment: Experiment, block: int) -> Any:
    return load(str(folder / "pixels.npy"), seed=experiment.split_seed(block))


def test_each_block_is_trained_on_its_own_split(split: Finished) -> None:
    """Every trial of a block, references too, has that block's split by its fingerprint, and the two differ."""
    with split.open() as (store, state):
        trials = records.trials(store, "fake")
        found = {block: set(part["data_fingerprint"]) for block, part in trials.groupby("block")}
        assert found == {
            block: {data_of(split.folder, state.experiment, block).fingerprint} for block in (1, 2)
        }
        assert [run.block for run in state.of("article", "confirm")] == [1, 2, 1, 2]
    assert not found[1] & found[2]


def test_a_harder_split_has_a_higher_target(split: Finished) -> None:
    """The target is calibrated on each split, so a block's difficulty is in the target and not in the examples: each
    run takes what the formula says, and verdicts pair the arms block by block."""
    with split.open() as (store, state):
        easy, hard = (harder(data_of(split.folder, state.experiment, block)) for block in (1, 2))
        assert abs(hard - easy) > 1.0
        assert state.above_first(2) == pytest.approx(hard - easy, abs=1e-9)
        assert state.target is not None
        for arm in ("baseline", "twice"):
            runs = state.of(arm, "confirm")
            assert [run.block for run in runs] == [1, 2, 1, 2]
            for run in runs:
                assert run.recipe is not None
                expected = TAU * share_to(run.recipe, state.target - easy)
                assert run.examples_to_target == pytest.approx(expected, rel=1e-9)
        row = arms_table(estimated(store)).loc["twice"]
        assert row["units"] == 2
        assert row["low"] < 2 < row["high"]


def test_losses_stand_on_one_scale(split: Finished) -> None:
    """Curves of all blocks are drawn on the first one's scale, a note says the targets, and the table keeps what was
    recorded."""
    with split.open() as (store, state):
        evidence = read(store, "fake")
        easy, hard = (harder(data_of(split.folder, state.experiment, block)) for block in (1, 2))
        for run in state.of("twice", "confirm"):
            assert run.recipe is not None
            curve = evidence.curves[run.trial_id]
            bare = [loss_at(run.recipe, examples / TAU) for examples in curve.examples]
            np.testing.assert_allclose(curve.valid_loss, np.array(bare) + easy, atol=1e-9)
            (raw,) = state.curves([run])
            np.testing.assert_allclose(raw.valid_loss, np.array(bare) + (easy if run.block == 1 else hard))
        assert evidence.comparison is not None
        (said,) = [
            note for note in notes(evidence.comparison, state) if "split of the data of its own" in note
        ]
        assert ", ".join(f"{state.target_in(block):.2f}" for block in (1, 2)) in said


def test_an_experiment_of_before_keeps_its_one_split(split: Finished, tmp_path: Path) -> None:
    """Stored without a word on splits, what was compared goes on with the split that all its blocks share; where
    nothing was compared yet, a comparison begins by today's rule."""
    folder = split.copy(tmp_path / "before")
    with closing(sqlite3.connect(folder / "optuna.db")) as database:
        database.execute("UPDATE experiment SET spec = json_remove(spec, '$.experiment.split_per_block')")
        database.commit()
    with Store.open(f"sqlite:///{folder / 'optuna.db'}") as store:
        experiment = stored(store, "fake").experiment
        assert not experiment.split_per_block
        assert {experiment.split_seed(block) for block in (1, 2)} == {experiment.seed}
        spec = {"experiment": make().to_json(), "data_fingerprint": "", "n_train": 1}
        del spec["experiment"]["split_per_block"]
        store.save_experiment("searched", spec)
        assert stored(store, "searched").experiment.split_per_block


def test_no_two_splits_have_a_seed_in_common() -> None:
    """Not those of other blocks, and not those of other experiment seeds: families of an A/A test are independent."""
    seeds = [
        make(seed=seed, blocks=3, seeds=21).split_seed(block) for seed in (0, 1, 9_999) for block in (1, 2, 3)
    ]
    assert len(set(seeds)) == 9


def test_data_that_changes_meanwhile_ends_the_worker(tmp_path: Path) -> None:
    """A later block's split is read when it is needed: another file by then is no trial's fault, and is said."""
    path = Path(fake_training.pixels(tmp_path))
    experiment = make(data=str(path), blocks=2, seeds=2)
    splits = Splits(experiment, load(str(path)), None)
    assert splits.of(1) is splits.first
    assert splits.of(2).content == splits.first.content
    np.save(path, np.load(path)[::-1])
    changed = Splits(experiment, splits.first, None)
    with pytest.raises(FailureError, match="has changed"):
        changed.of(2)
    path.unlink()
    with pytest.raises(FailureError, match="No file"):
        changed.of(2)
