"""Search spaces: what is drawn lies in its range, arms share their shared dimensions, trials keep what they used."""

from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from study.design.space import (
    SOBOL_DIMENSIONS,
    Dimension,
    Space,
    check_corner,
    check_space,
    lr_dimension,
    plain,
    resolve,
    search_space,
    sobol_points,
)
from study.design.suggest import distribution, suggest
from vae.errors import UserError
from vae.recipe import Recipe

LR = Dimension(low=1e-4, high=1e-2, log=True)
SHARED: Space = {"lr": LR, "beta": Dimension(low=0.5, high=2.0)}
FINITE = st.floats(-1e12, 1e12)


@st.composite
def ranges(draw: st.DrawFn) -> Dimension:
    log = draw(st.booleans())
    numbers = st.floats(1e-12, 1e12) if log else FINITE
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    return Dimension(low=low, high=high, log=log)


@given(ranges(), st.floats(0, 1, exclude_max=True))
def test_points_lie_in_their_range(dimension: Dimension, unit: float) -> None:
    """Every point of the unit interval is a value inside the range, which Optuna's distribution accepts."""
    value = dimension.at("lr", unit)
    assert dimension.low is not None
    assert dimension.high is not None
    assert dimension.low <= value <= dimension.high
    assert distribution("lr", dimension)._contains(value)


@given(st.integers(1, 500), st.integers(1, 500), st.booleans(), st.floats(0, 1, exclude_max=True))
def test_whole_numbers_stay_whole(low: int, more: int, log: bool, unit: float) -> None:
    """Fields that count are drawn as whole numbers, both ends of the range among them."""
    dimension = Dimension(low=low, high=low + more, log=log)
    for at in (unit, 0.0, math.nextafter(1.0, 0)):
        value = dimension.at("latent_size", at)
        assert type(value) is int
        assert distribution("latent_size", dimension)._contains(value)
    assert dimension.at("latent_size", 0.0) == low
    assert dimension.at("latent_size", math.nextafter(1.0, 0)) == low + more


def test_a_log_range_is_even_in_log() -> None:
    """Half-way along a log range is its geometric mean; along a plain one the arithmetic mean."""
    assert LR.at("lr", 0.5) == pytest.approx(1e-3)
    assert Dimension(low=0.0, high=1.0).at("dropout", 0.25) == 0.25


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7, unique=True))
def test_choices_get_equal_shares(choices: list[int]) -> None:
    """Each of n choices gets 1/n of the unit interval."""
    dimension = Dimension(choices=tuple(choices))
    n = len(choices)
    assert [dimension.at("batch_size", (i + 0.5) / n) for i in range(n)] == choices


def test_distributions_follow_the_field() -> None:
    """A range is a float distribution, of a counting field an integer one, choices a categorical one."""
    assert distribution("lr", LR) == FloatDistribution(1e-4, 1e-2, log=True)
    assert distribution("latent_size", Dimension(low=4, high=32, log=True)) == IntDistribution(
        4, 32, log=True
    )
    choices = distribution("hidden", Dimension(choices=[[64], [64, 32]]))
    assert choices == CategoricalDistribution(["[64]", "[64, 32]"])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"low": 1.0},
        {"low": 2.0, "high": 1.0},
        {"low": 1.0, "high": 1.0},
        {"low": 0.0, "high": 1.0, "log": True},
        {"low": 0.0, "high": math.inf},
        {"low": "1", "high": 2.0},
        {"low": True, "high": 2.0},
        {"choices": []},
        {"choices": [1], "low": 0.0, "high": 1.0},
        {"lo": 1.0, "high": 2.0},
    ],
)
def test_senseless_ranges_are_refused(fields: dict[str, Any]) -> None:
    """A range needs two ends in order, a log range a positive one, and choices stand alone."""
    with pytest.raises(ValidationError):
        Dimension.model_validate(fields)


def test_a_list_is_its_choices() -> None:
    """`optimizer = ["adam", "muon"]` in a file means these choices."""
    assert Dimension.model_validate(["adam", "muon"]) == Dimension(choices=("adam", "muon"))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"lrr": LR}, "Did you mean 'lr'"),
        ({"seed": Dimension(low=0, high=9)}, "--seeds"),
        ({"lr": Dimension(low=0.0, high=1.0)}, "lr = 0.0"),
        ({"dropout": Dimension(low=0.0, high=1.0)}, "dropout = 1.0"),
        ({"warmup": Dimension(low=0.0, high=1.5)}, "warmup = 1.5"),
        ({"optimizer": Dimension(choices=("adam", "sdg"))}, "optimizer = 'sdg'"),
        ({"latent_size": Dimension(low=4.5, high=9)}, "4.5: must be a whole number"),
        ({"hidden": Dimension(low=1, high=9)}, "hidden"),
    ],
)
def test_ends_that_no_recipe_may_have_are_refused(space: Space, words: str) -> None:
    """A space names recipe fields, and its ends are values that a recipe may have."""
    with pytest.raises(UserError, match=words):
        check_space(space)


def test_the_default_spaces_are_valid() -> None:
    """What is tuned and searched unless told otherwise passes the same checks as a user's."""
    for small_data in (True, False):
        check_space(search_space(1_000 if small_data else 50_000, Recipe()))
        check_corner(search_space(1_000 if small_data else 50_000, Recipe()), Recipe(), "search")
        for optimizer in ("adam", "momentum"):
            check_space({"lr": lr_dimension(Recipe(optimizer=optimizer), small_data)})


def test_the_longest_warm_up_fits_the_shortest_horizon() -> None:
    """A space in which some point would be refused when it is trained is refused beforehand."""
    horizon, warmup = Dimension(low=0.1, high=1.0), Dimension(low=0.01, high=0.2)
    cosine = Recipe(lr_schedule="cosine")
    with pytest.raises(UserError, match=r"warmup \(0.2\) must be below horizon \(0.1\)"):
        check_corner({"horizon": horizon, "warmup": warmup}, cosine, "space")
    schedules = Dimension(choices=("constant", "linear"))
    with pytest.raises(UserError, match="warmup"):
        check_corner({"horizon": horizon, "lr_schedule": schedules}, Recipe(warmup=0.3), "space")
    check_corner({"warmup": warmup}, Recipe(), "space")
    check_corner({"horizon": Dimension(low=0.3, high=1.0), "warmup": warmup}, cosine, "space")


KNOBS = [
    {},
    {"horizon": Dimension(low=0.1, high=1.0)},
    {"clip_norm": Dimension(low=1.0, high=300.0, log=True), "dropout": Dimension(low=0.0, high=0.5)},
    {"batch_size": Dimension(choices=(32, 64))},
]


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_arms_share_their_shared_points(seed: int, n: int) -> None:
    """With one seed the shared dimensions of every arm are identical, whatever knobs it has of its own."""
    drawn = [sobol_points(SHARED, own, n, seed) for own in KNOBS]
    for points in drawn:
        assert [{field: point[field] for field in SHARED} for point in points] == drawn[0]
        assert len(points) == n


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40))
def test_the_first_points_do_not_depend_on_how_many(seed: int, n: int, more: int) -> None:
    """The first n points are the same however many are drawn."""
    assert sobol_points(SHARED, KNOBS[2], n + more, seed)[:n] == sobol_points(SHARED, KNOBS[2], n, seed)


def test_another_range_has_the_same_units() -> None:
    """An arm with another lr range, as the SGD family has, gets the same relative points in it."""
    wide = Dimension(low=1e-5, high=1.0, log=True)
    for a, b in zip(sobol_points({"lr": LR}, {}, 8, 3), sobol_points({"lr": wide}, {}, 8, 3), strict=True):
        assert math.log(a["lr"] / 1e-4) / math.log(100) == pytest.approx(
            math.log(b["lr"] / 1e-5) / math.log(1e5)
        )


def test_blocks_get_other_points() -> None:
    """Another seed is another scramble, and every scramble spreads K points over the range."""
    drawn = [tuple(point["lr"] for point in sobol_points({"lr": LR}, {}, 8, seed)) for seed in range(20)]
    assert len(set(drawn)) == 20
    for values in drawn:
        cells = {int(8 * math.log(value / 1e-4) / math.log(100)) for value in values}
        assert cells == set(range(8))  # a Sobol sequence: one point in each eighth


def test_too_many_dimensions_are_refused() -> None:
    """The sequence has a fixed number of dimensions, so that arms share them; more are refused."""
    fields = [field for field in Recipe.model_fields if field != "lr"][: SOBOL_DIMENSIONS + 1]
    space = {field: Dimension(low=0.0, high=1.0) for field in fields}
    with pytest.raises(UserError, match=str(SOBOL_DIMENSIONS)):
        sobol_points({}, space, 2, 0)


def ask(space: Space, base: Recipe, fixed: dict[str, Any] | None = None) -> tuple[Recipe, optuna.Trial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    if fixed is not None:
        study.enqueue_trial(fixed)
    trial = study.ask()
    return suggest(trial, space, base), trial


def test_suggest_keeps_its_values_in_the_trial() -> None:
    """The recipe holds what the trial's params hold, so `resolve` makes the same recipe of them."""
    space = search_space(1_000, Recipe()) | {
        "hidden": Dimension(choices=[[64], [64, 32]]),
        "lr_schedule": ["cosine"],
    }
    space = {field: Dimension.model_validate(d) if isinstance(d, list) else d for field, d in space.items()}
    base = Recipe(seed=7)
    recipe, trial = ask(space, base)
    assert set(trial.params) == set(space)
    assert resolve(trial.params, base) == recipe
    assert list(recipe.hidden) == json.loads(trial.params["hidden"])
    assert recipe.seed == 7


@pytest.mark.parametrize("fields", [["lr_schedule", "horizon"], ["horizon", "lr_schedule"]])
def test_horizon_is_asked_only_of_a_schedule(fields: list[str]) -> None:
    """A constant lr has no horizon, so none is asked for, whichever order the space is written in."""
    dims = {
        "lr_schedule": Dimension(choices=("constant", "cosine")),
        "horizon": Dimension(low=0.1, high=0.5),
    }
    space = {field: dims[field] for field in fields}
    for schedule in ("constant", "cosine"):
        recipe, trial = ask(space, Recipe(), {"lr_schedule": schedule, "horizon": 0.3})
        assert ("horizon" in trial.params) == (schedule == "cosine")
        assert recipe.horizon == (0.3 if schedule == "cosine" else 1.0)
    assert ask({"horizon": dims["horizon"]}, Recipe(lr_schedule="linear"))[0].horizon < 0.5
    assert ask({"horizon": dims["horizon"]}, Recipe())[1].params == {}


def test_enqueued_points_are_taken_as_they_are() -> None:
    """A Sobol point put in the queue becomes exactly that recipe."""
    for point in sobol_points(SHARED, KNOBS[2], 8, 5):
        recipe, trial = ask(SHARED | KNOBS[2], Recipe(), point)
        assert trial.params == point
        assert {field: getattr(recipe, field) for field in point} == point


@given(st.dictionaries(st.sampled_from(["lr", "beta", "dropout"]), ranges(), max_size=3))
def test_a_space_is_read_back_from_json(space: Space) -> None:
    """A space stored with a trial or an experiment is the same space when it is read."""
    stored = json.loads(json.dumps(plain(space)))
    assert {field: Dimension.model_validate(d) for field, d in stored.items()} == space


def test_an_edge_is_the_outer_twentieth() -> None:
    """A winner in the outer 5 % of its range, on the range's own scale, lies on an edge."""
    for unit, edge in ((0.0, "low"), (0.04, "low"), (0.06, None), (0.5, None), (0.94, None), (0.96, "high")):
        assert LR.edge(LR.at("lr", unit)) == edge
    assert Dimension(choices=(1, 2)).edge(1) is None
