"""Where Optuna's dashboard looks for notes, plots and images: the attributes of a study.

It stores them in pieces of 2045 characters. Here all pieces of a study that differ are written in one
transaction: a page that is open never reads half a plot, and trials wait for one short write, not for hundreds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna_dashboard
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, Text, bindparam, select

from study.store.locations import Location
from study.store.optuna_private import DraftStudy
from study.store.schema import studies
from study.store.store import Store

if TYPE_CHECKING:
    import plotly.graph_objects as go

_attributes = Table(
    "study_system_attributes",
    MetaData(),
    Column("study_system_attribute_id", Integer, primary_key=True),
    Column("study_id", Integer),
    Column("key", String),
    Column("value_json", Text),
)

Pieces = Mapping[str, Any]

#: Ends our part of a note; a reader's own words go below it.
KEEP_LINE = "*What you write below this line stays; everything above it is renewed.*"


@dataclass(frozen=True)
class Image:
    """A PNG file in the artifact store, and the trial whose model it shows."""

    title: str
    study_id: int
    trial_id: int
    artifact_id: str
    filename: str

    @property
    def address(self) -> str:
        """Where the dashboard serves it."""
        return f"/artifacts/{self.study_id}/{self.trial_id}/{self.artifact_id}"

    @property
    def attribute(self) -> tuple[str, str]:
        """Key and value by which the dashboard lists it with its trial."""
        # Optuna's `upload_artifact` can't: a finished trial takes no attribute. The dashboard also finds a
        # trial's artifacts among the attributes of its study.
        meta = {"artifact_id": self.artifact_id, "filename": self.filename}
        value = json.dumps(meta | {"mimetype": "image/png", "encoding": None})
        return f"dashboard:artifacts:{self.trial_id}:{self.artifact_id}", value


def images_folder(artifacts: Location) -> Location:
    """Where the images that the dashboard shows are kept."""
    return artifacts / "dashboard"


def plot_pieces(figures: Mapping[str, go.Figure]) -> Pieces:
    """The attributes that make custom plots of `figures`, by graph id."""
    draft = DraftStudy({})
    for graph_id, figure in figures.items():
        optuna_dashboard.save_plotly_graph_object(draft, figure, graph_object_id=graph_id)
    return draft.attributes


def write(store: Store, study_id: int, note: str, plots: Pieces, images: Iterable[Image] = ()) -> None:
    """Renew our part of a study's note, its plots and its images; what is there already isn't written again."""
    with store.write() as connection:
        row = select(studies.c.study_id).where(studies.c.study_id == study_id)
        # On PostgreSQL two launchers wait for each other here, and no trial waits for them.
        if connection.execute(row.with_for_update(key_share=True)).first() is None:
            return  # somebody has deleted it
        before = _read(connection, study_id)
        after = before | _note_pieces(before, note) | dict(plots)
        after |= dict(image.attribute for image in images)
        # A plot that has become shorter: its last pieces would make it invalid.
        ours = {key.rpartition(":")[0] for key in plots}
        left_over = {key for key in before if key.rpartition(":")[0] in ours} - plots.keys()
        changed = [key for key, value in after.items() if key not in left_over and before.get(key) != value]
        _replace(connection, study_id, left_over.union(changed), {key: after[key] for key in changed})


def with_own_words(text: str, before: str) -> str:
    """The new note: `text`, and below it what a reader had written into the note `before`."""
    ours, line, own = before.partition(KEEP_LINE)
    if not line:
        own = f"\n\n{ours}" if ours.strip() else ""
    return f"{text}\n\n---\n\n{KEEP_LINE}{own}"


def _note_pieces(before: Pieces, note: str) -> dict[str, Any]:
    draft = DraftStudy(before)
    old = optuna_dashboard.get_note(draft)
    new = with_own_words(note, old)
    if new != old:
        optuna_dashboard.save_note(draft, new)
    return draft.attributes


def _read(connection: Connection, study_id: int) -> dict[str, Any]:
    query = select(_attributes.c.key, _attributes.c.value_json).where(
        _attributes.c.study_id == study_id, _attributes.c.key.startswith("dashboard:")
    )
    return {key: json.loads(value) for key, value in connection.execute(query)}


def _replace(connection: Connection, study_id: int, gone: Iterable[str], values: Pieces) -> None:
    old = [{"id": study_id, "old": key} for key in gone]
    if old:
        match = (_attributes.c.study_id == bindparam("id")) & (_attributes.c.key == bindparam("old"))
        connection.execute(_attributes.delete().where(match), old)
    new = [
        {"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in values.items()
    ]
    if new:
        connection.execute(_attributes.insert(), new)
