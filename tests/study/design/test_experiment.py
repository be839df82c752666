"""Experiments: TOML in, defaults by size, --set, totals that can only grow, workloads that can't change."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import fake_training
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.aa import MAX_NULL_ARMS, null_techniques
from study.design.build import Request, build, read_toml
from study.design.experiment import Experiment
from study.design.phases import CALIBRATION_SEEDS, INDEPENDENT_SEEDS, MAX_TUNE_SEEDS, SEED_SETS
from study.design.techniques import BUILT_IN
from study.place import Place
from study.session import check
from study.store.locations import Local
from study.terms import Phase
from vae.data.dataset import load
from vae.errors import UserError
from vae.evaluation import least_loss
from vae.recipe import Recipe

TUNED = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "beta": {"low": 0.5, "high": 2.0}}
RANGE = {"low": 0.1, "high": 1.0}


def make(
    stored: Experiment | None = None,
    fixed: dict[str, Any] | None = None,
    small: bool = True,
    **values: Any,
) -> Experiment:
    return build(Request(values, fixed or {}, source="test.toml"), 1_000 if small else 50_000, stored)


def refusal(*args: Any, **kwargs: Any) -> str:
    """The one line that `make` refuses with."""
    with pytest.raises(UserError) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def toml(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "test.toml"
    path.write_text(text)
    return read_toml(path)


def test_defaults_follow_the_size_of_the_data() -> None:
    """Small data gets the network and budget made for digits, large data those for Fashion-MNIST."""
    small, large = make(small=True), make(small=False, data="fashion-mnist")
    assert (small.recipe.hidden, small.recipe.latent_size, small.recipe.batch_size) == ((128,), 8, 64)
    assert (large.recipe.hidden, large.recipe.latent_size, large.recipe.batch_size) == ((500,), 30, 256)
    assert (small.budget, large.budget) == (40, 10)
    for experiment in (small, large):
        assert (experiment.tune_trials, experiment.seeds, experiment.blocks) == (8, 20, 1)
        recipe = experiment.recipe
        assert (recipe.optimizer, recipe.lr_schedule, recipe.beta, recipe.init) == (
            "adam",
            "constant",
            1.0,
            "torch",
        )
        assert experiment.margin == 0.02
    assert (experiment.method, experiment.stop_at_target) == (2, True)
    lr = [e.shared_space(e.recipe, e.workload(1_000 if e is small else 50_000))["lr"] for e in (small, large)]
    assert [(d.low, d.high) for d in lr] == [(3e-4, 3e-2), (1e-4, 1e-2)]
    sgd = [
        e.shared_space(Recipe(optimizer="momentum"), e.workload(1_000 if e is small else 50_000))["lr"]
        for e in (small, large)
    ]
    assert [(d.low, d.high) for d in sgd] == [(1e-4, 1e-1), (1e-5, 1e-2)]


def test_a_file_says_all_of_it(tmp_path: Path) -> None:
    """Every key of an experiment can come from its file and is in the experiment."""
    values = toml(
        tmp_path,
        """
        name = "mine"
        data = "digits"
        seed = 3
        budget = 5
        arms = ["cosine", "mine"]
        tune_trials = 4
        tune_seeds = 2
        method = 1
        seeds = 6
        looks = [4]
        blocks = 2
        split_per_block = false
        target = 30
        target_at = 0.6
        margin = 0.1
        stop_at_target = true
        combine = true
        fixed = ["lr"]
        [recipe]
        batch_size = 32
        [space]
        lr = { low = 1e-4, high = 1e-2, log = true }
        beta = [0.5, 1.0]
        [techniques.mine]
        overrides = { init = "orthogonal" }
        [search]
        trials = 7
        sampler = "random"
        pruner = "none"
        patience = 20
        space = { latent_size = [2, 4] }
        [sources]
        "nets.py:Own" = "0123"
        """,
    )
    assert set(values) == set(Experiment.model_fields)
    experiment = build(Request(values, source="test.toml"), 1_000, None)
    assert (experiment.name, experiment.seed, experiment.budget, experiment.target) == ("mine", 3, 5.0, 30.0)
    assert (experiment.tune_trials, experiment.tune_seeds, experiment.target_at) == (4, 2, 0.6)
    assert (experiment.seeds, experiment.blocks) == (6, 2)
    assert experiment.arms == ("cosine", "mine")
    assert experiment.recipe == Recipe(hidden=(128,), latent_size=8, batch_size=32)
    assert set(experiment.spaces("cosine", experiment.workload(1_000))[0]) == {"beta"}  # lr is fixed
    assert experiment.search.space["latent_size"].choices == (2, 4)
    assert experiment.search.space["beta"].high == 2.0  # the rest of the search's space stays
    assert (experiment.search.trials, experiment.search.sampler, experiment.search.patience) == (
        7,
        "random",
        20,
    )


@given(
    st.builds(
        dict,
        seed=st.integers(0, 9_999),
        budget=st.floats(1e-3, 1e5),
        tune_trials=st.integers(1, 4_999),
        seeds=st.integers(1, 4_999),
        target=st.none() | st.floats(1e-300, 1e300),
        margin=st.floats(0, 1, exclude_max=True),
        combine=st.booleans(),
        space=st.sampled_from([{}, TUNED]),
        arms=st.lists(st.sampled_from([t.name for t in BUILT_IN]), min_size=1, max_size=4),
    )
)
def test_the_stored_form_is_exact(values: dict[str, Any]) -> None:
    """What is stored in the database as JSON is the same experiment when it is read."""
    experiment = make(**values)
    stored = json.loads(json.dumps(experiment.to_json()))
    assert Experiment.from_values(stored, "stored") == experiment
    assert make(experiment) == experiment  # a command that says nothing new changes nothing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sedes = 3", "an experiment has no 'sedes'. Did you mean 'seeds'"),
        ("[recipe]\nlatentsize = 3", "recipe has no 'latentsize'. Did you mean 'latent_size'"),
        ("[search]\ntrails = 3", "search has no 'trails'. Did you mean 'trials'"),
        ("[space]\nlr = { low = 1e-4, hi = 1e-2 }", "space.lr has no 'hi'. Did you mean 'high'"),
        ("[search.space]\nlrr = [1.0, 2.0]", "Did you mean 'lr'"),
        ("[search.space]\nlr = { lo = 1 }", "search.space.lr has no 'lo'. Did you mean 'low'"),
        ("[techniques.x]\nover = 1", "techniques.x"),
        ("arms = ['cosin']", "Unknown arm 'cosin'. Did you mean 'cosine'"),
        ("fixed = ['lrr']", "Did you mean 'lr'"),
        ("fixed = 3", "fixed must be a list of recipe fields, not 3"),
        ("fixed = [['lr']]", "fixed must be a list of recipe fields"),
        ("[recipe]\nmodel = ['conv']", r"model = \['conv'\]"),
        ("seeds = 7\nblocks = 2", r"seeds \(7\) must be divisible by blocks \(2\).*nearest that is: 8"),
        ("seeds = 0", "seeds = 0: must be greater than or equal to 1"),
        ("tune_trials = 0", "tune_trials = 0: must be greater than or equal to 1"),
        ("blocks = 0", "blocks = 0"),
        ("seeds = 5000", "less than 5000"),
        ("seeds = '3'", "seeds = '3': must be a valid integer"),
        ("seeds = true", "seeds = True"),
        ("seeds = 3.0", "seeds = 3.0"),
        ("combine = 1", "combine = 1"),
        ("margin = 1.0", "margin = 1.0: must be less than 1"),
        ("margin = nan", "margin = nan: must be a finite number"),
        ("budget = 0", "budget = 0"),
        ("budget = inf", "budget"),
        ("target = nan", "target = nan"),
        ("data = 3", "data must be a string"),
        ("name = 3", "name must be a string"),
        ("recipe = 3", "recipe must be a table"),
        ("search = 3", "search must be a table"),
        ("techniques = ['x']", "techniques must be a table"),
        ("[search]\nspace = 3", "space"),
        ("[recipe]\nlr = -1", "recipe.lr = -1"),
        ("[recipe]\nseed = 5", "See --seed"),
        ("[search]\nsampler = 'grid'", "sampler = 'grid'"),
        ("[search]\npruner = 'asha'", "pruner = 'asha'"),
        ("arms = 'cosine'\n[space]\nlr = { low = 1.0, high = 0.5 }", "below high"),
        ("= 3", "can't be read"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path: Path, text: str, words: str) -> None:
    """A typo names the nearest key, a bad value its rule; always in one line, with the file's name."""
    with pytest.raises(UserError, match=words) as caught:
        build(Request(toml(tmp_path, text), source="test.toml"), 1_000, None)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that isn't there, or is a folder, is refused by its path."""
    with pytest.raises(UserError, match=r"No experiment file .*nowhere\.toml"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(UserError, match="can't be read"):
        read_toml(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "a b", "a\n", "é" * 65, "a:b", "*"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    """A name is part of files' and studies' names: no '/', nothing hidden, nothing that looks like a flag."""
    assert "--name" in refusal(name=name)


def test_the_default_name_is_the_datas() -> None:
    """Without a name the data gives it: a set's own, a file's without folder and suffix, or a folder's path, without
    what a name can't begin with and no longer than one can be."""
    assert make().name == "digits"
    assert make(data="some/where/my images.npy").name == "my-images"
    assert make(data="./images").name == "images"
    assert make(data="/home/me/images").name == "home-me-images"
    assert make(data=f"{'x' * 80}.npy").name == "x" * 64


@pytest.mark.parametrize(
    ("arm", "fixed", "space", "points"),
    [
        ("he", {}, {}, 8),
        ("he", {"lr": 1e-3}, {}, 0),
        ("cosine", {"lr": 1e-3, "horizon": 0.5}, {}, 8),  # a technique's own knob is tuned all the same
        ("he", {}, {"lr": RANGE, "beta": RANGE, "horizon": RANGE}, 8),  # a constant lr has no horizon
        ("cosine", {}, {"lr": RANGE, "beta": RANGE, "horizon": RANGE}, 12),
    ],
)
def test_guided_points_are_a_pair_a_dimension(
    arm: str, fixed: dict[str, Any], space: dict[str, Any], points: int
) -> None:
    """Of what is really tuned in the arm; four where that is one."""
    experiment = make(fixed=fixed, arms=[arm], space=space)
    assert experiment.guided_points(arm) == points


@pytest.mark.parametrize("likelihood", ["cross_entropy", "bernoulli", "dynamic_bernoulli"])
@pytest.mark.parametrize("target", [0.0, -3.5])
def test_a_target_below_any_loss_is_refused(likelihood: str, target: float) -> None:
    """A probability's negative logarithm is never below 0: such a target can't be reached."""
    message = refusal(target=target, recipe={"likelihood": likelihood})
    assert f"target = {target:g} is out of reach" in message
    assert likelihood in message


@pytest.mark.parametrize("likelihood", ["continuous_bernoulli", "gaussian"])
def test_densities_have_negative_targets(likelihood: str) -> None:
    """A density's negative logarithm may be anything, so a negative target stands."""
    assert make(target=-3.5, recipe={"likelihood": likelihood}).target == -3.5


def place(folder: Path) -> Place:
    return Place(f"sqlite:///{folder / 'optuna.db'}", Local(folder / "artifacts"), None, "cpu", 1)


def test_a_target_below_the_entropy_of_the_pixels_is_refused(tmp_path: Path) -> None:
    """Grey pixels cost their entropy even when every mean is exact: a target below that can't be reached."""
    data = load("digits")
    x = data.valid.all().numpy().astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(x * np.log(x)) - np.nan_to_num((1 - x) * np.log(1 - x))
    least = float(entropy.sum(axis=1).mean())
    assert least_loss(data, "cross_entropy") == pytest.approx(least)
    assert least_loss(data, "bernoulli") == -np.inf
    with pytest.raises(UserError, match=f"no model .* has a cross_entropy loss below {least:.2f} nats"):
        check(
            place(tmp_path),
            Request({"data": "digits", "arms": "cosine", "target": least - 0.01}, source="test"),
        )
    check(
        place(tmp_path), Request({"data": "digits", "arms": "cosine", "target": least + 0.01}, source="test")
    )
    assert list(tmp_path.iterdir()) == []


def test_a_batch_must_fit_the_data(tmp_path: Path) -> None:
    """An arm whose batch is larger than the training set is refused before anything is written."""
    values = {"data": fake_training.pixels(tmp_path), "arms": "batch-quadruple", "recipe": {"batch_size": 32}}
    with pytest.raises(UserError, match="batch_size 128 is more than the 64 training examples"):
        check(place(tmp_path), Request(values, source="test"))
    assert not (tmp_path / "optuna.db").exists()


@given(st.integers(0, 9_999), st.integers(1, 4_999))
def test_seed_sets_never_meet(seed: int, n: int) -> None:
    """The seeds of search, tuning, calibration, confirmation and combine are disjoint, for independent arms
    and for the neighbouring experiment seed too."""
    experiment = make(seed=seed)
    ranges = []
    for phase in SEED_SETS:
        count = {"search": 9_999, "calibration": CALIBRATION_SEEDS}.get(phase, n)
        apart = {
            "tune": (0, INDEPENDENT_SEEDS),
            "confirm": (0, INDEPENDENT_SEEDS),
            "final": (),
            "guided": (),
        }.get(phase, (0,))
        starts = [experiment.seed_set(phase, 1, first)[0] for first in apart]
        ranges += [(start, start + count) for start in starts]
    judged = make(
        seed=seed, method=1, tune_seeds=MAX_TUNE_SEEDS, techniques=null_techniques(1), arms=["null-1"]
    )
    for arm in ("baseline", "null-1"):
        for first, last in ((1, 1), (2, n)):  # no block shares a seed with another
            begin, end = judged.final_seeds(arm, first)[0], judged.final_seeds(arm, last)[-1] + 1
            ranges += [(begin, end)] if first <= last else []
    ranges.append((make(seed=seed + 1).seed_set("search", 1)[0],) * 2 if seed < 9_999 else (2**31, 2**31))
    ranges.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    assert ranges[-1][1] < 2**32
    assert experiment.seed_set("confirm", 3) == experiment.seed_set("confirm", 9)[:3]


def test_no_null_arms_share_a_tuning_seed() -> None:
    """Of as many null arms as there may be, in five blocks, each has its own tuning seeds, none another phase's; their
    confirmation seeds are the baseline's."""
    techniques = null_techniques(MAX_NULL_ARMS)
    experiment = make(techniques=techniques, arms=[*techniques], seeds=20, blocks=5)
    seeds = []
    for arm in ("baseline", *techniques):
        assert experiment.confirm_seeds(arm, 2) == experiment.confirm_seeds("baseline", 2)
        for block in range(1, 6):
            seeds += experiment.seed_set(Phase.TUNE, 1, block + experiment.seeds_apart(arm))
            seeds += [experiment.guided_seed(arm, block, number) for number in (1, 2)]
    seeds += experiment.seed_set(Phase.CALIBRATION, CALIBRATION_SEEDS) + experiment.seed_set(
        Phase.CONFIRM, 20
    )
    assert len(set(seeds)) == len(seeds)


def test_topping_up_the_seeds_is_a_look() -> None:
    """Each total at which verdicts could be read is kept, by what is compared alone; nothing else is a look."""
    first = make(arms=["cosine"], seeds=8)
    assert first.looks == ()
    assert make(first).looks == ()
    second = make(first, seeds=12)
    assert second.looks == (8,)
    assert make(second, seeds=20).looks == (8, 12)
    assert make(make(search={"trials": 3}), arms=["cosine"], seeds=30).looks == ()


def test_finalists_are_of_experiments_begun_before() -> None:
    """Today's tuning has rounds in their place: asking for both is refused in a line that says so."""
    assert "tune_seeds (3) is of experiments begun before" in refusal(arms=["cosine"], tune_seeds=3)
    assert make(arms=["cosine"], method=1, tune_seeds=3).has_finalists


def test_default_seeds_are_shared_out_over_the_blocks() -> None:
    """A number of blocks that the default number of seeds can't be divided by has as few more as it needs; seeds that
    were given are left alone, and so are those of a comparison that has begun."""
    assert [make(blocks=blocks).seeds for blocks in (1, 3, 5, 6)] == [20, 21, 20, 24]
    assert make(blocks=3, seeds=9).seeds == 9
    assert "divisible by blocks (3)" in refusal(blocks=3, seeds=20)
    assert make(make(arms=["cosine"], blocks=3, seeds=9), blocks=3).seeds == 9
