"""Techniques: named changes to a baseline recipe. The catalogue is techniques.toml, an experiment file may add to it;
one validator reads both."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from study.design.space import Space, check_space
from study.terms import BASELINE, COMBINED, REFERENCE_ARMS, SEARCH
from vae.errors import UserError, did_you_mean
from vae.recipe import Recipe, is_field, unknown_field
from vae.table import Table, explain

Family = Literal[
    "initialisation",
    "mini-batches",
    "learning-rate decay",
    "regularisation",
    "optimizer",
    "precision",
    "compilation",
    "architecture",
    "null",
]


class Technique(Table):
    """A change to the baseline recipe. The arm `name` is the baseline plus this change, tuned anew."""

    name: str
    family: Family
    slot: str
    """Techniques of one slot exclude each other in the combined arm."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Recipe fields set to a value."""
    scale: dict[str, float] = Field(default_factory=dict)
    """Recipe fields multiplied by a factor of the baseline's value, rounded."""
    add_layers: int = 0
    """Hidden layers added, as wide as the baseline's last."""
    knobs: Space = Field(default_factory=dict)
    """The technique's own hyperparameters, tuned together with the shared ones."""
    space: Space = Field(default_factory=dict)
    """Replaces the range of shared dimensions, such as lr, in this arm."""
    different_model: bool = False
    """Changes the function that is trained: labelled, and kept out of the combined arm."""
    independent: bool = False
    """Has a Sobol scramble and seeds of its own: the second baseline of an A/A test."""
    why: str = ""
    """One line: why it might speed training."""
    source: str = ""

    @property
    def change(self) -> str:
        """What it changes and what is tuned with it, in a few words."""
        parts = [f"{field} = {value}" for field, value in self.overrides.items()]
        parts += [f"{field} x {factor:g}" for field, factor in self.scale.items()]
        if self.add_layers:
            parts.append(f"+{self.add_layers} hidden layer{'s' if self.add_layers > 1 else ''}")
        if self.knobs:
            parts.append(f"tunes {', '.join(self.knobs)}")
        return ", ".join(parts) or "nothing"

    def in_place(self, shared: Space) -> Space:
        """The shared dimensions with this technique's own ranges in the place of the usual ones."""
        ranges = self.knobs | self.space
        return {field: ranges.get(field, dimension) for field, dimension in shared.items()}

    def apply(self, baseline: Recipe) -> Recipe:
        """The baseline recipe with the change made; knobs keep the baseline's values. Raises UserError."""
        changes = dict(self.overrides)
        for field, factor in self.scale.items():
            value = baseline.value(field)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UserError(
                    f"Technique '{self.name}' scales {field}, which is {value!r} in the baseline."
                )
            changes[field] = max(1, round(value * factor)) if isinstance(value, int) else value * factor
        if self.add_layers:
            changes["hidden"] = (*baseline.hidden, *([baseline.hidden[-1]] * self.add_layers))
        try:
            return baseline.replace(**changes)
        except UserError as error:
            raise UserError(f"Technique '{self.name}': {error}") from None


#: The arms `run` and `compare` take unless told otherwise: one or two of each family, none that compiles.
DEFAULT_ARMS = (
    "he",
    "output-bias",
    "batch-half",
    "batch-double",
    "cosine",
    "one-cycle",
    "kl-warm-up",
    "beta-below-1",
    "sgd-momentum",
    "muon",
)

RESERVED = frozenset({"all", "default", BASELINE, SEARCH, COMBINED, *REFERENCE_ARMS})
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")


def _technique(name: str, fields: Any, source: str) -> Technique:
    """The technique that a TOML table defines. Raises UserError."""
    if not NAME.fullmatch(name):
        raise UserError(f"{source}: a technique's name has small letters, digits and hyphens, not '{name}'.")
    if name in RESERVED or name.startswith(f"{COMBINED}-"):
        raise UserError(f"{source}: the name '{name}' is taken; choose another.")
    if not isinstance(fields, dict):
        raise UserError(f"{source} must be a table of fields, not {fields!r}.")
    usual = {"slot": name, "family": "regularisation", "different_model": _is_of_the_network(fields)}
    try:
        technique = Technique.model_validate(usual | fields | {"name": name})
    except ValidationError as error:
        raise UserError(explain(error, source)) from None
    for field in [*technique.overrides, *technique.scale]:
        if not is_field(field):
            raise UserError(f"{source}: {unknown_field(field)}")
    for space in (technique.knobs, technique.space):
        check_space(space, source)
    return technique


def _is_of_the_network(fields: dict[str, Any]) -> bool:
    """Whether a technique sets or tunes another network or its options."""
    tables = (fields.get(key) for key in ("overrides", "scale", "knobs"))
    names = [name for table in tables if isinstance(table, dict) for name in table]
    return any(str(name).partition(".")[0] in ("model", "model_options") for name in names)


def _built_in() -> tuple[Technique, ...]:
    with Path(__file__).with_name("techniques.toml").open("rb") as file:
        tables = tomllib.load(file)
    return tuple(_technique(name, fields, f"techniques.toml: {name}") for name, fields in tables.items())


#: The catalogue that techniques.toml holds.
BUILT_IN = _built_in()


def catalogue(own: dict[str, dict[str, Any]] | None = None) -> dict[str, Technique]:
    """Built-in techniques and the user's, by name. Raises UserError for a bad definition of the user's."""
    known = {technique.name: technique for technique in BUILT_IN}
    for name, fields in (own or {}).items():
        source = f"techniques.{name}"
        if name in known:
            raise UserError(f"{source}: the name '{name}' is taken; choose another.")
        known[name] = _technique(name, fields, source)
    return known


def find(name: str, known: dict[str, Technique]) -> Technique:
    """The technique of that name. Raises UserError with the nearest name and where all are told."""
    if name in known:
        return known[name]
    raise UserError(
        f"Unknown arm '{name}'. {did_you_mean(name, known)} What each is: python -m study techniques."
    )
