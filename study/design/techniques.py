"""The catalogue of techniques: named changes to a baseline recipe, each with its source and its own knobs."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from study.design.space import Dimension, Space, check_space
from vae.errors import UserError, did_you_mean
from vae.recipe import Recipe, explain, unknown_field

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

HORIZON = {"horizon": Dimension(low=0.1, high=1.0)}


class Technique(BaseModel):
    """A change to the baseline recipe. The arm `name` is the baseline plus this change, tuned anew."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

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

    def in_place(self, shared: Space) -> Space:
        """The shared dimensions with this technique's own ranges in the place of the usual ones."""
        ranges = self.knobs | self.space
        return {field: ranges.get(field, dimension) for field, dimension in shared.items()}

    def apply(self, baseline: Recipe) -> Recipe:
        """The baseline recipe with the change made; knobs keep the baseline's values. Raises UserError."""
        changes = dict(self.overrides)
        for field, factor in self.scale.items():
            value = getattr(baseline, field)
            if not isinstance(value, int | float):
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


def _technique(name: str, family: Family, slot: str, why: str, source: str, **more: Any) -> Technique:
    return Technique(name=name, family=family, slot=slot, why=why, source=source, **more)


def _init(name: str, init: str, why: str, source: str) -> Technique:
    return _technique(name, "initialisation", "init", why, source, overrides={"init": init})


def _batch(name: str, factor: float, why: str) -> Technique:
    source = "Shallue et al. 2019, arXiv:1811.03600"
    return _technique(name, "mini-batches", "batch size", why, source, scale={"batch_size": factor})


def _decay(name: str, schedule: str, why: str, source: str) -> Technique:
    overrides = {"lr_schedule": schedule}
    return _technique(
        name, "learning-rate decay", "schedule", why, source, overrides=overrides, knobs=HORIZON
    )


def _optimizer(name: str, optimizer: str, why: str, source: str, **overrides: Any) -> Technique:
    overrides = {"optimizer": optimizer} | overrides
    return _technique(name, "optimizer", "optimizer", why, source, overrides=overrides)


BUILT_IN: tuple[Technique, ...] = (
    _init("xavier", "xavier_uniform", "Keeps variance equal forward and backward.", "Glorot & Bengio 2010"),
    _init("he", "he_normal", "Keeps variance through ReLU layers.", "He et al. 2015, arXiv:1502.01852"),
    _init(
        "orthogonal", "orthogonal", "Keeps norms exactly at the start.", "Saxe et al. 2014, arXiv:1312.6120"
    ),
    _technique(
        "output-bias",
        "initialisation",
        "output bias",
        "Starts from the mean image, which the first steps would otherwise be spent on.",
        "Karpathy 2019, A Recipe for Training Neural Networks",
        overrides={"output_bias_from_mean": True},
    ),
    _batch("batch-quarter", 0.25, "Four times the steps for the same examples."),
    _batch("batch-half", 0.5, "Twice the steps for the same examples."),
    _batch("batch-double", 2.0, "Less noise per step and better use of wide hardware."),
    _batch("batch-quadruple", 4.0, "Less noise per step and better use of wide hardware."),
    _technique(
        "full-batch",
        "mini-batches",
        "batch size",
        "Plain gradient descent: the exact gradient, one step an epoch.",
        "Cauchy 1847; Robbins & Monro 1951 is the alternative",
        overrides={"batch_size": "full"},
    ),
    _decay("step", "step", "Large steps first, small ones to settle.", "He et al. 2016, arXiv:1512.03385"),
    _decay("exponential", "exponential", "Decays by a constant factor.", "Robbins & Monro 1951"),
    _decay("linear", "linear", "Decays to zero at the horizon.", "Defazio et al. 2023, arXiv:2310.07831"),
    _decay(
        "cosine", "cosine", "Stays high, then settles smoothly.", "Loshchilov & Hutter 2017, arXiv:1608.03983"
    ),
    _decay(
        "one-cycle",
        "onecycle",
        "Warms up to a very high lr, then decays.",
        "Smith & Topin 2019, arXiv:1708.07120",
    ),
    _technique(
        "warm-up",
        "learning-rate decay",
        "warm-up",
        "Small first steps allow a larger lr later.",
        "Goyal et al. 2017, arXiv:1706.02677",
        knobs={"warmup": Dimension(low=0.005, high=0.1, log=True)},
    ),
    _technique(
        "weight-decay",
        "regularisation",
        "weight decay",
        "Keeps weights small, so the same lr moves them further.",
        "Loshchilov & Hutter 2019, arXiv:1711.05101",
        knobs={"weight_decay": Dimension(low=1e-3, high=1.0, log=True)},
    ),
    _technique(
        "dropout",
        "regularisation",
        "dropout",
        "Prevents co-adaptation; costs speed where a model underfits.",
        "Srivastava et al. 2014",
        knobs={"dropout": Dimension(low=0.02, high=0.3)},
    ),
    _technique(
        "kl-warm-up",
        "regularisation",
        "beta",
        "Lets the decoder learn to use z before the KL pulls on it.",
        "Bowman et al. 2016, arXiv:1511.06349; Sønderby et al. 2016",
        knobs={"beta_warmup": Dimension(low=0.02, high=0.5, log=True)},
    ),
    _technique(
        "beta-below-1",
        "regularisation",
        "beta",
        "Weighs reconstruction more; the metric keeps beta = 1.",
        "Higgins et al. 2017; Alemi et al. 2018, arXiv:1711.00464",
        knobs={"beta": Dimension(low=0.3, high=0.95)},
    ),
    _technique(
        "free-bits",
        "regularisation",
        "free bits",
        "Leaves the first nats of each latent dimension unpenalised.",
        "Kingma et al. 2016, arXiv:1606.04934",
        knobs={"free_bits": Dimension(low=0.01, high=0.5, log=True)},
    ),
    _technique(
        "gradient-clipping",
        "regularisation",
        "clipping",
        "Bounds rare large steps, so the lr can be larger.",
        "Pascanu et al. 2013, arXiv:1211.5063",
        knobs={"clip_norm": Dimension(low=1.0, high=300.0, log=True)},
    ),
    _optimizer(
        "sgd-momentum",
        "momentum",
        "Averages gradients; one state per weight.",
        "Polyak 1964; Sutskever et al. 2013",
    ),
    _optimizer(
        "rmsprop", "rmsprop", "Scales each weight's step by its gradient's size.", "Tieleman & Hinton 2012"
    ),
    _optimizer(
        "adamw",
        "adamw",
        "Adam at AdamW's customary decoupled decay of 0.01.",
        "Loshchilov & Hutter 2019, arXiv:1711.05101",
        weight_decay=0.01,
    ),
    _optimizer(
        "schedule-free",
        "schedule_free_adamw",
        "Averages iterates instead of decaying the lr.",
        "Defazio et al. 2024, arXiv:2405.15682",
    ),
    _optimizer(
        "muon",
        "muon",
        "Orthogonalises the update of each hidden matrix.",
        "Jordan et al. 2024; Liu et al. 2025",
    ),
    _technique(
        "ema",
        "optimizer",
        "weight averaging",
        "Evaluates an average of the weights: less noise at a high lr.",
        "Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv:1803.05407",
        knobs={"ema_decay": Dimension(low=0.9, high=0.999)},
    ),
    _technique(
        "bf16",
        "precision",
        "precision",
        "Half the bytes; faster where the processor multiplies bf16 natively.",
        "Micikevicius et al. 2018, arXiv:1710.03740; Kalamkar et al. 2019",
        overrides={"precision": "bf16"},
    ),
    _technique(
        "compile",
        "compilation",
        "compilation",
        "Fuses small operations; costs a compilation first.",
        "Ansel et al. 2024, PyTorch 2",
        overrides={"compile": True},
    ),
    _technique(
        "deeper",
        "architecture",
        "architecture",
        "One more hidden layer in the encoder and in the decoder.",
        "Sønderby et al. 2016, arXiv:1602.02282",
        add_layers=1,
        different_model=True,
    ),
    _technique(
        "residual",
        "architecture",
        "architecture",
        "Two more hidden layers with skip connections.",
        "He et al. 2016, arXiv:1603.05027",
        add_layers=2,
        overrides={"residual": True},
        different_model=True,
    ),
)

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

RESERVED = frozenset({"all", "default", "baseline", "search", "combined", "article", "search-best"})
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")


def catalogue(own: dict[str, dict[str, Any]] | None = None) -> dict[str, Technique]:
    """Built-in techniques and the user's, by name. Raises UserError for a bad definition of the user's."""
    known = {technique.name: technique for technique in BUILT_IN}
    for name, fields in (own or {}).items():
        source = f"techniques.{name}"
        if not NAME.fullmatch(name):
            raise UserError(
                f"{source}: a technique's name has small letters, digits and hyphens, not '{name}'."
            )
        if name in RESERVED or name in known or name.startswith("combined-"):
            raise UserError(f"{source}: the name '{name}' is taken; choose another.")
        if not isinstance(fields, dict):
            raise UserError(f"{source} must be a table of fields, not {fields!r}.")
        try:
            technique = Technique.model_validate(
                {"slot": name, "family": "regularisation"} | fields | {"name": name}
            )
        except ValidationError as error:
            raise UserError(explain(error, source, Technique)) from None
        for field in [*technique.overrides, *technique.scale]:
            if field not in Recipe.model_fields:
                raise UserError(f"{source}: {unknown_field(field)}")
        for space in (technique.knobs, technique.space):
            check_space(space, source)
        known[name] = technique
    return known


def find(name: str, known: dict[str, Technique]) -> Technique:
    """The technique of that name. Raises UserError with the nearest name."""
    if name in known:
        return known[name]
    raise UserError(f"Unknown arm '{name}'. {did_you_mean(name, known, cutoff=0.5)}")
