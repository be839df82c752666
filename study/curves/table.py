"""From rows to runs: which column means what is told, never guessed, and what can't be a learning curve is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from study.curves.recorded import Curves, Ended, Recorded
from study.terms import Outcome
from vae.errors import UserError, did_you_mean

#: What a clock's column is called where none is named, and what it counts.
CLOCKS = {"examples": "examples", "step": "steps", "epoch": "epochs"}
#: Names of arms and runs are shown on terminals, in figures and in tables.
LONGEST_LABEL = 120


@dataclass(frozen=True)
class Rows:
    """One file's, or one tracker's run's, evaluations: columns of equal length, None where there is no value."""

    source: str
    columns: Mapping[str, Sequence[Any]]
    run: str
    """What `Columns.run` matches: a file's path in its folder, a run's name in its tracker."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


@dataclass(frozen=True)
class Columns:
    """Which column is what; None: the one called as the field is, if there is one.

    A clock that isn't named is the one of `examples`, `step` and `epoch` that is there.
    """

    arm: str | None = None
    seed: str | None = None
    trial: str | None = None
    """Used in the place of a seed: runs are then compared unpaired."""
    clock: str | None = None
    value: str | None = None
    seconds: str | None = None
    ended: str | None = None
    """complete, hit, censored, diverged or failed, or an outcome of ours; without it a run that ends with a value that
    isn't finite has diverged, any other is complete."""
    run: str | None = None
    """A pattern of the run's name such as "{arm}/seed{seed}.csv", which gives what it names."""
    where: Sequence[tuple[str, str]] = ()
    """(column, value): only rows that have it."""
    maximise: bool = False
    at_zero: Literal["before", "after"] | None = None
    """Where clocks begin at 0: "before" training, and left out; or "after" the first of what is counted, and one is
    added."""


def to_curves(tables: Sequence[Rows], columns: Columns, sources: Sequence[str]) -> Curves:
    """The runs of these rows. Raises UserError for a column that isn't there, cells that are no number, clocks that
    go back and runs that are there twice."""
    names = list(dict.fromkeys(name for rows in tables for name in rows.columns))
    pattern = _pattern(columns.run)
    from_run = set() if pattern is None else set(pattern.groupindex)
    where = sources[0] if len(sources) == 1 else f"{len(sources)} files"
    found = _Names(names, where)
    arm = None if "arm" in from_run else found.require("arm", columns.arm)
    clock = found.clock(columns.clock)
    value = found.require("value", columns.value)
    # Trials that were named are meant, also where there is a column of seeds.
    by_trial = columns.trial is not None and columns.seed is None
    seed = None if by_trial or from_run & {"seed", "trial"} else found.optional("seed", columns.seed)
    trial = None if from_run & {"seed", "trial"} else found.optional("trial", columns.trial)
    seconds = found.optional("seconds", columns.seconds)
    ended = found.optional("ended", columns.ended)
    for name, _ in columns.where:
        found.require("where", name)
    if seed is None and trial is None and not from_run & {"seed", "trial"}:
        raise UserError(
            f"{where}: no column 'seed' and none 'trial': name the one that tells an arm's runs apart with --seed-from "
            f"or --trial-from, or match it in the run's name with --run. Columns: {_listed(names)}."
        )
    used = {name for name in (arm, clock, value, seed, trial, seconds, ended) if name is not None}
    used |= {name for name, _ in columns.where}
    builders: dict[tuple[str, str, str], _Builder] = {}
    empty = 0
    for rows in tables:
        told = _told(pattern, rows.run, columns.run)
        get = {name: rows.columns.get(name) for name in used}
        for i in range(len(rows)):
            cells = {name: None if column is None else column[i] for name, column in get.items()}
            if any(_text(cells[name]) != wanted for name, wanted in columns.where):
                continue
            if cells[value] is None:
                empty += 1
                continue
            at = f"{rows.source}, row {i + 1}"
            of_arm = told["arm"] if arm is None else _label(cells[arm], arm, at)
            of_seed = told.get("seed") or (None if seed is None else _label(cells[seed], seed, at))
            of_trial = told.get("trial") or (None if trial is None else _label(cells[trial], trial, at))
            key = (of_arm, of_seed or of_trial or "", f"{of_trial or ''} of {rows.source} {rows.run}")
            builder = builders.setdefault(key, _Builder(key[0], key[1], rows.source))
            builder.add(
                _number(cells[clock], clock, at),
                _number(cells[value], value, at),
                None
                if seconds is None or _is_empty(cells[seconds])
                else _number(cells[seconds], seconds, at),
                None if ended is None or _is_empty(cells[ended]) else cells[ended],
                at,
            )
    if not builders:
        raise UserError(_nothing(where, value, columns, empty))
    _refuse_twice(list(builders))
    runs = [builder.run(columns, clock) for builder in builders.values()]
    notes = [f"{empty} rows without a {value} were left out."] if empty else []
    if columns.at_zero == "before" and any(builder.clock[0] == 0.0 for builder in builders.values()):
        notes.append("Evaluations before training, at 0, were left out.")
    return Curves(
        runs=runs,
        clock=CLOCKS.get(clock, clock),
        value=value,
        maximise=columns.maximise,
        sources=list(sources),
        paired=seed is not None or "seed" in from_run,
        notes=notes,
    )


class _Builder:
    """A run in the making."""

    def __init__(self, arm: str, label: str, source: str) -> None:
        self.arm, self.label, self.source = arm, label, source
        self.clock: list[float] = []
        self.value: list[float] = []
        self.seconds: list[float | None] = []
        self.ended: Ended | None = None

    def add(self, clock: float, value: float, seconds: float | None, ended: Any, at: str) -> None:
        if not (math.isfinite(clock) and clock >= 0.0):
            raise UserError(f"{at}: the clock is {clock:g}; it counts from 0 up.")
        if self.clock and clock <= self.clock[-1]:
            raise UserError(
                f"{at}: the clock of {self.arm}, {self.label} goes from {self.clock[-1]:g} to {clock:g}. Rows of a run "
                "stand in the order of its clock: are these two runs under one name (--trial-from, --where), or one "
                "that went on from a checkpoint?"
            )
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0.0):
            raise UserError(f"{at}: {seconds:g} seconds; they count from 0 up.")
        if seconds is not None and self.seconds and self.seconds[-1] is not None:
            before = self.seconds[-1]
            if seconds < before:
                raise UserError(
                    f"{at}: the seconds of {self.arm}, {self.label} go back, {before:g} to {seconds:g}."
                )
        self.clock.append(clock)
        self.value.append(value)
        self.seconds.append(seconds)
        if ended is not None:
            self.ended = _ended(ended, at)

    def run(self, columns: Columns, name: str) -> Recorded:
        """The run. Raises UserError for a clock that begins at 0 without a word what that means."""
        clock, value = np.array(self.clock), np.array(self.value)
        known = [s for s in self.seconds if s is not None]
        seconds = np.array(known) if known and len(known) == len(self.seconds) else None
        if columns.at_zero == "after":
            clock = clock + 1.0
        elif clock[0] == 0.0:
            if columns.at_zero is None:
                raise UserError(
                    f"{self.source}: {self.arm}, {self.label} has an evaluation at {name} 0. Was it before training "
                    "(--at-zero before: it is left out), or after the first of them (--at-zero after: counted from 1)?"
                )
            clock, value, seconds = clock[1:], value[1:], None if seconds is None else seconds[1:]
        # Nothing is recorded beyond a breakdown that means anything: it is where the run ended.
        broken = np.flatnonzero(np.isnan(value))
        ended = self.ended or Ended.COMPLETE
        if broken.size:
            n = int(broken[0]) + 1
            clock, value, seconds = clock[:n], value[:n], None if seconds is None else seconds[:n]
            ended = Ended.DIVERGED
        elif value.size and not np.isfinite(value[-1]):
            ended = Ended.DIVERGED
        if columns.maximise:
            value = -value
        return Recorded(self.arm, self.label, clock, value, seconds, ended, source=self.source)


class _Names:
    """The columns that are there, looked up by what they are for."""

    def __init__(self, names: Sequence[str], where: str) -> None:
        self._names, self._where = names, where

    def optional(self, role: str, name: str | None) -> str | None:
        """The column of that role; None where none was named and none is called so."""
        if name is None:
            return role if role in self._names else None
        if name not in self._names:
            raise UserError(
                f"{self._where}: no column {name!r} (--{role}{'' if role == 'where' else '-from'}). "
                f"{did_you_mean(name, self._names)}"
            )
        return name

    def require(self, role: str, name: str | None) -> str:
        """The same, which must be there."""
        found = self.optional(role, name)
        if found is None:
            raise UserError(
                f"{self._where}: no column '{role}'. Name it with --{role}-from. Columns: {_listed(self._names)}."
            )
        return found

    def clock(self, name: str | None) -> str:
        """The clock's column: named, or the only one of the three names."""
        if name is not None:
            return self.require("clock", name)
        there = [clock for clock in CLOCKS if clock in self._names]
        if len(there) == 1:
            return there[0]
        why = f"several clocks ({', '.join(there)})" if there else f"no column {', '.join(CLOCKS)}"
        raise UserError(f"{self._where}: {why}. Name one with --clock-from. Columns: {_listed(self._names)}.")


def _pattern(text: str | None) -> re.Pattern[str] | None:
    """The pattern of a run's name as a regular expression, in which * is anything. Raises UserError."""
    if text is None:
        return None
    parts = re.split(r"(\{\w*\}|\*)", text)
    fields = [part[1:-1] for part in parts if part.startswith("{")]
    wrong = [field for field in fields if field not in ("arm", "seed", "trial")]
    if wrong or len(set(fields)) < len(fields) or not fields:
        raise UserError(
            f"--run {text}: write the run's name with {{arm}}, {{seed}} or {{trial}} in it, each once, such as "
            "'{arm}/seed{seed}.csv'; * is anything."
        )
    form = "".join(
        f"(?P<{part[1:-1]}>.+?)" if part.startswith("{") else ".*" if part == "*" else re.escape(part)
        for part in parts
    )
    return re.compile(form)


def _told(pattern: re.Pattern[str] | None, run: str, text: str | None) -> dict[str, str]:
    """What a run's name tells."""
    if pattern is None:
        return {}
    found = pattern.fullmatch(run)
    if found is None:
        raise UserError(f"--run {text}: the run {run!r} has no such name.")
    return {field: _label(told, f"--run's {field}", run) for field, told in found.groupdict().items()}


def _refuse_twice(keys: Sequence[tuple[str, str, str]]) -> None:
    first: dict[tuple[str, str], str] = {}
    for arm, label, which in keys:
        if (arm, label) in first:
            raise UserError(
                f"{arm}, {label} is there twice: {first[arm, label].strip()} and {which.strip()}. A seed counts once "
                "in an arm: leave one out (--where), or compare trials unpaired (--trial-from)."
            )
        first[arm, label] = which


def _is_empty(cell: Any) -> bool:
    """Whether nothing stands there; in a frame a NaN says the same, but for values, where it is a breakdown."""
    return cell is None or cell != cell


def _number(cell: Any, column: str, at: str) -> float:
    if cell is None:
        raise UserError(f"{at}: no {column}.")
    if not isinstance(cell, bool):
        try:
            return float(cell)
        except (TypeError, ValueError, OverflowError):
            pass
    raise UserError(f"{at}: {column} is {_text(cell)[:40]!r}, which is no number.")


def _text(cell: Any) -> str:
    """A cell as text; whole numbers without a point, however they were stored."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return "" if cell is None else str(cell)


def _label(cell: Any, column: str, at: str) -> str:
    text = _text(cell).strip()
    if not text or text == "nan" or len(text) > LONGEST_LABEL or not text.isprintable():
        raise UserError(
            f"{at}: {column} is {text[:40]!r}; names of arms and runs have 1 to {LONGEST_LABEL} printable characters."
        )
    return text


def _ended(cell: Any, at: str) -> Ended:
    text = _text(cell).strip().lower()
    if text in [str(word) for word in Ended]:
        return Ended(text)
    if text in [str(word) for word in Outcome]:
        return Ended.of(Outcome(text))
    raise UserError(f"{at}: a run ended {text[:40]!r}. {did_you_mean(text, [*Ended, *Outcome])}")


def _nothing(where: str, value: str, columns: Columns, empty: int) -> str:
    asked = " and ".join(f"{name}={wanted}" for name, wanted in columns.where)
    if empty:
        return f"{where}: no row has a {value}."
    return f"{where}: no row" + (f" with --where {asked}." if asked else " in it.")


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more if names else "none"
