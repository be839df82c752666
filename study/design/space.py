"""Search spaces: ranges of recipe fields, and Sobol points in them. No Optuna in here (see `suggest.py`): a list of the
techniques does without it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from study.design.workload import is_small
from vae.code import is_reference
from vae.errors import UserError
from vae.networks import NETWORK_FIELDS, NETWORKS, OWN_NETWORK
from vae.recipe import (
    SGD_FAMILY,
    TABLES,
    Recipe,
    changed,
    is_field,
    unknown_field,
)
from vae.table import Table

#: Sobol points always have this many dimensions, of which a space uses the first: an arm's own knobs
#: then leave the shared dimensions as they are in every other arm.
SOBOL_DIMENSIONS = 16

INTEGER_FIELDS = frozenset({"latent_size", "batch_size"})


class Dimension(Table):
    """One tuned recipe field: a range `low`..`high` (both included), on a log scale or not, or `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: Annotated[tuple[Any, ...], Field(strict=False)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _list_is_choices(cls, value: Any) -> Any:
        return {"choices": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("a dimension has either choices or low and high, not both")
            if not self.choices:
                raise ValueError("choices must not be empty")
            return self
        if self.low is None or self.high is None:
            raise ValueError("a dimension needs low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range must start above 0, not at {self.low:g}")
        return self

    def whole(self, field: str) -> bool:
        """Whether the values of this range are whole numbers; those of an option are where both its ends are written
        as such."""
        ends = isinstance(self.low, int) and isinstance(self.high, int)
        return self.choices is None and (field in INTEGER_FIELDS or ("." in field and ends))

    @property
    def stored_choices(self) -> list[Any]:
        """The choices in Optuna's stored form; none of a range."""
        return [_encode(choice) for choice in self.choices or ()]

    def at(self, field: str, unit: float) -> Any:
        """The value at `unit` in [0, 1) of the dimension; Optuna's stored form of it."""
        if self.choices is not None:
            return self.stored_choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        assert self.low is not None
        assert self.high is not None
        if self.log:
            value = math.exp(math.log(self.low) + unit * math.log(self.high / self.low))
        else:
            value = self.low + unit * (self.high - self.low)
        return round(value) if self.whole(field) else min(max(value, self.low), self.high)

    def unit(self, value: float) -> float:
        """Where a value of the range lies in it, as a share from 0 to 1: what `at` takes."""
        assert self.low is not None
        assert self.high is not None
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, float(value)))
        return (at - low) / (high - low)

    def edge(self, value: Any, share: float = 0.05) -> str | None:
        """ "low" or "high" when a tuned value lies in the outer `share` of the range; None inside it."""
        if self.low is None or self.high is None:
            return None
        unit = self.unit(value)
        return "low" if unit <= share else "high" if unit >= 1 - share else None


Space = dict[str, Dimension]


def ends(field: str, dimension: Dimension) -> list[Any]:
    """Every choice, or both ends of a range, as a recipe has them."""
    found = dimension.choices if dimension.choices is not None else (dimension.low, dimension.high)
    return [_typed(field, value) for value in found]


def is_range(field: str, dimension: Dimension) -> bool:
    """Whether any number between its ends is a value: no choices and no whole numbers."""
    return dimension.choices is None and not dimension.whole(field)


def lr_dimension(recipe: Recipe, small_data: bool) -> Dimension:
    """The range of lr that METHOD's defaults give an optimizer's family."""
    if recipe.optimizer in SGD_FAMILY:
        return (
            Dimension(low=1e-4, high=1e-1, log=True)
            if small_data
            else Dimension(low=1e-5, high=1e-2, log=True)
        )
    return (
        Dimension(low=3e-4, high=3e-2, log=True) if small_data else Dimension(low=1e-4, high=1e-2, log=True)
    )


def search_space(n_train: int, base: Recipe) -> Space:
    """What `search` samples unless told otherwise, on n_train training examples, of the fields that say something to
    the base's network; an optimizer of one's own isn't exchanged. The lr range is one that both optimizer families
    use."""
    small_data = is_small(n_train)
    offered = (32, 64, 128) if small_data else (128, 256, 512)
    batches = tuple(batch for batch in offered if batch <= n_train) or (n_train,)
    space = {
        "optimizer": Dimension(choices=("adam", "rmsprop", "momentum", "muon")),
        "lr": Dimension(low=3e-4, high=3e-2, log=True)
        if small_data
        else Dimension(low=1e-4, high=1e-2, log=True),
        "lr_schedule": Dimension(choices=("constant", "cosine", "exponential", "step", "onecycle")),
        "horizon": Dimension(low=0.1, high=1.0),
        "batch_size": Dimension(choices=batches),
        "init": Dimension(choices=("torch", "xavier_uniform", "he_normal", "orthogonal")),
        "latent_size": Dimension(low=4, high=32, log=True)
        if small_data
        else Dimension(low=8, high=64, log=True),
        "beta": Dimension(low=0.5, high=2.0, log=True),
        "beta_warmup": Dimension(low=0.0, high=0.5),
        "weight_decay": Dimension(low=1e-5, high=1e-1, log=True),
    }
    if is_reference(base.optimizer):
        del space["optimizer"]
    if "init" not in NETWORKS.get(base.model, OWN_NETWORK).fields:
        del space["init"]
    return space


def check_space(space: Space, source: str = "space") -> None:
    """Every name is a recipe field and every end of its range a valid value. Raises UserError."""
    for field, dimension in space.items():
        if not is_field(field):
            raise UserError(f"{source}: {unknown_field(field)}")
        if field in TABLES:
            raise UserError(f"{source}: {field} is a table: tune a part of it, {field}.NAME.")
        if field == "seed":
            raise UserError(f"{source}: seed is no hyperparameter to tune; set how many seeds with --seeds.")
        for value in ends(field, dimension):
            if field in INTEGER_FIELDS and isinstance(value, float):
                raise UserError(f"{source}: {field} = {value:g}: must be a whole number")
            # A part of a table is looked at as an option of some network or optimizer: of which one, an arm says.
            some = {"model": "some:network", "optimizer": "some:optimizer"} if "." in field else {}
            Recipe.from_dict(changed(some, {field: value}), source=source)


def check_use(space: Space, base: Recipe, source: str) -> None:
    """What is tuned of the network and the optimizer says something to those of the base. Raises UserError."""
    for field, dimension in space.items():
        if "." in field or field in ("model", "optimizer", *NETWORK_FIELDS):
            for value in ends(field, dimension):
                Recipe.from_dict(changed(base.model_dump(), {field: value}), source)


def plain(space: Space) -> dict[str, Any]:
    """The space as JSON values, which `Dimension.model_validate` reads back."""
    return {field: dimension.model_dump(mode="json", exclude_none=True) for field, dimension in space.items()}


def check_corner(space: Space, base: Recipe, source: str) -> None:
    """The longest warm-up of a space fits the shortest horizon: no point of it is refused when it is
    trained. Raises UserError."""

    def end(field: str, pick: Callable[[Iterable[Any]], Any]) -> Any:
        dimension = space.get(field)
        if dimension is None:
            return base.value(field)
        return pick(dimension.choices or (dimension.low, dimension.high))

    schedule = end("lr_schedule", lambda names: next((n for n in names if n != "constant"), "constant"))
    changes = {"lr_schedule": schedule, "warmup": end("warmup", max), "horizon": end("horizon", min)}
    Recipe.from_dict(changed(base.model_dump(), changes), source)


def sobol_points(shared: Space, own: Space, n: int, seed: int) -> list[dict[str, Any]]:
    """The first n points of a scrambled Sobol sequence: dimensions `shared` (the same in every arm that
    shares them and the seed), then `own`. Values are in Optuna's stored form.

    Raises UserError for more than SOBOL_DIMENSIONS dimensions."""
    fields = [*shared.items(), *((f, d) for f, d in own.items() if f not in shared)]
    if len(fields) > SOBOL_DIMENSIONS:
        raise UserError(f"At most {SOBOL_DIMENSIONS} dimensions can be tuned in an arm, not {len(fields)}.")
    from scipy.stats import qmc  # half a second of imports: only where points are drawn

    # Drawn in full powers of two: the sequence is balanced only then, and its first n points never
    # depend on n.
    sampler = qmc.Sobol(SOBOL_DIMENSIONS, scramble=True, rng=seed)
    units = sampler.random_base2(max(n - 1, 1).bit_length())[:n]
    return [
        {
            field: dimension.at(field, float(unit))
            for (field, dimension), unit in zip(fields, row, strict=False)
        }
        for row in units
    ]


def resolve(params: dict[str, Any], base: Recipe) -> Recipe:
    """The base recipe with stored parameters put in. Raises UserError."""
    return base.replace(**{field: _decode(field, value) for field, value in params.items()})


def _encode(value: Any) -> Any:
    """Optuna stores scalars; a list (hidden widths, an option) travels as JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def _decode(field: str, value: Any) -> Any:
    if field == "hidden" and isinstance(value, str):
        return json.loads(value)
    if "." in field and isinstance(value, str) and value.startswith("["):
        return json.loads(value)
    return _typed(field, value)


def _typed(field: str, value: Any) -> Any:
    whole = field in INTEGER_FIELDS and isinstance(value, float) and value.is_integer()
    return round(value) if whole else value
