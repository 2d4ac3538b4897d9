"""Settings of which some are still to be planned: what is stated, what is `auto`, and who says so.

`auto` may stand for what `SETTINGS` lists and for a size of a model (`models.NAME.params.SIZE`); training/plan.py
decides about it. What the user states is never planned again.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medk2n.config.overrides import AUTO, put
from medk2n.config.schema import PRESETS, TrainConfig, read_tree, validated
from medk2n.vocabulary import MODALITIES

SETTINGS = ("modalities", "spacing_mm", "batch.crop", "batch.size", "budget")


@dataclass(frozen=True)
class Draft:
    """Settings as they are written.

    Attributes:
        tree: the settings; `AUTO` where a plan is to decide.
        config: all that is stated, validated. Where a plan is to decide it holds no more than a stand-in: every known
            modality, and what config/schema.py and the models have as defaults.
        overridden: dotted keys that came on top of the file.
        from_preset: whether the file is one of the package.
        taken: dotted keys whose values are those of the model that the run begins from.
    """

    tree: dict[str, Any]
    config: TrainConfig
    overridden: frozenset[str]
    from_preset: bool
    taken: frozenset[str] = frozenset()

    @property
    def open(self) -> list[str]:
        """Dotted keys that are to be planned."""
        return _open(self.tree)

    def decided_by(self, key: str) -> str:
        """Who stated the value of a dotted key: "you", "preset" or the "model" begun from; "default" if nobody did."""
        if key in self.taken:
            return "model"
        if any(f"{given}.".startswith(f"{key}.") or f"{key}.".startswith(f"{given}.") for given in self.overridden):
            return "you"
        holder, leaf = _holder(self.tree, key)
        if leaf not in holder:
            return "default"
        return "preset" if self.from_preset else "you"

    def taking(self, values: Mapping[str, Any]) -> "Draft":
        """With the values of a model, by dotted key, wherever the user states none; raises as `config_with`."""
        taken = {key: value for key, value in values.items() if not self._states(key)}
        tree = self.filled(taken)
        return replace(self, tree=tree, config=validated(_stand_in(tree)), taken=frozenset(taken))

    def _states(self, key: str) -> bool:
        """Whether the user gives a value to a dotted key; `auto` is none."""
        holder, leaf = _holder(self.tree, key)
        return holder.get(leaf, AUTO) != AUTO and self.decided_by(key) == "you"

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with planned values put in."""
        tree = copy.deepcopy(self.tree)
        for key, value in values.items():
            put(tree, key, value)
        return tree

    def config_with(self, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration with planned values put in; stand-ins for what is still open.

        Raises:
            ConfigError: what is stated does not go with them.
        """
        return validated(_stand_in(self.filled(values)))


def read_draft(
    preset_or_file: str | Path, overrides: list[str] | None = None, models: list[str] | None = None
) -> Draft:
    """A preset's name or a YAML file, with dotted overrides on top; some values may be `auto`.

    Args:
        models: names, as for `read_tree`.

    Raises:
        ConfigError: as `load_config`.
    """
    tree = read_tree(preset_or_file, overrides, models)
    overridden = frozenset(override.partition("=")[0] for override in overrides or ())
    return Draft(tree, validated(_stand_in(tree)), overridden, (PRESETS / f"{preset_or_file}.yaml").is_file())


def _open(tree: Mapping[str, Any]) -> list[str]:
    models = tree.get("models")
    choices = (
        [c for c in models if isinstance(c, dict)] if isinstance(models, list) else []
    )  # validation tells the rest
    sizes = [(c.get("name"), key) for c in choices if isinstance(c.get("params"), dict) for key in c["params"]]
    keys = [*SETTINGS, *(f"models.{name}.params.{key}" for name, key in sizes)]
    return [key for key in keys if (found := _holder(tree, key))[0].get(found[1]) == AUTO]


def _holder(tree: Mapping[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that may hold a dotted key (an entry of a list goes by its name; empty if there is none), and its
    last part."""
    *parents, leaf = key.split(".")
    branch: Any = tree
    for parent in parents:
        if isinstance(branch, list):
            branch = next((e for e in branch if isinstance(e, dict) and e.get("name") == parent), {})
        else:
            branch = branch.get(parent, {})
        if not isinstance(branch, (dict, list)):
            branch = {}
    return (branch if isinstance(branch, dict) else {}), leaf


def _stand_in(tree: dict[str, Any]) -> dict[str, Any]:
    """What can be validated before anything is planned: defaults for what is left to the plan."""
    stated = copy.deepcopy(tree)
    for key in _open(tree):
        holder, leaf = _holder(stated, key)
        holder.pop(leaf)
    return stated | ({"modalities": sorted(MODALITIES)} if "modalities" in _open(tree) else {})
