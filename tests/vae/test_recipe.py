"""Recipes: exact in JSON and TOML, strict about types, and clear about what is refused and why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae.errors import UserError
from vae.networks import NETWORK_FIELDS
from vae.recipe import (
    ActivationName,
    InitName,
    LikelihoodName,
    OptimizerName,
    PrecisionName,
    Recipe,
    ScheduleName,
    parse_value,
)

#: Floats that are awkward to write: the smallest, neighbours of round ones, long ones.
ODD = [5e-324, 2.2250738585072014e-308, 0.1 + 0.2, 1 / 3, 1e-7, 9.999999999999999e22, math.nextafter(1.0, 0)]


def floats(low: float, high: float, *, above: bool = False, below: bool = False) -> st.SearchStrategy[float]:
    inside = [x for x in ODD if low <= x <= high and not (above and x == low) and not (below and x == high)]
    drawn = st.floats(low, high, exclude_min=above, exclude_max=below, allow_subnormal=True)
    return drawn | st.sampled_from(inside) if inside else drawn


OWN = st.sampled_from(["nets.py:make", "a folder/ü.py:Net", "package.module:Net", "module:net_2"])
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
SCALARS = st.booleans() | st.integers(-(10**20), 10**20) | floats(-1e300, 1e300) | st.text(max_size=20)
OPTIONS = st.dictionaries(NAMES, SCALARS | st.lists(SCALARS, max_size=4), max_size=4)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["mlp", "conv"]) | OWN,
    "model_options": OPTIONS,
    "hidden": st.lists(st.integers(1, 65_536), min_size=1, max_size=64).map(tuple),
    "latent_size": st.integers(1, 65_536),
    "residual": st.booleans(),
    "activation": st.sampled_from(get_args(ActivationName)),
    "dropout": floats(0, 1, below=True),
    "init": st.sampled_from(get_args(InitName)),
    "output_bias_from_mean": st.booleans(),
    "optimizer": st.sampled_from(get_args(OptimizerName)) | OWN,
    "optimizer_options": OPTIONS,
    "lr": floats(0, 100, above=True),
    "lr_schedule": st.sampled_from(get_args(ScheduleName)),
    "horizon": floats(0, 1, above=True),
    "warmup": floats(0, 1, below=True),
    "batch_size": st.integers(1, 10**9) | st.just("full"),
    "weight_decay": floats(0, 10),
    "clip_norm": st.none() | floats(0, 1e300, above=True),
    "ema_decay": floats(0, 1, below=True),
    "likelihood": st.sampled_from(get_args(LikelihoodName)),
    "beta": floats(0, 1000),
    "beta_warmup": floats(0, 1),
    "free_bits": floats(0, 100),
    "precision": st.sampled_from(get_args(PrecisionName)),
    "compile": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
}


def consistent(values: dict[str, Any]) -> bool:
    return values["lr_schedule"] == "constant" or values["warmup"] < values["horizon"]


def agreeing(values: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing to the network and the optimizer drawn."""
    own = ":" in values["model"]
    out = set(NETWORK_FIELDS) if own else {"model_options"}
    out |= set() if ":" in values["optimizer"] else {"optimizer_options"}
    kept = {key: value for key, value in values.items() if key not in out}
    given = {"lr", "weight_decay", "params", "data_shape", "latent_size", "parameters_per_pixel"}
    for table in ("model_options", "optimizer_options"):
        if table in kept:
            kept[table] = {name: value for name, value in kept[table].items() if name not in given}
    return kept


RECIPES = st.fixed_dictionaries(FIELDS).filter(consistent).map(agreeing).map(Recipe.from_dict)


def refusal(**values: Any) -> str:
    """The one line that these fields are refused with."""
    with pytest.raises(UserError) as caught:
        Recipe.from_dict(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_field_is_tried() -> None:
    """The round trips below are over all fields: a new one must be added to them."""
    assert list(FIELDS) == list(Recipe.model_fields)


@given(RECIPES)
def test_json_is_exact(recipe: Recipe) -> None:
    """A recipe read back from its JSON is the same, to the last bit of every float, and on one line."""
    text = recipe.to_json()
    assert Recipe.from_json(text) == recipe
    assert "\n" not in text


@given(RECIPES)
def test_toml_is_exact(recipe: Recipe) -> None:
    """A recipe read back from its TOML is the same; no clip_norm is written as no key."""
    text = recipe.to_toml()
    assert Recipe.from_toml(text) == recipe
    assert ("clip_norm" in text) == (recipe.clip_norm is not None)


def test_a_recipe_of_before_is_written_as_before() -> None:
    """Fields that came later are in JSON and TOML only where they say something: states and databases compare text."""
    later = {"model", "model_options", "optimizer_options"}
    assert not later & set(json.loads(Recipe().to_json()))
    assert not any(name in Recipe().to_toml() for name in later)
    own = Recipe(model="nets.py:make", model_options={"width": 8})
    assert list(json.loads(own.to_json()))[:2] == ["model", "model_options"]
    assert hash(own) == hash(Recipe.from_json(own.to_json()))


def test_a_recipe_says_all_of_its_networks_options() -> None:
    """Those that are left out are put in, in JSON too: what is stored means the same under whatever default."""
    whole = {"channels": [32, 64], "blocks": 0, "norm": "batch"}
    recipe = Recipe.from_dict({"model": "conv", "model_options": {"blocks": 2}})
    assert recipe.model_options == whole | {"blocks": 2}
    assert json.loads(recipe.to_json())["model_options"] == whole | {"blocks": 2}
    assert Recipe.from_json(recipe.to_json()) == Recipe.from_toml(recipe.to_toml()) == recipe
    assert Recipe().replace(model="conv").model_options == whole
    assert Recipe(model="conv").replace(model="mlp") == Recipe()
    assert recipe.replace(**{"model_options.blocks": None}).model_options == whole


def test_conv_of_before_normalises_by_group(tmp_path: Path) -> None:
    """JSON that was stored while options were left out meant the default of then; what a user writes, that of now."""
    before = '{"model": "conv", "model_options": {"channels": [4]}}'
    assert Recipe.from_json(before).model_options == {"channels": [4], "blocks": 0, "norm": "group"}
    (tmp_path / "mine.json").write_text(before)
    assert Recipe.load(tmp_path / "mine.json").model_options["norm"] == "batch"
    assert Recipe.from_toml('model = "conv"').model_options["norm"] == "batch"


def test_names_with_a_dot_are_parts_of_a_table() -> None:
    """A part is put beside the others, None takes it out, and a table replaces all of them."""
    recipe = Recipe(model="nets.py:make", model_options={"width": 8, "depth": 2})
    assert recipe.replace(**{"model_options.width": 16}).model_options == {"width": 16, "depth": 2}
    assert recipe.replace(**{"model_options.width": None}).model_options == {"depth": 2}
    both = recipe.replace(**{"model_options.width": 1, "model_options": {"height": 3}})
    assert both.model_options == {"height": 3, "width": 1}
    assert recipe.value("model_options.depth") == 2
    assert recipe.value("model_options.height") is None
    flat = recipe.flat()
    assert flat["model_options.width"] == 8
    assert "model_options" not in flat
    assert Recipe().replace(**flat) == recipe


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"model": "mpl"},
            "model = 'mpl': must be 'mlp' or 'conv' or code of your own, file.py:NAME or package.module:NAME",
        ),
        ({"optimizer": "x.py"}, "'schedule_free_adamw' or code of your own"),
        ({"hidden": 128}, "hidden = 128: must be a list, as in [128]"),
        (
            {"model": "nets.py:make", "hidden": [8]},
            "hidden says nothing to the network nets.py:make: give it as one",
        ),
        ({"model": "nets.py:make", "init": "he_normal"}, "init says nothing to the network nets.py:make"),
        ({"model_options": {"width": 8}}, "the network mlp has no model_options"),
        ({"optimizer_options": {"betas": [0.9, 0.99]}}, "adam has no optimizer_options"),
        ({"optimizer": "a:B", "optimizer_options": {"lr": 1.0}}, "optimizer_options.lr is given already"),
        ({"model": "a:B", "model_options": {"latent_size": 1}}, "model_options.latent_size is given already"),
        (
            {"model": "a:B", "model_options": {"a": {}}},
            "must have numbers, texts, true or false, or lists of these",
        ),
        ({"model": "a:B", "model_options": {"a": math.inf}}, "must have numbers"),
        ({"model": "a:B", "model_options": {"a b": 1}}, "must have names as Python's arguments have them"),
    ],
)
def test_options_that_say_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    """What a network or an optimizer has no use for is an error, never passed over."""
    assert words in refusal(**values)


def test_files_round_trip_by_suffix(tmp_path: Path) -> None:
    """`load` reads .json as JSON and anything else as TOML."""
    recipe = Recipe(lr=0.1 + 0.2, clip_norm=5.0, hidden=(3, 4))
    for name, text in (("r.json", recipe.to_json()), ("r.toml", recipe.to_toml()), ("r", recipe.to_toml())):
        (tmp_path / name).write_text(text)
        assert Recipe.load(tmp_path / name) == recipe


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"lr = ", b"lr = 1\nlr = 2"])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    """A missing, binary or malformed file is refused in one line with its path."""
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.toml") as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value).strip()


def test_json_that_is_no_table_is_refused() -> None:
    """A JSON list or number is no recipe."""
    for text in ("[1]", "3", "null", "{"):
        with pytest.raises(UserError):
            Recipe.from_json(text)


@pytest.mark.parametrize(
    ("typo", "meant"), [("learning_rate", ""), ("lrr", "lr"), ("batchsize", "batch_size"), ("betas", "beta")]
)
def test_an_unknown_field_names_the_nearest(typo: str, meant: str) -> None:
    """A typo is told with the field that was meant, or with all fields where none is near."""
    message = refusal(**{typo: 1})
    assert f"'{typo}'" in message
    assert f"Did you mean '{meant}'?" in message if meant else "There are: model, " in message


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("hidden", [], "at least 1 item"),
        ("hidden", [3, 0], "greater than or equal to 1"),
        ("hidden", [1] * 65, "at most 64 items"),
        ("hidden", [65_537], "less than or equal to 65536"),
        ("latent_size", 0, "greater than or equal to 1"),
        ("activation", "rellu", "'relu'"),
        ("dropout", 1.0, "less than 1"),
        ("dropout", -0.1, "greater than or equal to 0"),
        ("init", "zeros", "'orthogonal'"),
        ("optimizer", "adagrad", "'muon'"),
        ("lr", 0.0, "greater than 0"),
        ("lr", 100.1, "less than or equal to 100"),
        ("lr", math.nan, "finite"),
        ("lr", math.inf, "finite"),
        ("lr_schedule", "polynomial", "'cosine'"),
        ("horizon", 0.0, "greater than 0"),
        ("horizon", 1.01, "less than or equal to 1"),
        ("warmup", 1.0, "less than 1"),
        ("batch_size", 0, "greater than or equal to 1"),
        ("weight_decay", -1e-9, "greater than or equal to 0"),
        ("weight_decay", 10.5, "less than or equal to 10"),
        ("clip_norm", 0.0, "greater than 0"),
        ("ema_decay", 1.0, "less than 1"),
        ("likelihood", "poisson", "'gaussian'"),
        ("beta", -1.0, "greater than or equal to 0"),
        ("beta", 1001.0, "less than or equal to 1000"),
        ("beta_warmup", 1.1, "less than or equal to 1"),
        ("free_bits", -1.0, "greater than or equal to 0"),
        ("precision", "fp16", "'bf16'"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**32, "less than 4294967296"),
    ],
)
def test_a_value_out_of_range_is_told_with_its_rule(field: str, value: Any, rule: str) -> None:
    """A refusal names the field, the value and the rule."""
    message = refusal(**{field: value})
    assert field in message
    assert rule in message
    assert repr(value[-1] if isinstance(value, list) and value[-1:] in ([0], [65_537]) else value) in message


@pytest.mark.parametrize("value", ["half", 0, -3, True, 2.5, None])
def test_batch_size_is_refused_once(value: Any) -> None:
    """A field of two kinds is refused once, with both of them: a whole number, or "full"."""
    message = refusal(batch_size=value)
    assert message.count("batch_size") == 1
    assert ";" not in message
    assert repr(value) in message
    assert "'full'" in message


def test_every_bad_field_is_told() -> None:
    """Two mistakes are told together."""
    message = refusal(lr=-1.0, beta=-2.0)
    assert "lr = -1.0" in message
    assert "beta = -2.0" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", "0.1"),
        ("lr", True),
        ("seed", True),
        ("seed", 1.0),
        ("seed", "1"),
        ("latent_size", 8.0),
        ("compile", 1),
        ("residual", "true"),
        ("clip_norm", "none"),
        ("hidden", "64"),
        ("hidden", 64),
        ("hidden", [64.0]),
        ("batch_size", "256"),
        ("optimizer", 1),
    ],
)
def test_types_are_strict(field: str, value: Any) -> None:
    """true is not 1, "0.1" is not 0.1, 8.0 is not 8: what would have to be guessed is refused."""
    assert field in refusal(**{field: value})


def test_a_whole_number_is_a_float() -> None:
    """TOML and Optuna write 1 where 1.0 is meant, and that is understood."""
    recipe = Recipe.from_dict({"lr": 1, "clip_norm": 2, "beta": 1, "dropout": 0})
    assert (recipe.lr, recipe.clip_norm) == (1.0, 2.0)
    assert all(type(value) is float for value in (recipe.lr, recipe.clip_norm, recipe.beta, recipe.dropout))


def test_warmup_ends_before_the_horizon() -> None:
    """A schedule whose warm-up reaches its horizon is refused with both; a constant one has no horizon."""
    message = refusal(lr_schedule="cosine", warmup=0.5, horizon=0.5)
    assert "warmup (0.5)" in message
    assert "horizon (0.5)" in message
    assert Recipe(warmup=0.5, horizon=0.2).warmup == 0.5


def test_recipes_are_frozen_and_replaced_with_checks() -> None:
    """A recipe can't be changed; `replace` makes another, validated like the first."""
    recipe = Recipe()
    with pytest.raises(ValueError, match="frozen"):
        recipe.lr = 1.0  # type: ignore[misc]
    assert recipe.replace(lr=0.5).lr == 0.5
    assert recipe.lr == Recipe().lr
    with pytest.raises(UserError, match="lr"):
        recipe.replace(lr=-1.0)
    with pytest.raises(UserError, match="no field 'momentum'"):
        recipe.replace(momentum=0.9)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("lr", "3e-4", 3e-4),
        ("hidden", "[64, 32]", [64, 32]),
        ("optimizer", "muon", "muon"),
        ("optimizer", '"muon"', "muon"),
        ("clip_norm", "none", None),
        ("compile", "true", True),
        ("batch_size", "full", "full"),
        ("batch_size", "64", 64),
    ],
)
def test_set_values_read_as_toml(field: str, text: str, value: Any) -> None:
    """`--set field=text` reads numbers, lists and truth values as TOML does, and a bare word as a string."""
    assert parse_value(field, text) == value
    assert Recipe.from_dict({field: value})


def test_set_names_the_nearest_field() -> None:
    """`--set` of a field that isn't there names the nearest."""
    with pytest.raises(UserError, match="Did you mean 'latent_size'"):
        parse_value("latent", "3")


def test_the_batch_of_full_is_the_training_set() -> None:
    """batch_size "full" is as many examples as there are; a number is that number."""
    assert Recipe(batch_size="full").batch(1_197) == 1_197
    assert Recipe(batch_size=64).batch(1_197) == 64
