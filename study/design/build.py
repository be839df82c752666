"""From what a command, its file and an earlier run say to one Experiment; what may not change is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from study.design.experiment import DATA, Experiment, default_name, defaults
from study.design.space import Space, plain, search_space
from study.design.techniques import DEFAULT_ARMS, Technique, catalogue, find
from vae.documents import parse_toml, read_text
from vae.errors import UserError, did_you_mean
from vae.recipe import Recipe, changed

#: What a search with a comparison takes where nothing is said.
RUN_DEFAULTS = {"arms": "default", "search": {"trials": 30}}


@dataclass(frozen=True)
class Request:
    """What a command asks for, as it was asked; what it leaves out, `build` decides."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Experiment as the experiment file and the flags give them; None is left out."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Recipe fields that --set fixes."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The command's own `arms` and `search`: they stand in where neither the values nor an earlier run has any."""
    source: str = "command line"
    """Where the values are from, for messages."""

    @property
    def name(self) -> str:
        """Name of the experiment: the given one, or the data's."""
        name: str | None = self.values.get("name")
        return default_name(self.data or DATA) if name is None else name

    @property
    def data(self) -> str | None:
        """The data asked for; None: that of an earlier run under the name, or DATA."""
        data: str | None = self.values.get("data")
        return data

    def having(self, **values: Any) -> Request:
        """The same request with these values in the place of its own."""
        return replace(self, values={**self.values, **values})


def read_toml(path: Path) -> dict[str, Any]:
    """The values of an experiment file. Raises UserError."""
    try:
        values = parse_toml(read_text(path))
    except FileNotFoundError:
        raise UserError(f"No experiment file {path}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"The experiment file {path} can't be read: {error}") from None
    unknown = sorted(set(values) - set(Experiment.model_fields))
    if unknown:
        hint = did_you_mean(unknown[0], Experiment.model_fields)
        raise UserError(f"{path}: an experiment has no '{unknown[0]}'. {hint}")
    for key in ("recipe", "space", "techniques", "search"):
        _table(values.get(key, {}), f"{path}: {key}")
    fixed = values.get("fixed", [])
    if not (isinstance(fixed, list) and all(isinstance(field, str) for field in fixed)):
        raise UserError(f"{path}: fixed must be a list of recipe fields, not {fixed!r}.")
    for key in ("data", "name"):
        if not isinstance(values.get(key, ""), str):
            raise UserError(f"{path}: {key} must be a string, not {values[key]!r}.")
    return values


def build(request: Request, n_train: int, stored: Experiment | None) -> Experiment:
    """An Experiment from the defaults, what is stored under the name, a file's or flags' values and --set.

    Pure and cheap, so a command calls it whenever it has learnt more: before the data is there (its size is a
    guess then), with the data, and under the lock in which the experiment is stored. Raises UserError when a value
    is bad, or when it would change what the stored experiment has already trained."""
    source, fixed = request.source, dict(request.fixed)
    data = request.data
    if data is None:
        data = DATA if stored is None else stored.data
    if not data.strip():
        raise UserError(f"{source}: data is {data!r}: give a data set's name or a file, or leave it out.")
    merged = defaults(data, n_train)
    if stored is not None:
        merged |= stored.to_json()
    given = {key: value for key, value in request.values.items() if value is not None}
    search, recipe = given.pop("search", {}), given.pop("recipe", {})
    if "arms" in request.defaults and "arms" not in given and not merged.get("arms"):
        given["arms"] = request.defaults["arms"]
    if "seed" in recipe | fixed:
        raise UserError(f"{source}: a recipe's seed can't be set: every training has its own. See --seed.")
    merged |= given
    merged["recipe"] = changed(changed(merged["recipe"], recipe), fixed)
    merged["fixed"] = tuple(dict.fromkeys([*merged.get("fixed", ()), *fixed]))
    if "blocks" in given and "seeds" not in given | (stored.to_json() if stored and stored.arms else {}):
        merged["seeds"] = _divisible(Experiment.model_fields["seeds"].default, given["blocks"])
    offered: set[str] = set()
    if "arms" in given:
        arms, offered = _arm_names(given["arms"], merged.get("techniques", {}), source)
        # Arms once compared stay in the family: dropping one afterwards would be choosing by result.
        merged["arms"] = tuple(dict.fromkeys([*(stored.arms if stored else ()), *arms]))
        offered -= set(stored.arms if stored else ())
    merged["looks"] = _looks(stored, merged["seeds"]) if stored is not None and "seeds" in merged else ()
    before = merged.get("search", {})
    merged["search"] = before | search
    if not before.get("trials") and "trials" not in search:
        merged["search"] |= request.defaults.get("search", {})
    base = _base(merged, source)
    space = before["space"] if before.get("trials") else search_space(n_train, base)
    space = space | _table(search.get("space", {}), f"{source}: search.space")
    merged["search"]["space"] = {f: d for f, d in space.items() if f not in merged["fixed"]}
    known = catalogue(merged.get("techniques", {}))
    arms = tuple(merged.get("arms", ()))
    kept = tuple(arm for arm in arms if arm not in offered or _fits(known[arm], base, n_train))
    experiment = Experiment.from_values(merged | {"arms": kept or arms}, source)
    if stored is not None:
        _refuse_changes(stored, experiment)
    return experiment


def _divisible(seeds: int, blocks: Any) -> int:
    """As many seeds, or as few more as each block needs to have its share; a bad number of blocks is refused later."""
    return -(-seeds // blocks) * blocks if isinstance(blocks, int) and blocks > 0 else seeds


def _base(merged: dict[str, Any], source: str) -> Recipe:
    """The baseline's recipe. Raises UserError as the whole experiment would."""
    try:
        return Recipe.from_dict(merged["recipe"])
    except UserError:
        Experiment.from_values({**merged, "arms": (), "search": {}}, source)
        raise


def _fits(technique: Technique, base: Recipe, n_train: int) -> bool:
    """Whether a technique changes something that the base's network has, and its batch isn't larger than the data."""
    try:
        return technique.apply(base).batch(n_train) <= n_train
    except UserError:
        return False


def _arm_names(arms: Any, own: dict[str, Any], source: str) -> tuple[tuple[str, ...], set[str]]:
    """(arms as given: "all", "default", or names; those that were not named, and may be left out where they don't
    fit the data). "baseline" is always there and may be named."""
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
    return tuple(dict.fromkeys(names)), set(names) - set(arms)


def _looks(stored: Experiment, seeds: Any) -> tuple[int, ...]:
    """Totals at which verdicts could be read before: topping up the seeds of what has been compared is a look more."""
    raised = bool(stored.arms) and isinstance(seeds, int) and seeds > stored.seeds
    return (*stored.looks, stored.seeds) if raised else stored.looks


def _refuse_changes(stored: Experiment, wanted: Experiment) -> None:
    """What has been trained stays comparable: workload, baseline and tuning budget are fixed by the first run.

    Raises UserError with both values."""
    fixed: list[tuple[str, Any, Any]] = [
        (key, getattr(stored, key), getattr(wanted, key)) for key in ("budget", "seed")
    ]
    fixed += [("likelihood", stored.recipe.likelihood, wanted.recipe.likelihood)]
    if not (_is_file(stored.data) and _is_file(wanted.data)):  # a file may move: its content is checked
        fixed = [("data", stored.data, wanted.data), *fixed]
    if stored.arms or stored.search.trials:
        fixed += [
            (f"recipe.{field}", getattr(stored.recipe, field), getattr(wanted.recipe, field))
            for field in Recipe.model_fields
        ]
    if stored.arms:
        keys = (
            "method",
            "tune_trials",
            "tune_seeds",
            "blocks",
            "split_per_block",
            "target",
            "target_at",
            "stop_at_target",
            "fixed",
        )
        fixed += [(key, getattr(stored, key), getattr(wanted, key)) for key in keys]
        fixed += _ranges("space", stored.space, wanted.space)
        fixed += [
            (f"techniques.{arm}", stored.techniques[arm], wanted.techniques.get(arm))
            for arm in stored.arms
            if arm in stored.techniques
        ]
    if stored.search.trials:
        fixed += _ranges("search.space", stored.search.space, wanted.search.space)
    for key, before, now in fixed:
        if before != now:
            raise UserError(
                f"Experiment '{stored.name}' was started with {key} = {before!r}, not {now!r}: "
                f"use another --name, or leave {key} as it is."
            )
    totals = [("search.trials", stored.search.trials, wanted.search.trials)]
    totals += [("seeds", stored.seeds, wanted.seeds)] if stored.arms else []
    for key, before, now in totals:
        if now < before:
            raise UserError(
                f"Experiment '{stored.name}' was started with {key} = {before}, not {now}: a count is a total and "
                "can only be raised. Use another --name, or leave it as it is."
            )


def _ranges(key: str, stored: Space, wanted: Space) -> list[tuple[str, Any, Any]]:
    before, now = plain(stored), plain(wanted)
    return [(f"{key}.{field}", before.get(field), now.get(field)) for field in before | now]


def _is_file(data: str) -> bool:
    return Path(data).suffix in (".npy", ".npz")


def _table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} must be a table, not {value!r}.")
    return value
