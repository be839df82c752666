"""Experiment: workload, arms, budgets and seeds of one named comparison; stored as JSON."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from study.design.phases import (
    FINALISTS,
    GUIDED_ROUNDS,
    INDEPENDENT_SEEDS,
    MAX_TUNE_SEEDS,
    NULL_ARMS_APART,
    REFERENCE_SEEDS,
    RUN_TO_TAU,
    SEED_SETS,
    SPLITS_APART,
)
from study.design.space import (
    SOBOL_DIMENSIONS,
    Space,
    check_corner,
    check_space,
    check_use,
    is_range,
    lr_dimension,
)
from study.design.techniques import Technique, catalogue, find
from study.design.workload import Workload, is_small
from study.terms import BASELINE, Phase
from vae.code import is_reference, label
from vae.errors import UserError
from vae.recipe import Recipe, is_field, unknown_field
from vae.table import Table, explain

#: What is trained on where neither the command nor an earlier run says anything.
DATA = "digits"

SamplerName = Literal["tpe", "random", "qmc", "gp"]
PrunerName = Literal["none", "median", "percentile", "halving", "hyperband", "patient"]

#: Likelihoods that give probabilities, or a cross-entropy, and not densities: no loss is below 0 nats.
NON_NEGATIVE = frozenset({"cross_entropy", "bernoulli", "dynamic_bernoulli", "discretised_logistic"})

#: Below INDEPENDENT_SEEDS, or seed sets would meet.
Count = Annotated[int, Field(ge=1, lt=INDEPENDENT_SEEDS)]


class SearchPlan(Table):
    """The joint search: one Optuna study in which everything is sampled."""

    trials: Annotated[int, Field(ge=0, le=9_999)] = 0
    """Total number of trials; running again tops up."""
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    patience: Annotated[int, Field(ge=0)] = 0
    """Grid points without a better validation loss after which a trial stops; 0: never."""
    space: Space = Field(default_factory=dict)


class Experiment(Table):
    """Everything that decides what is trained under one name; the resolved form is stored in the database."""

    name: str
    data: str
    """A named data set or the path of a .npy or .npz file or of a folder of images."""
    seed: Annotated[int, Field(ge=0, lt=SPLITS_APART)] = 0
    """Seeds the split of the data, the Sobol points and every training."""
    budget: Annotated[float, Field(gt=0, le=100_000)]
    """tau in epochs of the training split."""
    recipe: Recipe
    """The baseline."""
    arms: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Techniques compared with the baseline, which is always there. Empty: no comparison."""
    tune_trials: Count = 8
    """K: tuning points per arm and block."""
    method: Literal[1, 2] = 2
    """By which rules arms are tuned and judged. 2: guided tuning, whose variance is in the interval. 1, of experiments
    begun before: the best of K points, of which finalists run again."""
    tune_seeds: Annotated[int, Field(ge=1, le=MAX_TUNE_SEEDS)] = 1
    """By method 1: seeds on which an arm's two best tuning points are judged; 1: the first alone."""
    seeds: Count = 20
    """S: confirmation seeds per arm, shared out over the blocks."""
    looks: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Totals of seeds at which verdicts could be read before there were as many as now: each was a look."""
    blocks: Count = 1
    """R: how often tuning and confirmation are repeated."""
    split_per_block: bool = True
    """Each block has a split of the data of its own, and a target on it. Not in experiments begun before, whose blocks
    share one."""
    target: float | None = None
    """Validation loss to reach, nats per example; none: calibrated on the baseline."""
    target_at: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of tau at which the baseline's median loss is the calibrated target. The later, the more seeds miss it:
    on digits at 0.75 the tuned baseline itself missed on some of ten fresh seeds in three of four comparisons, at 0.5
    in none of twelve."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """A speed-up within this margin of 1 is no verdict."""
    stop_at_target: bool = True
    """Confirmation trials end at the target instead of at tau; by method 2 but for each arm's first five."""
    combine: bool = False
    """Also build and test the combined arm."""
    space: Space = Field(default_factory=dict)
    """Nuisance hyperparameters tuned in every arm; empty: lr alone, in its optimizer's range."""
    techniques: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The user's own techniques."""
    fixed: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Recipe fields that --set has fixed: tuned nowhere but as a technique's own knob."""
    search: SearchPlan = SearchPlan()
    sources: dict[str, str] = Field(default_factory=dict)
    """Code of the user's own that is named here, and the SHA-256 with which it was first used: `study.design.own`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not re.fullmatch(r"\w[\w.+-]{0,63}", self.name):
            raise ValueError(
                f"the name {self.name!r} must have 1 to 64 letters, digits, '.', '_', '+' or '-', the first a letter "
                "or digit; choose with --name"
            )
        if self.seeds % self.blocks:
            raise ValueError(
                f"seeds ({self.seeds}) must be divisible by blocks ({self.blocks}): each block confirms on S / R "
                f"seeds; the nearest that is: {max(1, round(self.seeds / self.blocks)) * self.blocks}"
            )
        if self.guided and self.tune_seeds > 1:
            raise ValueError(
                f"tune_seeds ({self.tune_seeds}) is of experiments begun before: tuning has rounds on seeds of their "
                "own now; leave it out"
            )
        likelihood = self.recipe.likelihood
        if self.target is not None and self.target <= 0 and likelihood in NON_NEGATIVE:
            raise ValueError(
                f"target = {self.target:g} is out of reach: no {likelihood} loss is below 0 nats; give a higher one, "
                "or none to have it calibrated"
            )
        return self

    @property
    def guided(self) -> bool:
        """Whether tuning has guided rounds, and its variance is in every interval."""
        return self.method >= 2

    @cached_property
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

    @property
    def shared_fields(self) -> tuple[str, ...]:
        """Recipe fields that are tuned in every arm: those of `space`, or lr, without what --set has fixed."""
        return tuple(field for field in (self.space or ("lr",)) if field not in self.fixed)

    def shared_space(self, recipe: Recipe, workload: Workload) -> Space:
        """Nuisance dimensions of an arm with this recipe: equal units, per-optimizer lr range."""
        space = self.space or {"lr": lr_dimension(recipe, workload.small_data)}
        return {field: space[field] for field in self.shared_fields}

    def knobs(self, arm: str) -> Space:
        """The technique's own dimensions of an arm, without those that are tuned in every arm."""
        technique = self.technique(arm)
        knobs = technique.knobs if technique else {}
        return {field: dimension for field, dimension in knobs.items() if field not in self.shared_fields}

    def spaces(self, arm: str, workload: Workload) -> tuple[Space, Space]:
        """(shared dimensions, the technique's own knobs) of an arm."""
        technique = self.technique(arm)
        shared = self.shared_space(self.base_recipe(arm), workload)
        return technique.in_place(shared) if technique else shared, self.knobs(arm)

    def points(self, arm: str) -> int:
        """Tuning points of an arm: K, or one where --set has left nothing to tune."""
        return self.tune_trials if self.shared_fields or self.knobs(arm) else 1

    def guided_points(self, arm: str) -> int:
        """Trials of an arm's guided rounds: four a round, or a pair a dimension; none where there are but choices."""
        known = {field: self.space[field] for field in self.shared_fields if field in self.space}
        known |= self.knobs(arm)
        if "lr_schedule" not in known and self.base_recipe(arm).lr_schedule == "constant":
            known.pop("horizon", None)
        n = sum(is_range(*dimension) for dimension in known.items())
        n += "lr" in self.shared_fields and "lr" not in self.space
        if not self.guided or self.points(arm) < 2 or not n:
            return 0
        return GUIDED_ROUNDS * (4 if n == 1 else 2 * n)

    def finalists(self, arm: str) -> int:
        """Tuning points of an arm that are run again on other seeds; 0: the best by the first seed wins."""
        return FINALISTS if self.tune_seeds > 1 and self.points(arm) > 1 else 0

    @property
    def has_finalists(self) -> bool:
        """Whether any arm's tuning is judged by more seeds than one."""
        return any(map(self.finalists, (BASELINE, *self.arms)))

    def final_seeds(self, arm: str, block: int) -> list[int]:
        """The seeds on which a block's finalists are run again, the same in every arm."""
        first = (MAX_TUNE_SEEDS - 1) * (block - 1 + self.seeds_apart(arm))
        return self.seed_set(Phase.FINAL, self.tune_seeds - 1, first)

    def seeds_apart(self, arm: str) -> int:
        """How far an arm's seeds are from the other arms': 0 but for what is tuned independently of them."""
        technique = self.technique(arm)
        if technique is None or not technique.independent:
            return 0
        return INDEPENDENT_SEEDS + NULL_ARMS_APART * self.independent_arms.index(arm)

    @property
    def is_aa(self) -> bool:
        """Whether every arm is the baseline again: how often the method errs is all that is asked."""
        return bool(self.arms) and len(self.independent_arms) == len(self.arms)

    def split_seed(self, block: int) -> int:
        """The seed of a block's split of the data; those of different experiment seeds never meet."""
        return self.seed + SPLITS_APART * (self.split_block(block) - 1)

    def split_block(self, block: int) -> int:
        """The first block with the same split of the data, and so the same target."""
        return block if self.split_per_block else 1

    def split_blocks(self) -> range:
        """The blocks that have a split of the data of their own."""
        return range(1, self.split_block(self.blocks) + 1)

    @property
    def run_to_tau(self) -> int:
        """The first confirmation runs of each arm that go on to tau, target or not."""
        if not self.stop_at_target:
            return self.seeds
        return RUN_TO_TAU if self.guided and not self.is_aa else 0

    @property
    def reference_seeds(self) -> int:
        """Confirmation runs of an arm outside the family."""
        return min(self.seeds, REFERENCE_SEEDS) if self.guided else self.seeds

    @property
    def independent_arms(self) -> list[str]:
        """The arms of an A/A test: each is the baseline again, tuned on points and seeds of its own."""
        return [arm for arm in self.arms if (known := self.technique(arm)) is not None and known.independent]

    def guided_seed(self, arm: str, block: int, number: int) -> int:
        """The seed of a round of guided tuning (from 1), the same in every arm."""
        first = GUIDED_ROUNDS * (block - 1 + self.seeds_apart(arm)) + number - 1
        return self.seed_set(Phase.GUIDED, 1, first)[0]

    def confirm_seeds(self, arm: str, block: int) -> list[tuple[int, int]]:
        """(index, seed) of a block's confirmation runs: every R-th of S, so topping S up moves none; the same in every
        arm, but by method 1 for an arm that is tuned independently."""
        apart = 0 if self.guided else self.seeds_apart(arm)
        seeds = self.seed_set(Phase.CONFIRM, self.seeds)
        return [(i, seeds[i] + apart) for i in range(block - 1, len(seeds), self.blocks)]

    def seed_set(self, phase: Phase, n: int, first: int = 0) -> list[int]:
        """n seeds of a phase; sets of different phases and of different experiment seeds are disjoint."""
        start = self.seed * 100_000 + SEED_SETS[phase] + first
        return list(range(start, start + n))

    @property
    def references(self) -> tuple[str, ...]:
        """Code of the user's own that is named for the data, a network or an optimizer, in any recipe or range."""
        bases = [self.base_recipe(arm) for arm in (BASELINE, *self.arms)]
        spaces = [self.space, *(self.knobs(arm) for arm in self.arms), self.search.space]
        chosen = [
            choice
            for space in spaces
            for field in ("model", "optimizer")
            if field in space
            for choice in space[field].choices or ()
        ]
        named = [self.data, *(name for base in bases for name in base.references), *chosen]
        return tuple(dict.fromkeys(name for name in named if is_reference(name)))

    def workload(self, n_train: int) -> Workload:
        """What every arm shares, on a training split of n_train examples."""
        return Workload.of(self.data, n_train, self.budget)

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
            raise UserError(explain(error, source)) from None
        known = experiment.known
        check_space(experiment.space, f"{source}: space")
        check_space(experiment.search.space, f"{source}: search.space")
        if experiment.search.trials:
            check_corner(experiment.search.space, experiment.recipe, f"{source}: search.space")
            check_use(experiment.search.space, experiment.recipe, f"{source}: search.space")
        for field in experiment.fixed:
            if not is_field(field):
                raise UserError(f"{source}: {unknown_field(field)}")
        for arm in (BASELINE, *experiment.arms):
            if arm != BASELINE:
                find(arm, known)
            experiment._check_arm(arm, source)
        return experiment

    def _check_arm(self, arm: str, source: str) -> None:
        shared, knobs = self.shared_fields, self.knobs(arm)
        n_dimensions = len(shared) + len(knobs)
        if n_dimensions > SOBOL_DIMENSIONS:
            raise UserError(
                f"{source}: at most {SOBOL_DIMENSIONS} dimensions can be tuned in an arm, and '{arm}' has "
                f"{n_dimensions}."
            )
        technique = self.technique(arm)
        known = {field: self.space[field] for field in shared if field in self.space}
        known = technique.in_place(known) if technique else known
        base = self.base_recipe(arm)
        check_corner(known | knobs, base, f"{source}: arm '{arm}'")
        check_use(known | knobs, base, f"{source}: arm '{arm}'")
        stray = set(technique.space) - set(shared) - {"lr"} if technique else ()
        if stray:
            raise UserError(
                f"{source}: techniques.{arm}.space replaces the range of what every arm tunes ({', '.join(shared)}), "
                f"not {sorted(stray)[0]}: put that under knobs."
            )


def default_name(data: str) -> str:
    """The name of an experiment on that data that is given none: of code.py:flowers it is code-flowers."""
    stem = Path(data).stem if Path(data).suffix in (".npy", ".npz") else data
    if is_reference(data):
        stem = label(data)
    return re.sub(r"[^\w.+-]", "-", stem).lstrip(".+-")[:64]


def defaults(data: str, n_train: int) -> dict[str, Any]:
    """The defaults for a data set with n_train training examples, as plain values; no arms and no search trials."""
    if is_small(n_train):
        recipe = Recipe(hidden=(128,), latent_size=8, batch_size=min(64, n_train))
        budget = 40.0
    else:
        recipe = Recipe(hidden=(500,), latent_size=30, batch_size=256)
        budget = 10.0
    return {
        "name": default_name(data),
        "data": data,
        "budget": budget,
        "recipe": json.loads(recipe.to_json()),
    }
