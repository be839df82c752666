"""Other people's studies and folders: named and left alone; a study deleted meanwhile is no traceback."""

from __future__ import annotations

from pathlib import Path

import fake_training
import optuna
import pytest

from study.store import records
from study.store.locations import Local
from study.store.store import Store
from vae.errors import UserError


def test_a_name_that_others_studies_have_is_refused(tmp_path: Path) -> None:
    """A new experiment takes no name under which another program has studies, and leaves nothing behind."""
    with Store.open(f"sqlite:///{tmp_path / 'optuna.db'}", create=True) as store:
        optuna.create_study(study_name="fake/search", storage=store.optuna)
        with pytest.raises(UserError, match="has a study 'fake/search' that this program did not make"):
            fake_training.prepare(tmp_path, arms=["twice"])
        assert store.experiments() == []
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] in ([], ["artifacts"])


def test_a_maximising_study_of_the_name_is_refused(tmp_path: Path) -> None:
    """A loss that is maximised would be read backwards: refused in one line."""
    session = fake_training.prepare(tmp_path, arms=["twice"], seeds=2)
    with session.store as store:
        optuna.create_study(study_name="fake/twice", storage=store.optuna, direction="maximize")
        with pytest.raises(UserError, match="has a study 'fake/twice' that this program did not make"):
            fake_training.prepare(tmp_path, arms=["twice"], seeds=2)


def test_a_deleted_experiment_is_said(tmp_path: Path) -> None:
    """Where all its studies are deleted, a running command ends with one line."""
    session = fake_training.prepare(tmp_path, arms=["twice"], seeds=2, target=20.0)
    with session.store as store:
        session.planner.advance()
        for study_name in records.study_ids(store, "fake"):
            optuna.delete_study(study_name=study_name, storage=store.optuna)
        with pytest.raises(UserError, match="No experiment 'fake' in"):
            session.run_here()


def test_two_databases_of_one_name_keep_their_files(tmp_path: Path) -> None:
    """Both work in one artifacts folder; neither writes where the other does, and going on finds its own."""
    first = fake_training.prepare(tmp_path)
    first.store.close()
    (tmp_path / "optuna.db").rename(tmp_path / "first.db")
    second = fake_training.prepare(tmp_path)
    second.store.close()
    again = fake_training.prepare(tmp_path)
    again.store.close()
    assert first.artifacts.path == Local(tmp_path / "artifacts" / "fake")
    assert second.artifacts.path == again.artifacts.path != first.artifacts.path
    assert second.artifacts.root == first.artifacts.root
