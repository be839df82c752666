"""Shares of false verdicts among arms that are the baseline again."""

import math

from hypothesis import given
from hypothesis import strategies as st

from study.statistics.nulls import null_shares
from study.statistics.verdicts import Verdict, clopper_pearson


def test_null_shares_by_hand():
    """Three families: one with two false verdicts, one without any, one in which nothing could be judged."""
    same, faster, lost = Verdict.UNDECIDED, Verdict.FASTER, Verdict.UNRELIABLE
    shares = null_shares(
        [[faster, Verdict.SLOWER, same], [same, same, lost], [lost, Verdict.NEVER, Verdict.NOT_TUNED]]
    )
    assert (shares.families.k, shares.families.n) == (1, 3)
    assert (shares.families_judged.k, shares.families_judged.n) == (1, 2)
    assert (shares.arms.k, shares.arms.n) == (2, 9)
    assert (shares.arms_judged.k, shares.arms_judged.n) == (2, 5)
    assert (shares.unjudged.k, shares.unjudged.n) == (4, 9)
    assert (shares.families.low, shares.families.high) == clopper_pearson(1, 3)
    assert math.isnan(null_shares([]).families.share)


@given(st.lists(st.lists(st.sampled_from(list(Verdict)), max_size=5), max_size=6))
def test_shares_hang_together(families):
    """A family errs at least where an arm does and never more often than arms do; those judged are no more than all;
    judged and unjudged are all."""
    shares = null_shares(families)
    assert shares.families.k == shares.families_judged.k <= shares.arms.k == shares.arms_judged.k
    assert bool(shares.families.k) == bool(shares.arms.k)
    assert shares.arms_judged.n + shares.unjudged.k == shares.arms.n == sum(map(len, families))


@given(st.lists(st.sampled_from(list(Verdict)), min_size=1, max_size=8))
def test_families_of_one_are_arms(words):
    """With one arm a family the family-wise share is the share of arms."""
    shares = null_shares([[word] for word in words])
    assert shares.families == shares.arms
    assert (shares.families_judged.k, shares.families_judged.n) == (
        shares.arms_judged.k,
        shares.arms_judged.n,
    )
