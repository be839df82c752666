"""Files belong to an experiment, not to its name: two databases never write over each other's, and no name leads
out of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from study.store.artifacts import Artifacts
from study.store.locations import Local
from vae.errors import UserError


def test_two_experiments_of_one_name_have_two_folders(tmp_path: Path) -> None:
    """The second, of another database, gets a folder of its own, and each is found again by what is stored."""
    first, second = Artifacts.make(Local(tmp_path), "digits"), Artifacts.make(Local(tmp_path), "digits")
    assert first.path == Local(tmp_path / "digits")
    assert second.path.name.startswith("digits-")
    for made in (first, second):
        found = Artifacts.of(Local(tmp_path), "digits", made.to_store)
        assert found == made
        assert found.are_ours()


def test_a_folder_with_somebodys_files_is_left_alone(tmp_path: Path) -> None:
    """What lies there without a mark is an experiment's of before, or the user's; an empty folder is free."""
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "best.safetensors").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    assert Artifacts.make(Local(tmp_path), "digits").path != Local(tmp_path / "digits")
    assert Artifacts.make(Local(tmp_path), "empty").path == Local(tmp_path / "empty")
    assert (tmp_path / "digits" / "best.safetensors").read_bytes() == b"mine"


def test_experiments_of_before_keep_their_paths(tmp_path: Path) -> None:
    """A spec without a folder means NAME, whatever lies there."""
    old = Artifacts.of(Local(tmp_path), "digits", None)
    old.require()
    assert old.are_ours()
    assert old.model("digits/search", 3) == Local(tmp_path / "digits/search/models/trial-3.safetensors")
    assert old.state("digits/cosine/2", 3) == Local(tmp_path / "digits/cosine/2/state/trial-3.pt")
    assert old.best == Local(tmp_path / "digits/best.safetensors")


def test_another_place_is_taken_or_refused(tmp_path: Path) -> None:
    """With other --artifacts, as on another machine, the folder is made; where another experiment has it, one line says
    so and nothing is written."""
    here = Artifacts.make(Local(tmp_path / "here"), "digits")
    there = Artifacts.of(Local(tmp_path / "there"), "digits", here.to_store)
    assert not there.are_ours()
    there.require()
    assert there.are_ours()
    Artifacts.make(Local(tmp_path / "taken"), "digits")
    with pytest.raises(UserError, match="'digits' holds the files of another experiment"):
        Artifacts.of(Local(tmp_path / "taken"), "digits", here.to_store).require()


@pytest.mark.parametrize("listed_first", [True, False])
def test_workers_that_come_together_share_a_new_place(tmp_path: Path, listed_first: bool) -> None:
    """While one looks whether the place is empty another makes it theirs: it is no other experiment's."""
    here = Artifacts.make(Local(tmp_path / "here"), "digits")
    other = Artifacts.of(Local(tmp_path / "there"), "digits", here.to_store)

    class Slow(Local):
        def __truediv__(self, part: str) -> Slow:
            return Slow(self.path / part)

        def files(self) -> Iterator[Local]:
            before = list(super().files())
            other.require()
            return iter(before) if listed_first else super().files()

    Artifacts.of(Slow(tmp_path / "there"), "digits", here.to_store).require()
    assert other.are_ours()


@pytest.mark.parametrize(
    "study_name", ["digits/../../x", "digits/..", "digits//etc", "/etc/x", "digits", "digits/a/../b"]
)
def test_no_study_name_leads_out_of_the_folder(tmp_path: Path, study_name: str) -> None:
    """Names of Optuna's studies come from the database, which may come from anybody."""
    files = Artifacts.make(Local(tmp_path), "digits")
    with pytest.raises(UserError):
        files.state(study_name, 0)
    with pytest.raises(UserError):
        Artifacts.of(Local(tmp_path), "digits", {"folder": "../x", "identity": "y"})
