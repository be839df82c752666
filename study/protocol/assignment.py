"""What a trial is told: written when it is enqueued, read by whoever runs it and by what is decided from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from study.design.space import Dimension, Space, plain, resolve
from study.terms import Phase, StudyName
from vae.recipe import Recipe

#: The trial attribute that a tuning trial's examples to its target are stored under; there on a hit only.
EXAMPLES_TO_TARGET = "examples_to_target"


@dataclass(frozen=True)
class Assignment:
    """All that one trial is told; in the database its user attributes, which Optuna's dashboard shows."""

    arm: str
    phase: Phase
    block: int
    index: int
    """Which of its phase in its study: with these it is known by, so it is never enqueued twice."""
    base: Recipe | None = None
    """The recipe without the trial's parameters; None in a search, whose trials begin with the experiment's."""
    seed: int | None = None
    """The training's seed; None in a search, where it is the trial's number that decides."""
    space: Space = field(default_factory=dict)
    """The dimensions that the parameters are points of."""
    target: float | None = None
    """Validation loss to reach, nats per example; None: none is known or needed."""
    capped: bool = False
    """It ends when it can't be among its arm's best any more."""
    until: float | None = None
    """Examples after which it ends, in a round of guided tuning."""
    parts: tuple[str, ...] = ()
    """Of the combined arm: the techniques it is made of."""

    def recipe(self, params: Mapping[str, Any]) -> Recipe:
        """What is trained with these parameters. Raises UserError."""
        assert self.base is not None
        return resolve(dict(params), self.base).replace(seed=self.seed)

    def to_attrs(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The user attributes of a trial with these parameters, as JSON values; `recipe` is what it trains."""
        attrs: dict[str, Any] = {
            "arm": self.arm,
            "phase": str(self.phase),
            "block": self.block,
            "index": self.index,
        }
        if self.base is not None:
            attrs |= {"base": self.base.to_json(), "recipe": self.recipe(params).to_json()}
            attrs |= {"seed": self.seed, "space": plain(self.space)}
        if self.target is not None:
            attrs["target"] = self.target
        if self.capped:
            attrs["capped"] = True
        if self.until is not None:
            attrs["until"] = self.until
        if self.parts:
            attrs["parts"] = list(self.parts)
        return attrs

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any], study: StudyName) -> Assignment | None:
        """What `to_attrs` wrote for a trial of that study; None for a trial that isn't one of ours.

        Before there was a `base`, `recipe` held it. Raises UserError for a recipe that is none."""
        phase, index = attrs.get("phase"), attrs.get("index")
        if phase not in set(Phase) or not isinstance(index, int):
            return None
        base = attrs.get("base", attrs.get("recipe")) if phase != Phase.SEARCH else None
        return cls(
            arm=study.arm,
            phase=Phase(phase),
            block=study.block,
            index=index,
            base=None if base is None else Recipe.from_json(base),
            seed=attrs.get("seed"),
            space={name: Dimension.model_validate(given) for name, given in attrs.get("space", {}).items()},
            target=attrs.get("target"),
            capped=attrs.get("capped", False),
            until=attrs.get("until"),
            parts=tuple(attrs.get("parts", ())),
        )


def tuning_hit(attrs: Mapping[str, Any], block: int) -> float | None:
    """Examples to its target of a tuning trial of that block; None for one without a hit, and for other trials."""
    if attrs.get("phase") != Phase.TUNE or attrs.get("block") != block:
        return None
    return attrs.get(EXAMPLES_TO_TARGET)
