"""`--set key=value`, and what is wrong with a setting in one line."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from medk2n.config.yaml12 import load
from medk2n.errors import ConfigError
from medk2n.io.door import door

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
_DEEPEST = 16
_SHOWN = 80  # letters of an option in a message


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put one dotted "key=value" into a tree of settings; the value is YAML.

    Raises:
        ConfigError: no "=", a key below a plain value, or a name that no entry of a list has.
    """
    key, separator, value = override.partition("=")
    shown = override if len(override) <= _SHOWN else f"{override[:_SHOWN]}..."
    if not separator or not key:
        raise ConfigError(f"--set {shown!r}: expected key=value")
    with door(ConfigError, f"--set {shown!r}: the value is not YAML", "put text in quotes"):
        parsed = load(value)
    try:
        put(tree, key, parsed)
    except ConfigError as error:
        raise ConfigError(f"--set {shown!r}: {error}") from error


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key. An entry of a list goes by its `name`: "models.unet.params.widths"; `auto` opens up.

    Raises:
        ConfigError: a key below a plain value, or a name that no entry of a list has.
    """
    *parents, leaf = key.split(".")
    if len(parents) > _DEEPEST:
        raise ConfigError(f"{len(parents) + 1} names one below another; no setting lies so deep")
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
