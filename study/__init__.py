"""Decides what to train, compare and tell: `python -m study`, and from Python:

    import study

    comparison = study.run(data="digits", arms=["cosine", "output-bias"])   # trains, or goes on where it was
    comparison                                                              # a notebook shows the table
    with study.open("sqlite:///optuna.db") as experiments:                  # reads: nothing is trained
        comparison = experiments.comparison("digits")

A comparison has `.arms` (a DataFrame, one row an arm), `.verdicts`, `.sentences` and `.notes`. Everything else is in
the modules, documented there.
"""

from __future__ import annotations

import html
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

# Imported where they are used: `import study` alone is quick, torch and pandas take seconds.
if TYPE_CHECKING:
    from types import TracebackType

    import pandas as pd

    from study.statistics.verdicts import Verdict
    from study.store.store import Store

__all__ = ["Answer", "Experiments", "open", "run"]


#: Seconds between two calls of `on_progress`.
_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, repr=False)
class Answer:
    """What one experiment's comparison says now."""

    name: str
    target: float | None
    """The validation loss to reach, nats per example; None: not calibrated yet."""
    arms: pd.DataFrame
    """One row an arm, the baseline first, then by speed-up; the columns of `export`'s arms table."""
    verdicts: Mapping[str, Verdict]
    """arm -> what may be said of it in examples; each verdict is a string and has its `.sentence`."""
    sentences: Sequence[str]
    """Two or three sentences that can be quoted."""
    notes: Sequence[str]
    """What to mind about it."""
    _table: pd.DataFrame = field(repr=False)

    def __repr__(self) -> str:
        return "\n".join([f"{self.name}: {' '.join(self.sentences)}", self._table.to_string(index=False)])

    def _repr_html_(self) -> str:
        """For a notebook: the sentences and the table of speed-ups, 95 % intervals and verdicts."""
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences)
        minded = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"{said}{self._table.to_html(index=False, border=0)}<ul>{minded}</ul>"


class Experiments:
    """The experiments of one database, open for reading: iterating gives their names."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.experiments())

    def __len__(self) -> int:
        return len(self._store.experiments())

    def __repr__(self) -> str:
        return f"{self._store.database.name}: {', '.join(self) or 'no experiment'}"

    def comparison(self, name: str | None = None) -> Answer:
        """What the experiment of that name says, or the only one. Raises UserError where there is none, or nothing
        is compared in it."""

        return _answer(self._store, self._store.pick_name(name))

    def close(self) -> None:
        """Let the database go."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(url: str = "sqlite:///optuna.db") -> Experiments:
    """The experiments of a database, as `--storage` names it; nothing in it is changed. Raises UserError,
    FailureError."""
    from study.store.store import Store

    return Experiments(Store.open(url, read_only=True))


def run(
    *,
    storage: str = "sqlite:///optuna.db",
    artifacts: str | Path = "artifacts",
    data_dir: str | Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    fixed: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **values: Any,
) -> Answer:
    """Search and compare as `python -m study run` does, in worker processes, to the end; resumes where it stopped.

    `values` are the fields of an experiment file: data="digits", arms=["cosine"], seeds=10, search={"trials": 0}, ...;
    `fixed` is what --set fixes: {"lr": 3e-4}; the rest are the command's options. `on_progress(finished, planned)` is
    called every two seconds with numbers of trials.
    Raises UserError, FailureError as the command would say them, and KeyboardInterrupt where it was stopped."""
    import optuna
    import torch

    from study.analysis.evidence import read
    from study.analysis.export import keep_models
    from study.design.build import RUN_DEFAULTS, Request
    from study.place import Place, default_threads, default_workers
    from study.protocol.plan import describe_plan
    from study.session import Session
    from study.store.records import counts
    from study.workers.launch import Ended

    workers = workers or default_workers(device)
    folder = None if data_dir is None else Path(data_dir)
    place = Place(storage, Path(artifacts), folder, device, workers, threads or default_threads(workers))
    session = Session.prepare(place, Request(values, fixed or {}, RUN_DEFAULTS, "study.run"))
    planned = sum(describe_plan(session.experiment).values())
    told = 0.0

    def tell() -> None:
        nonlocal told
        if on_progress is not None and time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            finished = sum(part.finished for part in counts(session.store, session.experiment.name))
            on_progress(finished, max(planned, finished))

    verbosity, torch_threads = optuna.logging.get_verbosity(), torch.get_num_threads()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with session.store:
            if session.launch(tell) is not Ended.DONE:
                raise KeyboardInterrupt
            session.time_arms(lambda _: None)
            keep_models(read(session.store, session.experiment.name), session.artifacts, warnings.warn)
            return _answer(session.store, session.experiment.name)
    finally:
        optuna.logging.set_verbosity(verbosity)
        torch.set_num_threads(torch_threads)


def _answer(store: Store, name: str) -> Answer:
    import pandas as pd

    from study.analysis.answer import sentences
    from study.analysis.arm import sorted_arms, to_frame
    from study.analysis.evidence import read
    from study.analysis.notes import notes
    from study.analysis.words import ratio_of
    from vae.errors import UserError

    evidence = read(store, name)
    comparison = evidence.comparison
    if comparison is None:
        raise UserError(f"Experiment '{name}' is a search alone: there is nothing to compare in it.")
    arms = sorted_arms(comparison.arms)
    table = pd.DataFrame(
        [
            {
                "arm": arm.arm,
                "hits": f"{arm.hits}/{arm.seeds}",
                "speed-up, examples": ratio_of(arm.examples.estimate if arm.examples else None),
                "in examples": arm.examples.words if arm.examples else "",
                "speed-up, seconds": ratio_of(arm.seconds.estimate if arm.seconds else None),
                "in seconds": arm.seconds.words if arm.seconds else "",
            }
            for arm in arms
        ]
    )
    return Answer(
        name=name,
        target=comparison.target,
        arms=to_frame(arms),
        verdicts={arm.arm: arm.examples.verdict for arm in arms if arm.examples is not None},
        sentences=sentences(comparison),
        notes=notes(comparison, evidence.state),
        _table=table,
    )
