"""Pictures of the search's best model as PNG files for the dashboard, made once for each trial."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path

from study.analysis.evidence import Evidence
from study.dashboard.board import Image, images_folder
from study.protocol.history import Run
from study.store.artifacts import Artifacts
from study.store.locations import Location
from vae.errors import UserError
from vae.files import write_bytes
from vae.recipe import Recipe

#: What is drawn: file name -> title.
TITLES = {
    "reconstructions.png": "Test images, and below each what the model makes of it",
    "samples.png": "Samples from the prior",
}
_NAMESPACE = uuid.UUID("5f0f4c0e-7c5f-4c0b-9a43-0d1d5d8f2a11")


def images(
    evidence: Evidence, study_id: int, artifacts: Location, data_dir: Path | None
) -> tuple[list[Image], str]:
    """The pictures of the search's best trial, drawn unless they are there, and in words why some are not: no model
    under `artifacts`, which may be out of reach, another experiment's, no data. Nothing before there is a best trial.

    Raises FailureError where nothing can be written.
    """
    best = evidence.best_search
    if best is None:
        return [], ""
    folder = images_folder(artifacts)
    found = [
        _image(best, evidence.table.set_index("trial_id")["started"][best.trial_id], study_id, filename)
        for filename in TITLES
    ]
    files = Artifacts.of(artifacts, evidence.name, evidence.kept_artifacts)
    path = files.model(best.study, best.number)
    try:
        if all((folder / image.artifact_id).exists() for image in found):
            return found, ""
        if not (files.are_ours() and path.exists()):
            return [], f"the model of trial {best.number} is not in {artifacts}"
        from study.report.model import gallery

        with path.local() as file:
            drawn = gallery(file, evidence.experiment, evidence.fingerprint, data_dir)
    except UserError as error:
        return [], str(error)
    if Recipe.from_json(drawn.recipe_json) != best.recipe:
        return [], f"{path} is of another experiment"
    from vae.pictures import enlarged

    pictures = {"reconstructions.png": drawn.reconstructions, "samples.png": drawn.samples}
    for image in found:
        png = pictures[image.filename]
        if png is not None:
            _store(folder, image.artifact_id, enlarged(png))
    return [image for image in found if pictures[image.filename] is not None], "; ".join(drawn.missing)


def _image(best: Run, started: float, study_id: int, filename: str) -> Image:
    # The same trial has the same file whoever publishes it; `started` tells apart what is called the same in
    # another database.
    trial = f"{best.study} {best.number} {started!r} {filename}"
    artifact_id = str(uuid.uuid5(_NAMESPACE, trial))
    return Image(TITLES[filename], study_id, best.trial_id, artifact_id, filename)


def _store(folder: Location, artifact_id: str, png: bytes) -> None:
    """As Optuna's FileSystemArtifactStore writes it, but whole or not at all: its presence is the mark that it
    has been drawn."""
    (folder / artifact_id).save(partial(write_bytes, content=png))
