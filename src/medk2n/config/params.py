"""A component's sizes and choices: plain data in, its frozen `Params` out.

Components own plain dataclasses and know nothing of files; here what a YAML file or a checkpoint says is held against
their types. A field whose metadata name a folder of `components` holds one of them, told by its `name`.
"""

import json
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from medk2n.config.overrides import complaint
from medk2n.errors import ConfigError
from medk2n.registry import names, resolve

P = TypeVar("P")


def read_params(kind: type[P], given: Mapping[str, Any], where: str = "params") -> P:
    """The `kind` (a dataclass) that `given` describes; what is left out keeps its default.

    Args:
        where: how the caller names `given`, for the message.

    Raises:
        ConfigError: a name that `kind` has not (with the nearest), a value of another type, or one that it refuses.
        UnknownNameError: a component that is not there.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise ConfigError(complaint((where, name), "extra_forbidden", "", known))
    hints = get_type_hints(kind)
    values = {name: _value(known[name], hints[name], value, f"{where}.{name}") for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _value(field: Field, hint: Any, given: Any, where: str) -> Any:
    if "components" in field.metadata:
        if given is None and field.default is None:
            return None
        return _component(field.metadata["components"], given, where)
    inner = [part for part in (hint, *get_args(hint)) if is_dataclass(part) and isinstance(part, type)]
    if inner and isinstance(given, Mapping):
        return read_params(inner[0], given, where)
    if inner and not (given is None and NoneType in get_args(hint)):
        raise ConfigError(f"{where}: expected settings, found {given!r}")
    try:
        return TypeAdapter(hint).validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            complaint((where, *first["loc"]), first["type"], f"{first['msg']}, found {given!r}", ())
        ) from error


def _component(folder: str, given: Any, where: str) -> Any:
    """The parameters of one of a folder's components, which `given` names."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: expected settings, found {given!r}")
    named = given.get("name")
    if not isinstance(named, str):
        raise ConfigError(f"{where}: expected the name of a component, as in {{name: {names(folder)[0]}}}")
    return read_params(resolve(folder, named).params, given, where)
