"""`python -m benchmarks overhead | ...`: performance claims, as ratios measured side by side in one run."""

from __future__ import annotations

import typer

from benchmarks import by_hand, conv, load, overhead, replay, study, throughput, verdicts

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
app.command("load")(load.main)
app.command("overhead")(overhead.main)
app.command("study")(study.main)
app.command("by-hand")(by_hand.main)
app.command("conv")(conv.main)
app.command("replay")(replay.main)
app.command("throughput")(throughput.main)
app.command("verdicts")(verdicts.main)


@app.callback()
def commands() -> None:
    """Each command prints its figures and how they were measured."""


if __name__ == "__main__":
    app()
