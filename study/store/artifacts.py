"""The folder of one experiment's files: whose it is, and what lies where in it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from study.store.locations import Location
from study.store.names import require_name
from study.terms import StudyName
from vae.errors import FailureError, UserError

#: A file in the folder: the identity of the experiment that it belongs to.
_MARK = "experiment-id"


@dataclass(frozen=True)
class Artifacts:
    """An experiment's models, states and pictures: `root / folder`.

    Two databases may hold experiments of one name: a folder belongs to the one that made it, by an identity that is
    stored in the experiment's spec and in the folder. An experiment of before has no identity, and its name's folder.
    """

    root: Location
    folder: str
    identity: str | None = None

    @classmethod
    def of(cls, root: Location, name: str, kept: Mapping[str, Any] | None) -> Self:
        """Those of the experiment NAME under `root`; `kept` is what its spec holds, None for one of before.

        Raises UserError for a name that leads out of the root."""
        stored = kept or {"folder": name, "identity": None}
        return cls(
            root, require_name(stored["folder"], f"experiment '{name}': the folder"), stored["identity"]
        )

    @classmethod
    def make(cls, root: Location, name: str) -> Self:
        """A new folder for a new experiment: NAME, or NAME and a part of its identity where that one is another's.

        Raises FailureError where it can't be made."""
        identity = uuid.uuid4().hex
        for folder in (name, f"{name}-{identity[:8]}"):
            made = cls(root, require_name(folder, "--name"), identity)
            if made._take():
                return made
        raise FailureError(f"--artifacts {root}: no folder '{name}' can be made there.")

    @property
    def path(self) -> Location:
        """The folder."""
        return self.root / self.folder

    @property
    def best(self) -> Location:
        """The copy of the search's best model that `run` and `search` leave."""
        return self.path / "best.safetensors"

    @property
    def to_store(self) -> dict[str, str | None]:
        """What `of` reads in the experiment's spec."""
        return {"folder": self.folder, "identity": self.identity}

    def require(self) -> None:
        """Make the folder where it isn't there, as on another machine. Raises UserError where it is another's."""
        if not self.are_ours() and not self._take():
            raise UserError(
                f"--artifacts {self.root}: '{self.folder}' holds the files of another experiment. Give the folder "
                "that this one was begun with, or another --artifacts."
            )

    def are_ours(self) -> bool:
        """Whether the folder is this experiment's."""
        if self.identity is None:
            return True
        with (self.path / _MARK).local() as mark:
            try:
                return mark.read_text(encoding="utf-8") == self.identity
            except (OSError, UnicodeDecodeError):
                return False

    def model(self, study_name: str, number: int) -> Location:
        """Where a search trial's model is kept if it was the best when it ended."""
        return self._of_study(study_name) / "models" / f"trial-{number}.safetensors"

    def state(self, study_name: str, number: int) -> Location:
        """Where a running trial's state is saved."""
        return self._of_study(study_name) / "state" / f"trial-{number}.pt"

    def _of_study(self, study_name: str) -> Location:
        """The folder of one of the experiment's studies, whose name somebody else may have written."""
        name = StudyName.parse(study_name)
        if name is None:
            raise UserError(f"'{study_name}' is no study of an experiment.")
        folder = self.path / require_name(name.arm, f"study '{study_name}': the arm")
        return folder if name.block == 1 else folder / str(name.block)

    def _take(self) -> bool:
        """Make the folder ours, if nobody has anything in it; whether it is then."""
        assert self.identity is not None
        if not any(True for _ in self.path.files()):
            # Of those that come together one makes the mark; where a protocol can't tell, the last one's is in it.
            (self.path / _MARK).create(self.identity.encode())
        return self.are_ours()
