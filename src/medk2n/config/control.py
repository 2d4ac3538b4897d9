"""What a user lays down about the fusion of a target; all that is left open the content decides."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medk2n.config.overrides import apply_override, complaint
from medk2n.errors import ConfigError, UnknownNameError
from medk2n.vocabulary import modality

Rule = TypeVar("Rule")
Weight = Annotated[float, Field(ge=0, le=1, strict=True)]


class WeightRule(BaseModel):
    """How far an added input may enter (its presence P), everywhere or inside a mask.

    Attributes:
        at_most: an upper bound of P.
        fixed: the value of P itself, whatever the content says.
        where: a mask (NIfTI, inside is above 0, same scanner space); outside it the content decides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    at_most: Weight | None = None
    fixed: Weight | None = None
    where: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> "WeightRule":
        if (self.at_most is None) == (self.fixed is None):
            raise ValueError("give at_most or fixed, one of the two")
        if self.where is None and not (self.at_most or self.fixed):
            raise ValueError("a weight of 0 everywhere: use leave_out")
        return self

    @field_validator("where")
    @classmethod
    def _home(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser()


class FusionRule(BaseModel):
    """The user's say about one target.

    Attributes:
        key: input to start from.
        leave_out: inputs that this target must not see (where the patient ends they still tell the cropping).
        weights: input -> how far it may enter. The key frame enters whole, so such an input is not chosen as key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str | None = None
    leave_out: tuple[str, ...] = ()
    weights: dict[str, WeightRule] = {}

    @field_validator("key")
    @classmethod
    def _key(cls, name: str | None) -> str | None:
        return None if name is None else _known(name)

    @field_validator("leave_out")
    @classmethod
    def _left_out(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(name) for name in names)

    @field_validator("weights")
    @classmethod
    def _weighed(cls, rules: dict[str, WeightRule]) -> dict[str, WeightRule]:
        return by_short_name(rules)


def by_short_name(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """The same with short modality names as keys.

    Raises:
        ValueError: a name that is unknown, or given twice (perhaps once by an alias).
    """
    found: dict[str, Rule] = {}
    for name, rule in rules.items():
        if (short := _known(name)) in found:
            raise ValueError(f"{short} is given twice, the second time as {name!r}; join the two")
        found[short] = rule
    return found


def _known(name: str) -> str:
    try:
        return modality(name).name
    except UnknownNameError as error:
        raise ValueError(str(error)) from error


def load_control(overrides: Sequence[str]) -> dict[str, FusionRule]:
    """Rules by target from `--set fusion.TARGET.key=value` options.

    Raises:
        ConfigError: anything that is not a rule, with the nearest name.
    """
    tree: dict[str, object] = {}
    for override in overrides:
        apply_override(tree, override)
    rules = tree.pop("fusion", {})
    if tree or not isinstance(rules, dict):
        raise ConfigError(
            f"--set {', '.join(tree) or 'fusion'}: expected fusion.TARGET.key=INPUT, fusion.TARGET.leave_out=[INPUT], "
            "fusion.TARGET.weights.INPUT.at_most=NUMBER (or .fixed, .where=MASK)"
        )
    try:
        return by_short_name({str(target): _rule(str(target), rule) for target, rule in rules.items()})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--set fusion: {error}") from error


def _rule(target: str, rule: object) -> FusionRule:
    try:
        return FusionRule.model_validate_json(json.dumps(rule, default=str))
    except ValidationError as error:
        known = [*FusionRule.model_fields, *WeightRule.model_fields]
        told = [complaint(("fusion", target, *e["loc"]), e["type"], e["msg"], known) for e in error.errors()]
        raise ConfigError("; ".join(told)) from error
