"""Recipe: every setting of one training run. Frozen, validated, exact in JSON and TOML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from vae.code import is_reference
from vae.documents import parse_json, parse_toml, read_text
from vae.errors import UserError, did_you_mean
from vae.networks import NETWORK_FIELDS, NETWORKS, OWN_NETWORK, Width
from vae.table import Table, brief, explain

ActivationName = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"]
InitName = Literal[
    "torch", "xavier_uniform", "xavier_normal", "he_uniform", "he_normal", "orthogonal", "truncated_normal"
]
OptimizerName = Literal[
    "sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "muon", "schedule_free_adamw"
]
ScheduleName = Literal["constant", "step", "exponential", "linear", "cosine", "onecycle", "inverse_sqrt"]
ModelName = Literal["mlp", "conv"]
PrecisionName = Literal["fp32", "bf16"]
LikelihoodName = Literal[
    "cross_entropy",
    "bernoulli",
    "dynamic_bernoulli",
    "continuous_bernoulli",
    "gaussian",
    "discretised_logistic",
]

#: Largest learning rate of a recipe.
MAX_LR = 100.0
#: Optimizers whose useful learning rates lie in the range of plain gradient descent, not of Adam.
SGD_FAMILY = frozenset({"sgd", "momentum", "nesterov"})


def _named(text: str) -> str:
    if not is_reference(text):
        raise PydanticCustomError(
            "reference", "must be code of your own, file.py:NAME or package.module:NAME"
        )
    return text


#: Code of the user's own, by name; see `vae.code`.
Reference = Annotated[str, AfterValidator(_named)]


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if not name.isidentifier() or len(name) > MAX_OPTION_NAME:
            raise PydanticCustomError("option", "must have names as Python's arguments have them")
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(
            isinstance(part, _SCALARS) and part not in (math.inf, -math.inf) and part == part
            for part in parts
        ):
            raise PydanticCustomError("option", "must have numbers, texts, true or false, or lists of these")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


#: Characters of an option's name.
MAX_OPTION_NAME = 64
_SCALARS = (bool, int, float, str)
#: Keyword arguments for code of the user's own: numbers, texts, booleans, and lists of these.
Options = Annotated[dict[str, Any], AfterValidator(_plain)]


#: Tables of a recipe, whose values have names with a dot: model_options.width.
TABLES = ("model_options", "optimizer_options")
#: What a factory and an optimizer class are given under these names already.
GIVEN = {
    "model_options": ("data_shape", "latent_size", "parameters_per_pixel"),
    "optimizer_options": ("params", "lr", "weight_decay"),
}
#: Fields that recipes of before don't have: in JSON only where they say something, so that those stay as they were.
_LATER = ("model", "model_options", "optimizer_options")


class Recipe(Table):
    """Every setting of one training run; the data and the budget tau are the workload's, not the recipe's.

    Fractions named "of tau" are of the budget in examples seen, so a recipe keeps its shape when the
    budget changes. A value out of range or an unknown field raises `pydantic.ValidationError`;
    `from_dict`, `from_json` and `from_toml` turn it into a one-line `UserError`.
    """

    # Architecture
    model: ModelName | Reference = "mlp"
    """The network: the fully connected one; a convolutional one (see `vae.model.conv`); or one of your own, a factory
    by name (see `vae.model.bring`)."""
    model_options: Options = Field(default_factory=dict)
    """Keyword arguments of the network's factory. conv has `vae.networks.ConvOptions`; mlp has none, its settings are
    the fields that follow."""
    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64, strict=False)] = (500,)
    """Widths of the encoder's hidden layers; the decoder's are the same reversed (Kingma & Welling 2014)."""
    latent_size: Annotated[int, Field(ge=1, le=65_536)] = 30
    """Dimensions of z."""
    residual: bool = False
    """Hidden layers after the first of each network are residual blocks (He et al. 2016)."""
    activation: ActivationName = "relu"
    """Non-linearity between layers."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a hidden unit is dropped in training (Srivastava et al. 2014); off in evaluation."""

    # Initialisation
    init: InitName = "torch"
    """Weights at step 0: torch's default, Glorot & Bengio 2010 (xavier), He et al. 2015 (he),
    Saxe et al. 2014 (orthogonal), or a normal of std 0.02 cut at two std (truncated_normal)."""
    output_bias_from_mean: bool = False
    """Start the decoder's output bias where it reproduces the mean training image."""

    # Optimizer
    optimizer: OptimizerName | Reference = "adam"
    """The update rule. `muon` (Jordan et al. 2024) moves the hidden matrices, AdamW the other parameters;
    `schedule_free_adamw` is Defazio et al. 2024. With decoupled weight decay adam and adamw are one rule.
    Or a `torch.optim.Optimizer` class of your own or of a library, by name (see `vae.optim.bring`)."""
    optimizer_options: Options = Field(default_factory=dict)
    """Keyword arguments of an optimizer class given by name; lists become tuples (betas)."""
    lr: Annotated[float, Field(gt=0.0, le=MAX_LR)] = 1e-3
    """Peak learning rate, per step."""
    lr_schedule: ScheduleName = "constant"
    """Shape of the learning rate from the end of the warm-up to the horizon."""
    horizon: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Where the schedule reaches its floor, as a fraction of tau; the lr stays at its floor afterwards."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Linear warm-up of the lr from zero, as a fraction of tau (Goyal et al. 2017)."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["full"] = 256
    """Examples per step; "full" is the whole training set: plain gradient descent."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Decoupled weight decay (Loshchilov & Hutter 2019), times lr per step; never on biases."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Largest allowed global gradient norm (Pascanu et al. 2013), nats per unit of weight; none: no clipping."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay per step of the exponential moving average of the weights that is evaluated; 0: no average."""

    # Objective
    likelihood: LikelihoodName = "cross_entropy"
    """p(x|z): binary cross-entropy on grey pixels (common, not a likelihood), Bernoulli with static or
    dynamic binarisation, continuous Bernoulli (Loaiza-Ganem & Cunningham 2019), Gaussian, or the discretised
    logistic of 8-bit pixels (Salimans et al. 2017)."""
    beta: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    """Weight of the KL term in training (Higgins et al. 2017); the metric always has beta = 1."""
    beta_warmup: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Beta rises linearly from 0 over this fraction of tau (Bowman et al. 2016)."""
    free_bits: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Nats of KL per latent dimension that training does not penalise (Kingma et al. 2016)."""

    # Arithmetic
    precision: PrecisionName = "fp32"
    """Arithmetic of the training step: fp32, or bf16 autocast with fp32 weights. Evaluation is fp32."""
    compile: bool = False
    """Compile the training step with torch.compile."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds the weights, the order of the examples, the sampling of z and dropout."""

    @model_validator(mode="before")
    @classmethod
    def _options_are_whole(cls, values: Any) -> Any:
        """A network's options that are left out are put in, so that a stored recipe says all that is trained."""
        if not isinstance(values, dict) or not isinstance(values.get("model"), str):
            return values
        known, given = NETWORKS.get(values["model"], OWN_NETWORK).options, values.get("model_options", {})
        if known is None or not isinstance(given, dict):
            return values
        try:
            options = known.model_validate(given)
        except ValidationError as error:
            raise ValueError(explain(error, f"model_options of {values['model']}")) from None
        return values | {"model_options": options.model_dump(mode="json")}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.lr_schedule != "constant" and self.warmup >= self.horizon:
            raise ValueError(f"warmup ({self.warmup}) must be below horizon ({self.horizon})")
        takes = NETWORKS.get(self.model, OWN_NETWORK)
        for field in NETWORK_FIELDS:
            if field not in takes.fields and getattr(self, field) != Recipe.model_fields[field].default:
                way_out = "give it as one of its model_options" if takes.has_options else "leave it out"
                raise ValueError(f"{field} says nothing to the network {self.model}: {way_out}")
        if self.model_options and not takes.has_options:
            raise ValueError(
                f"the network {self.model} has no model_options: its settings are fields of the recipe"
            )
        if self.optimizer_options and not is_reference(self.optimizer):
            raise ValueError(
                f"{self.optimizer} has no optimizer_options: they are for a class, package.module:NAME"
            )
        for table, given in GIVEN.items():
            for name in given:
                if name in getattr(self, table):
                    raise ValueError(f"{table}.{name} is given already: leave it out")
        return self

    @model_serializer(mode="wrap", when_used="json")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        return {key: value for key, value in values.items() if key not in _LATER or _says(key, value)}

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def references(self) -> tuple[str, ...]:
        """Code of the user's own that this recipe names."""
        return tuple(name for name in (self.model, self.optimizer) if is_reference(name))

    def flat(self) -> dict[str, Any]:
        """Field -> value, with the tables' values under names of their own: model_options.width."""
        flat: dict[str, Any] = {}
        for field, value in self.model_dump().items():
            if field in TABLES:
                flat |= {f"{field}.{name}": option for name, option in value.items()}
            else:
                flat[field] = value
        return flat

    def changes(self, base: Recipe) -> dict[str, Any]:
        """The fields in which it differs from another recipe, as `base.replace` takes them; None for an option that
        it doesn't have."""
        before, after = base.flat(), self.flat()
        fields = dict.fromkeys([*after, *before])
        return {field: after.get(field) for field in fields if after.get(field) != before.get(field)}

    def value(self, field: str) -> Any:
        """The value of a field, or of a table's part (model_options.width); None for a part that isn't there."""
        table, _, name = field.partition(".")
        return getattr(self, table).get(name) if name else getattr(self, field)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with the fields changed and validated again; see `changed` for names with a dot. Raises UserError."""
        return Recipe.from_dict(changed(self.model_dump(), changes))

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "recipe") -> Recipe:
        """A Recipe from plain values. Raises UserError naming the field, the value and the rule."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(explain(error, source)) from None

    @classmethod
    def from_json(cls, text: str, source: str = "recipe") -> Recipe:
        """The Recipe that `to_json` wrote, or that of an earlier version. Raises UserError."""
        return cls.from_dict(as_written(_parsed(text, source, "JSON")), source)

    @classmethod
    def from_toml(cls, text: str, source: str = "recipe") -> Recipe:
        """The Recipe that `to_toml` wrote. Raises UserError."""
        return cls.from_dict(_parsed(text, source, "TOML"), source)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """A Recipe from a .toml or .json file. Raises UserError."""
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise UserError(f"The recipe {path} can't be read: {error}") from None
        language: Language = "JSON" if path.suffix == ".json" else "TOML"
        return cls.from_dict(_parsed(text, str(path), language), str(path))

    def to_json(self) -> str:
        """One line of JSON with every field that the first version had, and of later ones those that say something;
        floats round-trip exactly."""
        return self.model_dump_json()

    def to_toml(self) -> str:
        """As `to_json`, in TOML (which has no null: an absent clip_norm is none)."""
        return tomli_w.dumps(json.loads(self.model_dump_json(exclude_none=True)))

    def batch(self, n_train: int) -> int:
        """Examples per step on a training set of n_train examples."""
        return n_train if self.batch_size == "full" else self.batch_size


def as_written(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain values as an earlier version stored them, with what they meant then: conv normalised by group
    while a recipe didn't hold those of its options that were left out."""
    options = values.get("model_options", {})
    if values.get("model") != "conv" or not isinstance(options, dict) or "norm" in options:
        return values
    return values | {"model_options": options | {"norm": "group"}}


def changed(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with changes made: a name with a dot is put into its table, and None takes it out of
    there; the name of a table replaces all of it. With another network or optimizer the settings that only the former
    one had are gone, unless they are among the changes."""
    after = dict(values)
    if changes.get("model", after.get("model", "mlp")) != after.get("model", "mlp"):
        takes = NETWORKS.get(str(changes["model"]), OWN_NETWORK).fields
        for field in ("model_options", *(field for field in NETWORK_FIELDS if field not in takes)):
            after.pop(field, None)
    if changes.get("optimizer", after.get("optimizer")) != after.get("optimizer"):
        after.pop("optimizer_options", None)
    # Tables first: whoever gives one and a part of it means the part as well.
    for field, value in sorted(changes.items(), key=lambda change: "." in change[0]):
        table, _, name = field.partition(".")
        if table not in TABLES or not name:
            after[field] = value
            continue
        within = after.get(table, {})
        if not isinstance(within, dict):
            raise UserError(f"{table} must be a table, not {brief(within)}.")
        after[table] = {key: kept for key, kept in within.items() if key != name}
        if value is not None:
            after[table][name] = value
    return after


def is_field(field: str) -> bool:
    """Whether a recipe has a field of that name, or a table that may have a part of it: model_options.width."""
    table, _, name = field.partition(".")
    return field in Recipe.model_fields or (table in TABLES and name.isidentifier())


def parse_value(field: str, text: str) -> Any:
    """The value of `--set field=text`, as TOML would read it; a bare word is a string. Raises UserError."""
    if not is_field(field):
        raise UserError(unknown_field(field))
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return None if text == "none" else text


def unknown_field(field: str) -> str:
    """The message for a field that no Recipe has, with the nearest that exists."""
    return f"A recipe has no field '{field}'. {did_you_mean(field, Recipe.model_fields)}"


def _says(field: str, value: Any) -> bool:
    """Whether a field's value is another than where it isn't given."""
    known = Recipe.model_fields[field]
    return bool(value != known.get_default(call_default_factory=True))


Language = Literal["JSON", "TOML"]


def _parsed(text: str, source: str, language: Language) -> dict[str, Any]:
    try:
        values = parse_json(text) if language == "JSON" else parse_toml(text)
    except ValueError as error:
        raise UserError(f"{source} is not valid {language}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{source} must be a table of fields, not {type(values).__name__}.")
    return values
