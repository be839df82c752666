"""Tables of fields as files hold them, and what is wrong with one in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from vae.errors import did_you_mean

#: Characters of a refused value that are shown.
SHOWN = 200


class Table(BaseModel):
    """A table of fields as a file holds it: frozen and strict, its unknown fields refused with the nearest there is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    told_as: ClassVar[str | None] = None
    """What a message calls it; None: by its class, a technique."""

    @model_validator(mode="before")
    @classmethod
    def _fields_are_known(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if isinstance(name, str) and name not in cls.model_fields:
                way_out = did_you_mean(name, cls.model_fields)
                told = {"kind": cls.told_as or f"a {cls.__name__.lower()}", "name": name, "way_out": way_out}
                raise PydanticCustomError("unknown_field", "There is no field '{name}'", told)
        return values


def explain(error: ValidationError, source: str) -> str:
    """A pydantic error as one line: where, the value, the rule; unknown names get the nearest."""
    rules: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        place = [part for part in item["loc"] if not _is_branch(part)]
        where = ".".join(map(str, place))
        if item["type"] == "unknown_field":
            kind, name, way_out = (item["ctx"][key] for key in ("kind", "name", "way_out"))
            if kind == "a recipe" and not where:
                return f"{source}: A recipe has no field '{name}'. {way_out}"
            return f"{source}: {where or kind} has no '{name}'. {way_out}"
        # What a whole table breaks is told by its rule, which names the field.
        value = "" if isinstance(item["input"], Mapping | BaseModel) else f" = {brief(item['input'])}"
        shown = f"{where}{value}: " if where else ""
        # A field of several kinds has one error a kind: its value is told once, its rules in a row.
        rule = item["msg"].removeprefix("Value error, ").replace("Input should", "must")
        if item["type"] == "tuple_type":
            rule = f"must be a list, as in [{brief(item['input'])}]"
        rules.setdefault((where, shown), []).append(rule)
    lines = [
        shown + " or ".join([first, *(rule.removeprefix("must be ") for rule in more)])
        for (_, shown), (first, *more) in rules.items()
    ]
    return f"{source}: " + "; ".join(lines)


def brief(value: Any) -> str:
    """As Python writes it, cut where it is too long for a line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _is_branch(part: int | str) -> bool:
    """Whether a part of an error's place names a branch of a union and nothing the user wrote."""
    branches = ("literal[", "constrained-", "function-after[")
    return isinstance(part, str) and part.startswith(branches)
