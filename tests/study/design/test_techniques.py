"""The catalogue: every technique changes the baseline into a valid recipe; a user's own joins from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_training
import pytest

from study.design.build import Request, build, read_toml
from study.design.experiment import Experiment, defaults
from study.design.space import sobol_points
from study.design.techniques import BUILT_IN, DEFAULT_ARMS, RESERVED, Technique, catalogue, find
from study.statistics.verdicts import Verdict
from study.store import records
from vae.errors import UserError
from vae.recipe import Recipe

#: small data or not -> training examples
SIZES = {True: 1_000, False: 50_000}
BASELINES = {small: Recipe.from_dict(defaults("digits", SIZES[small])["recipe"]) for small in (True, False)}


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("technique", BUILT_IN, ids=lambda technique: technique.name)
def test_every_technique_changes_the_baseline(technique: Technique, small: bool) -> None:
    """Each technique at each of its tuning points is a valid recipe that differs from the default baseline."""
    baseline = BASELINES[small]
    changed = technique.apply(baseline)
    assert technique.knobs or changed != baseline
    if technique.name == "batch-quarter":
        assert changed.batch_size == (16 if small else 64)
    for point in sobol_points({}, technique.knobs, 8, 1):
        assert changed.replace(**point) != baseline


@pytest.mark.parametrize("small", [True, False])
def test_no_two_techniques_are_the_same(small: bool) -> None:
    """Two techniques differ in the recipe they make or in what they tune."""
    made = [(t.apply(BASELINES[small]), tuple(t.knobs.items())) for t in BUILT_IN]
    assert all(a != b for i, a in enumerate(made) for b in made[:i])


def test_residual_adds_layers_to_skip() -> None:
    """With one hidden layer a residual network would have no block: the technique adds two."""
    residual = find("residual", catalogue()).apply(Recipe(hidden=(500,)))
    assert residual.residual
    assert residual.hidden == (500, 500, 500)
    assert find("deeper", catalogue()).apply(Recipe(hidden=(64, 32))).hidden == (64, 32, 32)


def test_architecture_is_labelled() -> None:
    """What changes the function that is trained is labelled as another model, and nothing else is."""
    for technique in BUILT_IN:
        before, after = BASELINES[True], technique.apply(BASELINES[True])
        differs = any(getattr(before, f) != getattr(after, f) for f in ("hidden", "residual", "latent_size"))
        assert technique.different_model == differs == (technique.family == "architecture")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("initialisation", {"init", "output_bias_from_mean"}),
        ("mini-batches", {"batch_size"}),
        ("learning-rate decay", {"lr_schedule", "horizon", "warmup"}),
        (
            "regularisation",
            {"weight_decay", "dropout", "beta_warmup", "beta", "free_bits", "clip_norm"},
        ),
        ("optimizer", {"optimizer", "weight_decay", "ema_decay"}),
        ("precision", {"precision"}),
        ("compilation", {"compile"}),
        ("architecture", {"hidden", "residual"}),
    ],
)
def test_a_family_covers_its_fields(family: str, changes: set[str]) -> None:
    """Together the techniques of a family vary every recipe field that the method lists for it."""
    found: set[str] = set()
    for technique in BUILT_IN:
        if technique.family == family:
            found |= set(technique.overrides) | set(technique.scale) | set(technique.knobs)
            found |= {"hidden"} if technique.add_layers else set()
    assert found == changes


def test_the_catalogue_has_what_the_method_names() -> None:
    """Inits, batch sizes from a quarter to full, each decay with a horizon, the optimizers, and the rest."""
    known = catalogue()
    by_override = {(field, value): t for t in BUILT_IN for field, value in t.overrides.items()}
    for init in ("xavier_uniform", "he_normal", "orthogonal"):
        assert ("init", init) in by_override
    for schedule in ("step", "exponential", "linear", "cosine", "onecycle"):
        horizon = by_override["lr_schedule", schedule].knobs["horizon"]
        assert (horizon.low, horizon.high) == (0.1, 1.0)
    for optimizer in ("momentum", "rmsprop", "adamw", "schedule_free_adamw", "muon"):
        assert ("optimizer", optimizer) in by_override
    scales = {t.scale.get("batch_size") for t in BUILT_IN}
    assert scales == {None, 0.25, 0.5, 2.0, 4.0}
    assert ("batch_size", "full") in by_override
    beta = known["beta-below-1"].knobs["beta"]
    assert beta.high is not None
    assert beta.high < 1


def test_every_technique_says_why_and_who() -> None:
    """Each has a slot, a line of why and a source; names are unique and none is reserved."""
    for technique in BUILT_IN:
        assert technique.slot
        assert technique.why.endswith(".")
        assert technique.source
        assert "\n" not in technique.why
    names = [technique.name for technique in BUILT_IN]
    assert len(set(names)) == len(names)
    assert not RESERVED & set(names)


def test_the_default_arms_are_some_of_them() -> None:
    """The default arms exist, none compiles, and they come from several families."""
    chosen = [find(name, catalogue()) for name in DEFAULT_ARMS]
    assert not any(technique.overrides.get("compile") for technique in chosen)
    assert len({technique.family for technique in chosen}) >= 5
    assert len(chosen) >= 10


def test_a_technique_that_does_not_fit_is_refused() -> None:
    """Halving a batch that is the full set can't be done, and the message says which technique wanted to."""
    with pytest.raises(UserError, match=r"'batch-half' scales batch_size, which is 'full'"):
        find("batch-half", catalogue()).apply(Recipe(batch_size="full"))


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("Bad Name", {}, "small letters"),
        ("cosine", {}, "'cosine' is taken"),
        ("baseline", {}, "taken"),
        ("all", {}, "taken"),
        ("combined-without-cosine", {}, "taken"),
        ("mine", {"overides": {}}, "Did you mean 'overrides'"),
        ("mine", {"overrides": {"lrr": 1}}, "Did you mean 'lr'"),
        ("mine", {"scale": {"batch": 2.0}}, "Did you mean 'batch_size'"),
        ("mine", {"knobs": {"horizn": {"low": 0.1, "high": 1.0}}}, "Did you mean 'horizon'"),
        ("mine", {"knobs": {"horizon": {"low": 0.1, "hihg": 1.0}}}, "Did you mean 'high'"),
        ("mine", {"knobs": {"horizon": {"low": 0.1, "high": 2.0}}}, "horizon = 2.0"),
        ("mine", {"family": "magic"}, "family"),
        ("mine", {"add_layers": "1"}, "add_layers"),
        ("mine", 3, "table"),
    ],
)
def test_bad_techniques_are_refused(name: str, fields: Any, words: str) -> None:
    """A definition of the user's that can't work is refused with its name, before anything is trained."""
    with pytest.raises(UserError, match=words) as caught:
        catalogue({name: fields})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"overrides": {"lr": -1.0}}, "lr = -1.0"),
        (
            {"overrides": {"lr_schedule": "cosine", "warmup": 0.3}, "knobs": {"horizon": [0.2, 0.9]}},
            "horizon",
        ),
        ({"space": {"dropout": {"low": 0.1, "high": 0.2}}}, "put that under knobs"),
        ({"scale": {"init": 2.0}}, "scales init"),
    ],
)
def test_techniques_are_tried_on_the_baseline(fields: dict[str, Any], words: str) -> None:
    """A technique that gives no valid recipe on this baseline is refused when it becomes an arm."""
    values = defaults("digits", 1_000) | {"arms": ["mine"], "techniques": {"mine": fields}}
    with pytest.raises(UserError, match=words):
        Experiment.from_values(values, "test")


def test_an_unknown_arm_names_the_nearest() -> None:
    """A typo in an arm is told with the arm that was meant, the user's own among them."""
    known = catalogue({"wide-momentum": {}})
    for typo, meant in (("cosin", "cosine"), ("mun", "muon"), ("wide-momentm", "wide-momentum")):
        with pytest.raises(UserError, match=f"Unknown arm '{typo}'. Did you mean '{meant}'"):
            find(typo, known)
    with pytest.raises(
        UserError, match=r"Unknown arm 'nope'\. There are: xavier, .*, wide-momentum\. .*study techniques\."
    ):
        find("nope", known)


def test_own_ranges_replace_shared_ones() -> None:
    """`space` of a technique replaces the range of what every arm tunes, in that arm alone; so does a knob."""
    techniques = {
        "wide": {"space": {"lr": {"low": 1e-6, "high": 1.0, "log": True}}},
        "knob": {"knobs": {"lr": {"low": 1e-5, "high": 0.5, "log": True}}},
    }
    values = {"data": "digits", "arms": ["wide", "knob"], "techniques": techniques}
    experiment = build(Request(values, source="test"), 1_000, None)
    shared = {
        arm: experiment.spaces(arm, experiment.workload(1_000))[0]["lr"]
        for arm in ("baseline", "wide", "knob")
    }
    assert [d.low for d in shared.values()] == [3e-4, 1e-6, 1e-5]
    assert experiment.spaces("knob", experiment.workload(1_000))[1] == {}


FILE = """
arms = ["thrice"]
tune_trials = 3
seeds = 3

[techniques.thrice]
family = "initialisation"
slot = "init"
overrides = { init = "orthogonal", output_bias_from_mean = true }
knobs = { beta = { low = 0.5, high = 0.9 } }
space = { lr = { low = 1e-3, high = 1e-2, log = true } }
why = "Three times as fast, by construction."
source = "the test"
"""


def test_a_technique_from_a_file_works_end_to_end(tmp_path: Path) -> None:
    """A technique defined in an experiment file alone is tuned over its knobs, confirmed and judged."""
    (tmp_path / "mine.toml").write_text(FILE)
    session = fake_training.prepare(tmp_path, **read_toml(tmp_path / "mine.toml"))
    with session.store as store:
        session.run_here()
        arms = fake_training.arms_table(fake_training.estimated(store))
        trials = records.trials(store, "fake")
    assert arms.loc["thrice", "verdict"] == Verdict.FASTER
    assert arms.loc["thrice", "low"] < 3 < arms.loc["thrice", "high"]
    tuned = trials[(trials["arm"] == "thrice") & (trials["phase"] == "tune")]
    assert tuned["params_beta"].between(0.5, 0.9).all()
    assert tuned["params_lr"].between(1e-3, 1e-2).all()
    assert tuned["params_beta"].nunique() == 3
    for row in tuned.to_dict("records"):
        recipe = Recipe.from_json(row["recipe"])
        assert (recipe.init, recipe.beta, recipe.lr) == ("orthogonal", row["params_beta"], row["params_lr"])
