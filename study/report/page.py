"""The page."""
from pathlib import Path
from typing import Any


def write_report(store: Any, name: str, path: Path, artifacts: Path, data_dir: Path | None) -> Path:
    return path
