"""Bring the dashboard up to date: notes, plots and images of an experiment, at once or while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from study.analysis.comparison import Comparison
from study.analysis.evidence import Evidence, read
from study.dashboard.board import Pieces, plot_pieces, write
from study.dashboard.images import images
from study.dashboard.notes import arm_note, comparison_note, search_note
from study.dashboard.plots import figures
from study.store import records
from study.store.locations import Location
from study.store.store import Store
from study.terms import BASELINE, SEARCH, StudyName
from vae.errors import UserError

#: Seconds between two publications of a running experiment.
INTERVAL = 30.0
#: At most this share of one core goes into publishing, however large the experiment.
SHARE = 0.05


def publish(store: Store, name: str, artifacts: Location, data_dir: Path | None) -> None:
    """Write the notes, plots and images of experiment NAME as far as it has got; again is no change.

    Images need the search's best model under `artifacts`, reconstructions also the data: what isn't there is
    left out and named in the note. Raises UserError for an unknown NAME, FailureError where a file or the
    database can't be written.
    """
    with store.database.explained():
        evidence = read(store, name)
        ids = records.study_ids(store, name)
        comparison = evidence.comparison
        plots: Pieces = {}
        if comparison is not None:
            plots = plot_pieces(figures(evidence, comparison))
            _publish_arms(evidence, comparison, plots, ids)
        study_id = ids.get(str(StudyName(name, SEARCH)))
        if evidence.experiment.search.trials and study_id is not None:
            shown, missing = images(evidence, study_id, artifacts, data_dir)
            write(store, study_id, search_note(evidence, study_id, shown, missing), plots, shown)


def _publish_arms(evidence: Evidence, comparison: Comparison, plots: Pieces, ids: dict[str, int]) -> None:
    store, name = evidence.store, evidence.name
    baseline_id = ids.get(str(StudyName(name, BASELINE)))
    if baseline_id is None:
        return
    write(store, baseline_id, comparison_note(evidence, comparison), plots)
    for arm in comparison.arms:
        study_id = ids.get(str(StudyName(name, arm.arm)))
        if not arm.is_baseline and study_id is not None:
            write(store, study_id, arm_note(comparison, arm.arm, baseline_id), {})


class Publisher:
    """Keeps the dashboard current while an experiment runs; a context manager, for the last word.

    It publishes in a thread of its own: that takes seconds on a large experiment, and the launcher has workers
    to look after. `say` gets one line the first time it fails; the experiment goes on.
    """

    def __init__(
        self, store: Store, name: str, artifacts: Location, data_dir: Path | None, say: Callable[[str], None]
    ) -> None:
        self._store = store
        self._name = name
        self._artifacts = artifacts
        self._data_dir = data_dir
        self._say = say
        self._due = time.monotonic() + INTERVAL
        self._published: int | None = 0  # `Store.progress` then
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._said = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A command that was stopped leaves by SystemExit. After a failure nothing may stand between it and
        # its message, such as a database that doesn't answer.
        if kind is None or issubclass(kind, SystemExit):
            self.close()

    def maybe_publish(self) -> None:
        """Begin to publish if the last time is long enough ago and a trial has begun or ended since. Returns at
        once; to be called often, from one thread."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._report()
        if time.monotonic() < self._due:
            return
        self._thread = threading.Thread(target=self._publish, name="dashboard", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being published: before something is timed."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Publish what there is now: timings and the last trials too."""
        self.wait()
        self._published = None
        self._publish()
        self._report()

    def _publish(self) -> None:
        began = time.thread_time()
        try:
            progress = records.progress(self._store, self._name)
            if progress != self._published:
                publish(self._store, self._name, self._artifacts, self._data_dir)
                self._published = progress
        except Exception as error:  # whatever it is: the trainings are worth more than their picture
            self._error = error
        spent = time.thread_time() - began
        self._due = time.monotonic() + max(INTERVAL, spent / SHARE)

    def _report(self) -> None:
        """Say the first error; the same every 30 seconds would help nobody."""
        error, self._error = self._error, None
        if error is None or self._said:
            return
        self._said = True
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self._say(f"The dashboard is not up to date, the experiment goes on: {reason}")
