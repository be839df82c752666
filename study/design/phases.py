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
    Phase.GUIDED: 50_000,  # by method 2, which has no finalists
}
#: What is tuned independently of the other arms, in an A/A test, has its seeds this far apart from theirs.
INDEPENDENT_SEEDS = 5_000
#: And from each other's so far, times their place among them.
NULL_ARMS_APART = 50
#: The seeds of two blocks' splits of the data are this far apart; an experiment's seed is below.
SPLITS_APART = 10_000
CALIBRATION_SEEDS = 5
#: Confirmation runs of an arm outside the family, most of which never reach the target and so run to tau.
REFERENCE_SEEDS = 10
#: Rounds of guided tuning, each on a seed of its own.
GUIDED_ROUNDS = 2
#: Confirmation runs of each arm that go on to tau: what is said of the loss there, and of other targets, rests on them.
RUN_TO_TAU = 5
#: Tuning points of an arm that are judged by more seeds than one.
FINALISTS = 2
MAX_TUNE_SEEDS = 5
