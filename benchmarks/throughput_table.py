"""The figures of `python -m benchmarks throughput`: rates and ratios by round, as text or Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Result:
    """What one contestant did."""

    name: str
    startup_seconds: float = 0.0
    first_seconds: float = 0.0
    """Of the first slice, which isn't counted in the rates: it compiles and warms up."""
    slices: list[dict[str, Any]] = field(default_factory=list)
    """One answer a round."""
    loss: float | None = None
    examples: int = 0
    parameters: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def rates(self) -> np.ndarray:
        """Examples per second, one a round."""
        return np.array([answer["examples"] / answer["seconds"] for answer in self.slices])

    @property
    def compile_seconds(self) -> float:
        """What the first slice took beyond a usual one."""
        return max(0.0, self.first_seconds - float(np.median([a["seconds"] for a in self.slices])))

    @property
    def cores(self) -> float:
        """Processors that it kept busy in a slice, the median."""
        return float(np.median([a["cpu_seconds"] / a["seconds"] for a in self.slices]))


def ratios(result: Result, reference: Result | None) -> np.ndarray | None:
    """The rate over the reference's in the same round, for each round that both ran."""
    if reference is None or not reference.slices:
        return None
    n = min(len(result.slices), len(reference.slices))
    return np.asarray(result.rates[:n] / reference.rates[:n])


def spread(values: np.ndarray | None, form: str = "{:.2f}") -> str:
    """Median and range: `1.42 [1.28, 1.59]`."""
    if values is None or not len(values):
        return "-"
    middle, low, high = (form.format(value) for value in (np.median(values), values.min(), values.max()))
    return f"{middle} [{low}, {high}]"


#: Column titles of the main table.
TITLES = (
    "contestant",
    "examples/s",
    "x plain",
    "x ours",
    "of the limit",
    "start-up, s",
    "compile and warm-up, s",
    "validation loss, nats",
)


#: Share of the limit from which it is none; below, a neighbour may have slowed it down.
BEYOND = 1.05


def limit_of(name: str, results: Mapping[str, Result]) -> Result | None:
    """The limit in a contestant's arithmetic."""
    return results.get("limit-bf16" if "bf16" in name else "limit")


def beyond_the_limit(results: Mapping[str, Result]) -> list[str]:
    """A line for each contestant that is faster than its limit: then the limit is wrong."""
    lines = []
    for result in results.values():
        share = ratios(result, limit_of(result.name, results))
        if share is not None and len(share) and float(np.median(share)) > BEYOND:
            lines.append(beyond(result.name, float(np.median(share))))
    return lines


def beyond(who: str, share: float) -> str:
    """What is told of one of them."""
    return f"{who}: {share:.0%} of the limit. The limit is wrong on this machine, so no share of it means anything."


def rows(results: Mapping[str, Result]) -> list[tuple[str, ...]]:
    """One row a contestant that ran at least a round. The share is of the limit in the same arithmetic."""
    told: list[tuple[str, ...]] = []
    for result in results.values():
        if not result.slices:
            continue
        told.append(
            (
                result.name,
                spread(result.rates, "{:,.0f}"),
                spread(ratios(result, results.get("plain"))),
                spread(ratios(result, results.get("ours"))),
                spread(ratios(result, limit_of(result.name, results)), "{:.0%}"),
                f"{result.startup_seconds:.1f}",
                f"{result.compile_seconds:.1f}",
                "-" if result.loss is None else f"{result.loss:.2f}",
            )
        )
    return told


def versions_told(results: Iterable[Result]) -> str:
    """Every library with its version; with each of them where contestants don't have the same."""
    versions: dict[str, set[str]] = {}
    for result in results:
        for library, version in result.versions.items():
            versions.setdefault(library, set()).add(version)
    return ", ".join(f"{library} {' and '.join(sorted(told))}" for library, told in sorted(versions.items()))


def render(table: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """A table whose first row is its titles."""
    if markdown:
        rule = ["---", *("---:" for _ in table[0][1:])]
        return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )
