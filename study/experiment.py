"""Experiment: workload, arms, budgets and seeds of one named comparison; TOML in, JSON stored."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator

from study.space import Dimension, Space, check_space, lr_dimension, search_space
from study.techniques import DEFAULT_ARMS, Technique, catalogue, find
from vae.errors import UserError
from vae.recipe import Recipe, explain

SamplerName = Literal["tpe", "random", "qmc", "gp"]
PrunerName = Literal["none", "median", "percentile", "halving", "hyperband", "patient"]

#: Training sets below this size get the defaults made for digits: a small network and more epochs.
SMALL_DATA = 10_000
#: A seed set starts at its offset plus its index, so that the sets never share a seed.
SEED_SETS = {"search": 0, "tune": 10_000, "calibration": 20_000, "confirm": 30_000, "combine": 40_000}
CALIBRATION_SEEDS = 5

Count = Annotated[int, Field(ge=1, le=9_999)]


class SearchPlan(BaseModel):
    """The joint search: one Optuna study in which everything is sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: Annotated[int, Field(ge=0, le=9_999)] = 0
    """Total number of trials; running again tops up."""
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    patience: Annotated[int, Field(ge=0)] = 0
    """Grid points without a better validation loss after which a trial stops; 0: never."""
    space: Space = Field(default_factory=dict)


class Experiment(BaseModel):
    """Everything that decides what is trained under one name; the resolved form is stored in the database."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str
    """A named data set or the path of a .npy or .npz file."""
    seed: Annotated[int, Field(ge=0, lt=10_000)] = 0
    """Seeds the split of the data, the Sobol points and every training."""
    budget: Annotated[float, Field(gt=0, le=100_000)]
    """tau in epochs of the training split."""
    recipe: Recipe
    """The baseline."""
    arms: tuple[str, ...] = ()
    """Techniques compared with the baseline, which is always there. Empty: no comparison."""
    tune_trials: Count = 8
    """K: tuning points per arm and block."""
    seeds: Count = 10
    """S: confirmation seeds per arm, shared out over the blocks."""
    blocks: Count = 1
    """R: how often tuning and confirmation are repeated."""
    target: float | None = None
    """Validation loss to reach, nats per example; none: calibrated on the baseline."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """A speed-up within this margin of 1 is no verdict."""
    stop_at_target: bool = False
    """Confirmation trials end at the target instead of at tau."""
    combine: bool = False
    """Also build and test the combined arm."""
    space: Space = Field(default_factory=dict)
    """Nuisance hyperparameters tuned in every arm; empty: lr alone, in its optimizer's range."""
    techniques: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The user's own techniques."""
    fixed: tuple[str, ...] = ()
    """Recipe fields that --set has fixed: tuned nowhere."""
    search: SearchPlan = SearchPlan()

    @field_serializer("techniques")
    def _plain(self, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not re.fullmatch(r"[\w.+-]{1,64}", self.name):
            raise ValueError(
                f"the name '{self.name}' must have 1 to 64 letters, digits, '.', '_', '+' or '-'; choose with --name"
            )
        if self.seeds % self.blocks:
            raise ValueError(
                f"seeds ({self.seeds}) must be divisible by blocks ({self.blocks}): each block confirms on S / R "
                f"seeds; the nearest that is: {max(1, round(self.seeds / self.blocks)) * self.blocks}"
            )
        return self

    @property
    def known(self) -> dict[str, Technique]:
        """Built-in and own techniques by name."""
        return catalogue(self.techniques)

    def technique(self, arm: str) -> Technique | None:
        """The arm's technique; None for the baseline and the reference arms."""
        return self.known.get(arm)

    def base_recipe(self, arm: str) -> Recipe:
        """The arm's recipe before tuning. Raises UserError."""
        technique = self.technique(arm)
        return technique.apply(self.recipe) if technique else self.recipe

    def shared_space(self, recipe: Recipe, small_data: bool) -> Space:
        """Nuisance dimensions of an arm with this recipe: equal units, per-optimizer lr range."""
        space = self.space or {"lr": lr_dimension(recipe, small_data)}
        return {field: dimension for field, dimension in space.items() if field not in self.fixed}

    def spaces(self, arm: str, small_data: bool) -> tuple[Space, Space]:
        """(shared dimensions, the technique's own knobs) of an arm."""
        technique = self.technique(arm)
        shared = self.shared_space(self.base_recipe(arm), small_data)
        if technique is None:
            return shared, {}
        return {
            field: technique.space.get(field, dimension) for field, dimension in shared.items()
        }, technique.knobs

    def points(self, arm: str, small_data: bool) -> int:
        """Tuning points of an arm: K, or one where --set has left nothing to tune."""
        shared, own = self.spaces(arm, small_data)
        return self.tune_trials if shared or own else 1

    def seed_set(self, phase: str, n: int, first: int = 0) -> list[int]:
        """n seeds of a phase; sets of different phases and of different experiment seeds are disjoint."""
        start = self.seed * 100_000 + SEED_SETS[phase] + first
        return list(range(start, start + n))

    def tau(self, n_train: int) -> int:
        """The budget in examples."""
        return max(1, round(self.budget * n_train))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_values` reads back."""
        values: dict[str, Any] = json.loads(self.model_dump_json())
        return values

    @classmethod
    def from_values(cls, values: dict[str, Any], source: str) -> Experiment:
        """Validate plain values. Raises UserError in one line."""
        try:
            experiment = cls.model_validate(values)
        except ValidationError as error:
            raise UserError(explain_experiment(error, source)) from None
        known = experiment.known
        for arm in experiment.arms:
            find(arm, known)
            experiment.base_recipe(arm)
        check_space(experiment.space, f"{source}: space")
        check_space(experiment.search.space, f"{source}: search.space")
        return experiment


def defaults(data: str, small_data: bool) -> dict[str, Any]:
    """METHOD's defaults for a data set, as plain values; no arms and no search trials."""
    if small_data:
        recipe = Recipe(hidden=(128,), latent_size=8, batch_size=64)
        budget = 40.0
    else:
        recipe = Recipe(hidden=(500,), latent_size=30, batch_size=256)
        budget = 10.0
    name = re.sub(r"[^\w.+-]", "-", Path(data).stem if Path(data).suffix in (".npy", ".npz") else data)
    return {"name": name, "data": data, "budget": budget, "recipe": json.loads(recipe.to_json())}


def build(
    values: dict[str, Any],
    fixed: dict[str, Any],
    small_data: bool,
    stored: Experiment | None,
    source: str,
) -> Experiment:
    """An Experiment from the defaults, what is stored under the name, a file's or flags' values and --set.

    `values` must hold `data`; its `fallback` (arms, search) stands in where neither it nor what is stored
    says anything. Raises UserError when a value is bad, or when it would change what the
    stored experiment has already trained."""
    merged = defaults(values["data"], small_data)
    if stored is not None:
        merged |= stored.to_json()
    given = {key: value for key, value in values.items() if value is not None}
    fallback = given.pop("fallback", {})
    if "arms" in fallback and "arms" not in given and not merged.get("arms"):
        given["arms"] = fallback["arms"]
    search = given.pop("search", {})
    recipe = given.pop("recipe", {})
    if not isinstance(recipe, dict) or not isinstance(search, dict):
        raise UserError(f"{source}: [recipe] and [search] are tables.")
    merged |= given
    merged["recipe"] = merged["recipe"] | recipe | fixed
    merged["search"] = merged.get("search", {}) | {k: v for k, v in search.items() if v is not None}
    merged["search"]["trials"] = merged["search"].get("trials") or fallback.get("search_trials", 0)
    merged["fixed"] = tuple(dict.fromkeys([*merged.get("fixed", ()), *fixed]))
    if "arms" in given:
        arms = _arm_names(given["arms"], given.get("techniques", merged.get("techniques", {})), source)
        # Arms once compared stay in the family: dropping one afterwards would be choosing by result.
        merged["arms"] = tuple(dict.fromkeys([*(stored.arms if stored else ()), *arms]))
    space = search_space(small_data) | merged["search"].get("space", {})
    if stored is None or not stored.search.trials:
        merged["search"]["space"] = {field: dim for field, dim in space.items() if field not in fixed}
    experiment = Experiment.from_values(merged, source)
    if stored is not None:
        _refuse_changes(stored, experiment)
    return experiment


def read_toml(path: Path) -> dict[str, Any]:
    """The values of an experiment file. Raises UserError."""
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"No experiment file {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"The experiment file {path} can't be read: {error}") from None
    unknown = set(values) - set(Experiment.model_fields)
    if unknown:
        raise UserError(unknown_key(sorted(unknown)[0], str(path)))
    return values


def unknown_key(key: str, source: str) -> str:
    """The message for a key that no experiment has."""
    import difflib

    near = difflib.get_close_matches(key, Experiment.model_fields, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else f"Keys: {', '.join(Experiment.model_fields)}."
    return f"{source}: an experiment has no '{key}'. {hint}"


def explain_experiment(error: ValidationError, source: str) -> str:
    """A pydantic error as one line; unknown keys get the nearest known one."""
    for item in error.errors():
        if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
            return unknown_key(str(item["loc"][0]), source)
    return explain(error, source)


def _arm_names(arms: Any, own: dict[str, Any], source: str) -> tuple[str, ...]:
    """Arms as given: "all", or names; "baseline" is always there and may be named."""
    if isinstance(arms, str):
        arms = [arm.strip() for arm in arms.split(",") if arm.strip()]
    if not isinstance(arms, list | tuple) or not all(isinstance(arm, str) for arm in arms):
        raise UserError(f"{source}: arms is a list of names.")
    known = catalogue(own)
    names: list[str] = []
    for arm in arms:
        if arm == "all":
            names += [name for name, technique in known.items() if technique.family != "null"]
        elif arm == "default":
            names += DEFAULT_ARMS
        elif arm != "baseline":
            names.append(find(arm, known).name)
    if not names:
        raise UserError(f"{source}: a comparison needs at least one arm beside the baseline.")
    return tuple(dict.fromkeys(names))


def _refuse_changes(stored: Experiment, wanted: Experiment) -> None:
    """What has been trained stays comparable: workload, baseline and tuning budget are fixed by the first run.

    Raises UserError with both values."""
    fixed: list[tuple[str, Any, Any]] = [
        ("data", stored.data, wanted.data),
        ("budget", stored.budget, wanted.budget),
        ("seed", stored.seed, wanted.seed),
        ("likelihood", stored.recipe.likelihood, wanted.recipe.likelihood),
    ]
    if stored.arms:
        fixed += [
            (key, getattr(stored, key), getattr(wanted, key)) for key in ("tune_trials", "blocks", "target")
        ]
        fixed += [("stop_at_target", stored.stop_at_target, wanted.stop_at_target)]
        fixed += [
            (f"recipe.{field}", getattr(stored.recipe, field), getattr(wanted.recipe, field))
            for field in Recipe.model_fields
        ]
        fixed += [("space", _show(stored.space), _show(wanted.space))]
        fixed += [
            (f"techniques.{arm}", stored.techniques[arm], wanted.techniques.get(arm))
            for arm in stored.arms
            if arm in stored.techniques
        ]
        if wanted.seeds < stored.seeds:
            fixed.append(("seeds", stored.seeds, wanted.seeds))
    if stored.search.trials:
        if wanted.search.trials < stored.search.trials:
            fixed.append(("search trials", stored.search.trials, wanted.search.trials))
        fixed += [("search.space", _show(stored.search.space), _show(wanted.search.space))]
    for key, before, now in fixed:
        if before != now:
            raise UserError(
                f"Experiment '{stored.name}' was started with {key} = {before!r}, not {now!r}: "
                f"use another --name, or leave {key} as it is."
            )


def _show(space: Space) -> dict[str, Any]:
    return {field: dimension.model_dump(exclude_none=True) for field, dimension in space.items()}


__all__ = ["Dimension", "Experiment", "SearchPlan", "build", "defaults", "read_toml"]
