"""A user's rules about the fusion, brought onto one study: names checked, masks on the working slices."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from medk2n.config.control import FusionRule
from medk2n.data.working import Workspace, mask_on
from medk2n.errors import UsageError
from medk2n.io.nifti import read_labels
from medk2n.io.volume import LabelMap
from medk2n.models.medk2n_parts.control import Control


@dataclass(frozen=True)
class StudyControl:
    """Rules by target, the masks (s, h, w) bool of those that have one, by (target, input), and their files' hashes."""

    rules: Mapping[str, FusionRule] = field(default_factory=dict)
    masks: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    hashes: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, rules: Mapping[str, FusionRule], inputs: Collection[str], targets: Collection[str], space: Workspace
    ) -> "StudyControl":
        """Check the rules against a study and read their masks.

        Raises:
            UsageError: a target that is not asked for, an input that is not there, rules that contradict each other.
            VolumeReadError, GeometryError: a mask that cannot be used.
        """
        for target, rule in rules.items():
            if target not in targets:
                raise UsageError(f"fusion.{target}: not among the targets ({', '.join(targets)})")
            _check(target, rule, inputs)
        weights = (weight for rule in rules.values() for weight in rule.weights.values())
        read = {path: read_labels(path) for path in sorted({w.where for w in weights if w.where is not None})}
        masks = {
            (target, source): _mask(weight.where, read[weight.where], space)
            for target, rule in rules.items()
            for source, weight in rule.weights.items()
            if weight.where is not None
        }
        return cls(rules, masks, {path: label.sha256 for path, label in read.items()})

    def sources(self, target: str, given: Collection[str]) -> list[str]:
        """Inputs that a target may see."""
        left_out = self.rules[target].leave_out if target in self.rules else ()
        return [name for name in given if name not in left_out]

    def can_start(self, target: str, given: Collection[str]) -> bool:
        """Whether some of `given` may be the target's key frame: not all have bounded weights."""
        bounded = self.rules[target].weights if target in self.rules else ()
        return any(name not in bounded for name in given)

    def for_slices(
        self, names: Sequence[str], box: tuple[slice, slice], at: Sequence[int], device: str = "cpu"
    ) -> Control:
        """The same for a model whose modalities are `names`, on some slices cut to a box."""
        size = (box[0].stop - box[0].start, box[1].stop - box[1].start)
        order, bounds = {}, {}
        for target, rule in self.rules.items():
            j = names.index(target)
            if rule.key is not None:
                order[j] = (names.index(rule.key),)
            for source, weight in rule.weights.items():
                low, high = (0.0, weight.at_most) if weight.fixed is None else (weight.fixed, weight.fixed)
                inside = np.ones((len(at), *size), dtype=bool)
                if (target, source) in self.masks:
                    inside = self.masks[target, source][list(at)][..., *box]
                limits = np.stack([np.where(inside, low, 0.0), np.where(inside, high, 1.0)], axis=1)
                bounds[j, names.index(source)] = torch.from_numpy(limits.astype(np.float32)).to(device)
        return Control(order, bounds)


def _check(target: str, rule: FusionRule, inputs: Collection[str]) -> None:
    named = [*([rule.key] if rule.key else []), *rule.leave_out, *rule.weights]
    if absent := sorted({name for name in named if name not in inputs}):
        raise UsageError(f"fusion.{target}: {', '.join(absent)} is not among the inputs ({', '.join(inputs)})")
    left = [name for name in inputs if name not in rule.leave_out]
    if not left:
        raise UsageError(f"fusion.{target}.leave_out: no input is left; keep at least one")
    if rule.key is not None and rule.key not in left:
        raise UsageError(f"fusion.{target}: {rule.key} is to be the key frame and left out; choose one of the two")
    if rule.key in rule.weights or all(name in rule.weights for name in left):
        name = rule.key or ", ".join(left)
        raise UsageError(
            f"fusion.{target}.weights: {name} is the key frame and enters whole; leave an input without a weight, or "
            "name another key"
        )
    if both := sorted(set(rule.weights) & set(rule.leave_out)):
        raise UsageError(f"fusion.{target}: {', '.join(both)} is left out and has a weight; choose one of the two")


def _mask(path: Path, label: LabelMap, space: Workspace) -> np.ndarray:
    array = mask_on(label, space.reference, str(path))
    inside = space.stack(array.astype(np.float32)) > 0  # linear: a lesion smaller than a working voxel is not lost
    if not inside.any():
        raise UsageError(f"{path}: no voxel of this mask lies in the study; expected some above 0")
    return inside
