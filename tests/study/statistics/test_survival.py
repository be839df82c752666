"""Misses: censored, in the survival curve and in the scores that count them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from study.statistics.survival import censored, ert, kaplan_meier, par2

NAN = float("nan")
INF = float("inf")


def test_misses_are_set_to_tau_and_kept():
    """A miss counts tau whatever its E held, and no run is dropped."""
    assert censored([3.0, NAN, 8.0], [True, False, False], 10).tolist() == [3.0, 10.0, 10.0]


# survival


def test_kaplan_meier_by_hand():
    """Four runs, hits at 10 and 20, misses at 20 and 40: 3/4, then 3/4 * 2/3, then flat."""
    km = kaplan_meier([10, 20, 20, 40], [True, True, False, False])
    assert km.examples.tolist() == [0, 10, 20, 40]
    assert km.survival == pytest.approx([1, 0.75, 0.5, 0.5])


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_kaplan_meier_is_the_product_limit(level):
    """Curve and log-log limits by the written-out formula (Kaplan & Meier 1958; Greenwood's variance; Kalbfleisch &
    Prentice 2002, eq. 1.14) on censored data with ties: prod(1 - d / n), S ** exp(+- z sqrt(V) / log S)."""
    rng = np.random.default_rng(3)
    E = np.minimum(np.round(rng.lognormal(4.0, 0.5, 40)), 80.0)
    hit = E < 80.0
    km = kaplan_meier(E, hit, level)
    x = np.unique(E)
    at_risk = (E[:, None] >= x).sum(axis=0)
    events = ((E[:, None] == x) & hit[:, None]).sum(axis=0)
    survival = np.cumprod(1.0 - events / at_risk)
    width = stats.norm.ppf(0.5 + level / 2.0) * np.sqrt(np.cumsum(events / (at_risk * (at_risk - events))))
    assert km.examples[1:].tolist() == x.tolist()
    np.testing.assert_allclose(km.survival[1:], survival, atol=1e-12)
    np.testing.assert_allclose(km.low[1:], survival ** np.exp(-width / np.log(survival)), atol=1e-12)
    np.testing.assert_allclose(km.high[1:], survival ** np.exp(width / np.log(survival)), atol=1e-12)


def test_before_the_first_hit_the_limits_are_one():
    """A run that ended early without the target says nothing yet: survival 1 with both limits 1, then the step."""
    km = kaplan_meier([5, 10, 20], [False, True, False])
    assert km.survival.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert km.low[:2].tolist() == km.high[:2].tolist() == [1.0, 1.0]
    assert 0.0 < km.low[2] < 0.5 < km.high[2] < 1.0


def test_survival_at_its_ends():
    """All hits: survival ends at 0, whose limits are undefined. No hits: it stays 1, limits too."""
    all_hit = kaplan_meier([5, 6, 7], [True] * 3)
    assert all_hit.survival == pytest.approx([1, 2 / 3, 1 / 3, 0], abs=1e-12)
    assert np.isnan([all_hit.low[-1], all_hit.high[-1]]).all()
    assert (all_hit.low[1:-1] < all_hit.survival[1:-1]).all()
    assert (all_hit.high[1:-1] > all_hit.survival[1:-1]).all()
    none = kaplan_meier([9, 9, 9], [False] * 3)
    assert none.survival.tolist() == none.low.tolist() == none.high.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="censored"):
        kaplan_meier([9, NAN], [True, False])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=30))
def test_survival_never_rises(runs):
    """The curve falls from 1 within [0, 1], the band holds it, and without censoring before the end it is
    the plain share of runs that aren't there yet."""
    E = [20.0 if not hit else float(x) for x, hit in runs]
    hit = [hit for _, hit in runs]
    km = kaplan_meier(E, hit)
    assert km.survival[0] == 1.0
    assert (np.diff(km.survival) <= 0).all()
    inside = ~np.isnan(km.low)
    assert (km.low[inside] <= km.survival[inside] + 1e-12).all()
    assert (km.high[inside] >= km.survival[inside] - 1e-12).all()
    plain = [np.mean([not (h and e <= t) for e, h in zip(E, hit, strict=True)]) for t in km.examples]
    np.testing.assert_allclose(km.survival, plain, atol=1e-12)


def test_par2_and_ert_by_hand():
    """Hits at 10 and 30, a miss, tau 100: PAR2 = (10 + 30 + 200) / 3; ERT = (10 + 30 + 100) / 2."""
    E, hit = [10, 30, NAN], [True, True, False]
    assert par2(E, hit, 100) == pytest.approx(80.0)
    assert ert(E, hit, 100) == pytest.approx(70.0)
    assert ert([NAN], [False], 100) == INF
    assert par2(E[:2], hit[:2], 100) == ert(E[:2], hit[:2], 100) == 20.0
