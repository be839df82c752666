"""The machines that trials ran on: their versions and their clocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from statistics import median

from study.doctor.findings import Check, Finding
from study.store import checks, records
from study.store.store import Store

#: Seconds that clocks may differ before it is said: Optuna's times of trials are their hosts'.
CLOCKS_AGREE = 5.0


def versions(store: Store, name: str) -> Iterator[Finding]:
    """Several in one experiment, and others than those that are installed here."""
    told = records.versions(store, name)
    used: dict[str, set[str]] = defaultdict(set)
    for versions in told:
        for package in ("python", "torch", "optuna", "numpy", "vae-study"):
            if package in versions:
                used[package].add(str(versions[package]))
    mixed = [f"{package} {', '.join(sorted(found))}" for package, found in used.items() if len(found) > 1]
    if mixed:
        yield Finding(
            Check.VERSIONS,
            f"{name}: its trials ran under several versions: {'; '.join(mixed)}.",
            "Curves may differ by rounding; compare arms by examples, and seconds with care.",
            is_note=True,
        )
    other = [
        f"{package} {', '.join(sorted(found))} there, {installed} here"
        for package, found in used.items()
        if (installed := _installed(package)) is not None and installed not in found
    ]
    if other:
        yield Finding(
            Check.VERSIONS,
            f"{name}: {'; '.join(other)}.",
            "Going on with it mixes versions: pip install the ones that it was begun with.",
            is_note=True,
        )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def clocks(store: Store, hosts: dict[str, list[float]]) -> Iterator[Finding]:
    """Those that differ. hosts: of each the seconds by which its clock was ahead of the database's, a trial each."""
    ahead = checks.clock_ahead(store)
    if store.database.path is None and abs(ahead) > CLOCKS_AGREE:
        yield Finding(
            Check.CLOCKS,
            f"The database's clock is {_signed(ahead)} this machine's.",
            "Leases go by the database's clock alone; set the clocks right (NTP) for what is shown.",
            is_note=True,
        )
    for host, offsets in sorted(hosts.items()):
        offset = median(offsets)
        if abs(offset) > CLOCKS_AGREE:
            yield Finding(
                Check.CLOCKS,
                f"The clock or time zone of {host} was {_signed(offset)} the database's when its trials "
                "began.",
                "Optuna's times of these trials are off by that; ours, and all figures, are not.",
                is_note=True,
            )


def _signed(seconds: float) -> str:
    return f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'}"
