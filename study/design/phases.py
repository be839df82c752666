"""The phases of an experiment: on how many seeds each is run, and on which."""

from __future__ import annotations

from study.terms import Phase

#: A seed set starts at its offset plus its index, so that the sets never share a seed.
SEED_SETS = {
    Phase.SEARCH: 0,
    Phase.TUNE: 10_000,
    Phase.CALIBRATION: 20_000,
    Phase.CONFIRM: 30_000,
    Phase.COMBINE: 40_000,
    Phase.FINAL: 50_000,
}
#: What is tuned independently of the other arms, in an A/A test, has its seeds this far apart from theirs.
INDEPENDENT_SEEDS = 5_000
CALIBRATION_SEEDS = 5
#: Tuning points of an arm that are judged by more seeds than one.
FINALISTS = 2
MAX_TUNE_SEEDS = 5
