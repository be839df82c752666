"""Versions of what is installed."""

from __future__ import annotations

from importlib import metadata


def version_of(distribution: str) -> str:
    """An installed distribution's version; a word where it is run from a folder, not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"
