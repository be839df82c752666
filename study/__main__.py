"""`python -m study` and the console script `vae-study`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Run the command line, after a look whether a file of the user's stands in our packages' place."""
    for name in ("vae", "study"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            found = Path(spec.origin).name if spec is not None and spec.origin else name
            print(
                f"{found} in this folder stands in the place of the package '{name}': rename it, or run "
                "`vae-study` from another folder.",
                file=sys.stderr,
            )
            raise SystemExit(2)
    from study.cli import run

    run()


if __name__ == "__main__":
    main()
