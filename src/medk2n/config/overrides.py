"""`--set key=value`, YAML as YAML 1.2 means it, and what is wrong with a setting in one line."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import yaml

from medk2n.errors import ConfigError


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put one dotted "key=value" into a tree of settings; the value is YAML.

    Raises:
        ConfigError: no "=", or a key below a plain value, or an entry that a list has not.
    """
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: expected key=value")
    *parents, leaf = key.split(".")
    branch = tree
    for parent in parents:
        branch = _below(branch, parent, override)
    if isinstance(branch, list):
        raise ConfigError(f"--set {override!r}: {parents[-1]!r} is a list; name an entry of it and a setting of that")
    try:
        branch[leaf] = yaml.load(value, Loader=Yaml12)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {' '.join(str(error).split())}") from error


def _below(branch: Any, parent: str, override: str) -> Any:
    """What a setting holds; an entry of a list is told by its `name`, as in models.medk2n.params."""
    if isinstance(branch, list):
        named = {entry["name"]: entry for entry in branch if isinstance(entry, dict) and "name" in entry}
        if parent not in named:
            raise ConfigError(f"--set {override!r}: no {parent!r} there; known: {', '.join(named) or 'none'}")
        return named[parent]
    below = branch.setdefault(parent, {})
    if not isinstance(below, (dict, list)):
        raise ConfigError(f"--set {override!r}: {parent!r} holds no further settings")
    return below


def complaint(loc: Sequence[int | str], kind: str, message: str, known: Iterable[str]) -> str:
    """One error of a pydantic model in one line; an unknown setting comes with the nearest of the `known`."""
    where = ".".join(map(str, loc))
    if kind != "extra_forbidden":
        return f"{where}: {message}"
    near = get_close_matches(str(loc[-1]), known, n=1)
    return f"{where}: unknown setting" + (f", did you mean {near[0]!r}?" if near else "")


class Yaml12(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's guesses: 1e-4 is a number, `no` and `on` are words."""


Yaml12.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF"))
Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)
