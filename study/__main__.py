"""`python -m study` and the console script `vae-study`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Run the command line, after a look whether something of the user's stands in our package's place."""
    spec = importlib.util.find_spec("vae")
    found = Path(spec.origin) if spec is not None and spec.origin is not None else Path("vae")
    if found.resolve().parent.parent != Path(__file__).resolve().parent.parent:
        print(
            f"Error: {found} stands in the place of this program's package 'vae': rename it, or run "
            "`vae-study` from another folder.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from study.cli.app import run

    run()


if __name__ == "__main__":
    main()
