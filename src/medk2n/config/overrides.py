"""`--set key=value`, YAML as YAML 1.2 means it, and what is wrong with a setting in one line."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import yaml

from medk2n.errors import ConfigError

AUTO = "auto"
"""Stands where a plan is to decide (config/draft.py)."""
MOVED = {
    "fuse_every": "teaching.weighing, the share of the budget in which the weights are taught",
    "gain_every": "teaching.weighing, the share of the budget in which every step measures gains",
    "soft_gates": "nothing: gates are taught by their logit",
    "corrupt_whole": "teaching.corrupt",
    "quality": "losses.likelihood and losses.sets",
    "joint": "widths, five numbers: the synthesizer's channels at strides 1, 2, 4, 8, 16",
}
"""Settings of older versions, by their last name, and what is there instead."""


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put one dotted "key=value" into a tree of settings; the value is YAML.

    Raises:
        ConfigError: no "=", a key below a plain value, or a name that no entry of a list has.
    """
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: expected key=value")
    try:
        parsed = yaml.load(value, Loader=Yaml12)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {' '.join(str(error).split())}") from error
    try:
        put(tree, key, parsed)
    except ConfigError as error:
        raise ConfigError(f"--set {override!r}: {error}") from error


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key. An entry of a list goes by its `name`: "models.unet.params.widths"; `auto` opens up.

    Raises:
        ConfigError: a key below a plain value, or a name that no entry of a list has.
    """
    *parents, leaf = key.split(".")
    branch: Any = tree
    for parent in parents:
        if isinstance(branch, list):
            branch = _named(branch, parent)
            continue
        if branch.get(parent, AUTO) == AUTO:
            branch[parent] = {}
        branch = branch[parent]
        if not isinstance(branch, (dict, list)):
            raise ConfigError(f"{parent!r} holds no further settings")
    if isinstance(branch, list):
        raise ConfigError(f"{leaf!r} is one of a list; name what is to be set in it, or give the whole list")
    branch[leaf] = value


def _named(entries: list[Any], name: str) -> dict[str, Any]:
    named = {entry.get("name"): entry for entry in entries if isinstance(entry, dict)}
    if name not in named:
        raise ConfigError(f"no {name!r} in the list; it holds {', '.join(map(str, named)) or 'nothing with a name'}")
    found: dict[str, Any] = named[name]
    return found


def complaint(loc: Sequence[int | str], kind: str, message: str, known: Iterable[str]) -> str:
    """One error of a pydantic model in one line; an unknown setting with what replaced it, or the nearest `known`."""
    where = ".".join(map(str, loc))
    if kind != "extra_forbidden":
        return f"{where}: {message}"
    if loc[-1] in MOVED:
        return f"{where}: is of an older version; now there is {MOVED[str(loc[-1])]}"
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
