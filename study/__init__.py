"""Decides what to train, compare and tell: `python -m study`, and from Python:

    import study

    comparison = study.run(data="digits", arms=["cosine", "output-bias"])   # trains, or goes on where it was
    comparison                                                              # a notebook shows the table
    with study.open("sqlite:///optuna.db") as experiments:                  # reads: nothing is trained
        comparison = experiments.comparison("digits")

    answer = study.analyse(frame, baseline="adam", target=0.3)              # learning curves from anywhere
    answer.figures["forest"]                                                # a notebook shows it

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
from typing import TYPE_CHECKING, Any, Literal, Self

# Imported where they are used: `import study` alone is quick, torch and pandas take seconds.
if TYPE_CHECKING:
    from types import TracebackType

    import pandas as pd
    import plotly.graph_objects as go

    from study.analysis.findings import Findings
    from study.figures.panel import Figure
    from study.statistics.verdicts import Verdict
    from study.store.store import Store

__all__ = ["Answer", "Experiments", "analyse", "open", "run"]


#: Seconds between two calls of `on_progress`.
_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, repr=False)
class Answer:
    """What one experiment's comparison says now."""

    name: str
    target: float | None
    """The validation loss to reach, nats per example, or the value of curves from elsewhere; None: not calibrated."""
    arms: pd.DataFrame
    """One row an arm, the baseline first, then by speed-up; the columns of `export`'s arms table."""
    verdicts: Mapping[str, Verdict]
    """arm -> what may be said of it in examples; each verdict is a string and has its `.sentence`."""
    sentences: Sequence[str]
    """Two or three sentences that can be quoted."""
    notes: Sequence[str]
    """What to mind about it."""
    _table: pd.DataFrame = field(repr=False)
    _drawn: Callable[[], Mapping[str, Figure]] = field(repr=False)

    @property
    def figures(self) -> Mapping[str, go.Figure]:
        """Name -> figure, drawn when asked for: "forest", and of curves from elsewhere all that the page has. A
        notebook shows them."""
        from study.figures.compose import composite

        return {name: composite(figure) for name, figure in self._drawn().items()}

    def __repr__(self) -> str:
        return "\n".join([f"{self.name}: {' '.join(self.sentences)}", self._table.to_string(index=False)])

    def _repr_html_(self) -> str:
        """For a notebook: the sentences and the table of speed-ups, intervals and verdicts, as on a terminal."""
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
    from study.store.locations import locate
    from study.store.records import counts
    from study.workers.launch import Ended

    workers = workers or default_workers(device)
    folder = None if data_dir is None else Path(data_dir)
    place = Place(
        storage, locate(str(artifacts)), folder, device, workers, threads or default_threads(workers)
    )
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


def analyse(
    frame: pd.DataFrame,
    *,
    baseline: str,
    target: float | None = None,
    target_at: float | None = None,
    margin: float = 0.02,
    censored_at: float | None = None,
    unpaired: bool = False,
    maximise: bool = False,
    at_zero: Literal["before", "after"] | None = None,
    **columns: str,
) -> Answer:
    """Judge learning curves from anywhere as `python -m study analyse` does; nothing is trained or written.

    `frame` is a long table, a row an evaluation: arm, seed (or trial: then unpaired), a clock (examples, step or
    epoch), value (lower is better, or `maximise`) and, where known, seconds and how a run ended. `columns` says which
    column is what where it is called otherwise: arm="optimizer", value="val_loss". A value of NaN is a run that broke
    down; where nothing was measured it is None or pandas' NA. The rest are the command's options.
    Raises UserError for curves that can't say it, as the command would."""
    from study.analysis.curve_notes import curve_notes
    from study.analysis.judge_curves import analyse as judge
    from study.analysis.question import Question
    from study.analysis.sentences import verdict_sentences
    from study.curves.table import Columns, Rows, to_curves
    from study.report.curves_page import figures
    from vae.errors import UserError, did_you_mean

    roles = ("arm", "seed", "trial", "clock", "value", "seconds", "ended")
    for role in columns.keys() - set(roles):
        raise UserError(f"analyse({role}=...): no such column's role. {did_you_mean(role, roles)}")
    rows = {str(name): [_cell(cell) for cell in column.tolist()] for name, column in frame.items()}
    mapping = Columns(
        arm=columns.get("arm"),
        seed=columns.get("seed"),
        trial=columns.get("trial"),
        clock=columns.get("clock"),
        value=columns.get("value"),
        seconds=columns.get("seconds"),
        ended=columns.get("ended"),
        maximise=maximise,
        at_zero=at_zero,
    )
    curves = to_curves([Rows("the frame", rows, "the frame")], mapping, ["the frame"])
    question = Question(baseline, target, target_at, margin, censored_at, unpaired)
    found = judge(curves, question, "the frame")
    return _said(
        "the frame",
        found.comparison,
        verdict_sentences(found.comparison),
        curve_notes(found),
        lambda: figures(found),
    )


def _cell(cell: Any) -> Any:
    """A frame's cell; None where pandas says that there is none, which a NaN of floats doesn't."""
    import pandas as pd

    return None if cell is pd.NA else cell


def _answer(store: Store, name: str) -> Answer:
    from study.analysis.evidence import read
    from study.analysis.notes import notes
    from study.analysis.sentences import sentences
    from study.report.sections import forest_figure
    from vae.errors import UserError

    evidence = read(store, name)
    comparison = evidence.comparison
    if comparison is None:
        raise UserError(f"Experiment '{name}' is a search alone: there is nothing to compare in it.")

    def drawn() -> Mapping[str, Figure]:
        return {"forest": forest_figure(comparison)} if comparison.measured else {}

    return _said(name, comparison, sentences(comparison), notes(comparison, evidence.state), drawn)


def _said(
    name: str,
    comparison: Findings,
    sentences: Sequence[str],
    notes: Sequence[str],
    drawn: Callable[[], Mapping[str, Figure]],
) -> Answer:
    import pandas as pd

    from study.analysis.arm import sorted_arms
    from study.analysis.columns import to_frame
    from study.analysis.words import examples_of, speed_up_of

    clock = comparison.terms.clock
    arms = sorted_arms(comparison.arms)
    table = pd.DataFrame(
        [
            {
                "arm": arm.arm,
                "hits": f"{arm.hits}/{arm.seeds}",
                f"speed-up, {clock}": examples_of(arm),
                f"in {clock}": arm.examples.words if arm.examples else "",
            }
            | (
                {
                    "speed-up, seconds": speed_up_of(arm.seconds),
                    "in seconds": arm.seconds.words if arm.seconds else "",
                }
                if comparison.has_seconds
                else {}
            )
            for arm in arms
        ]
    )
    return Answer(
        name=name,
        target=comparison.target,
        arms=to_frame(arms),
        verdicts={arm.arm: arm.examples.verdict for arm in arms if arm.examples is not None},
        sentences=sentences,
        notes=notes,
        _table=table,
        _drawn=drawn,
    )
