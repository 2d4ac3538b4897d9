"""From facts about the data and the machine to every setting that was left `auto`, each with its reason.

The rules are few and stand in docs/training.md. What is stated stays, and moves what depends on it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from medk2n.config.draft import SETTINGS, Draft
from medk2n.config.schema import TrainConfig
from medk2n.data.fingerprint import Fingerprint, take_fingerprint
from medk2n.errors import ConfigError, DatasetError
from medk2n.training.begin import taken_over
from medk2n.training.machine import Machine, look_at_machine
from medk2n.training.memory import Need, cost
from medk2n.training.reading import Report, learned_from, refuse_unseen
from medk2n.training.sizing import choose_sizes, sizes_of

FINEST_MM = {"CPU": 1.5, "GPU": 1.0}
_LEAST_SHARE, _LEAST_SUBJECTS = 0.02, 2
_SHOWN, _STEPS = 80, (20_000, 200_000)
_SECONDS_A_SLICE, _MINUTES = 3, (60, 480)
_GB = 1e9


@dataclass(frozen=True)
class Decision:
    """One setting; `by` is "planned", with the reason, or who stated it: "you", "preset", "model" or "default"."""

    field: str
    value: Any
    by: str
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """All settings of a run, and why.

    Attributes:
        fingerprint, machine: what the rules saw.
        decisions: every setting that can be planned.
        notes: what follows from them: how slices lie, what memory it takes.
        tree: the settings as they are written into a file.
        config: the same, validated.
    """

    fingerprint: Fingerprint
    machine: Machine
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    tree: dict[str, Any]
    config: TrainConfig


def make_plan(draft: Draft, device: str, report: Report | None = None) -> Plan:
    """Look at the data that a draft names and at this machine, and settle what is open.

    Raises:
        ConfigError: no data, an id that is nowhere, a modality that no subject has, settings that do not go together.
        DatasetError: no subject, no patient, or no two modalities that are there together.
        VolumeReadError, GeometryError: an image cannot be read.
    """
    if not draft.config.data:
        raise ConfigError("no training data: give --data DIR")
    draft = taken_over(draft)
    tell = report or (lambda stage, share, numbers: None)
    subjects = [subject for *_, chosen in learned_from(draft.config) for subject in chosen]
    facts = take_fingerprint(subjects, lambda share: tell("looking at the data", share, {}))
    return decide(draft, facts, look_at_machine(device))


def decide(draft: Draft, facts: Fingerprint, machine: Machine) -> Plan:
    """Apply the rules; raises as `make_plan`."""
    planned: dict[str, tuple[Any, str]] = {}

    def values() -> dict[str, Any]:
        return {key: value for key, (value, _) in planned.items()}

    if "modalities" in draft.open:
        planned["modalities"] = _modalities(facts)
    refuse_unseen(draft.config_with(values()), facts.images)
    if "spacing_mm" in draft.open:
        planned["spacing_mm"] = _spacing(facts, machine)
    planned |= choose_sizes(draft, draft.config_with(values()), facts, machine)
    if "budget" in draft.open:
        planned["budget"] = _budget(facts, machine, draft.config_with(values()).batch.size)
    config = draft.config_with(values())
    decisions = [
        Decision(key, value, "planned", planned[key][1])
        if key in planned
        else Decision(key, value, draft.decided_by(key))
        for key, value in _settings(config)
    ]
    notes = (_slicing(facts), *_unstated(facts), _memory(config, facts, machine))
    return Plan(facts, machine, tuple(decisions), notes, draft.filled(values()), config)


def _settings(config: TrainConfig) -> Iterator[tuple[str, Any]]:
    """Every setting that can be planned, with its value."""
    tree = config.model_dump(mode="json", exclude_none=True)
    for key in SETTINGS:
        outer, _, inner = key.partition(".")
        yield key, tree[outer][inner] if inner else tree[outer]
    for choice in config.models:
        for name in sizes_of(choice.name):
            if name in choice.params:
                yield f"models.{choice.name}.params.{name}", choice.params[name]


def _modalities(facts: Fingerprint) -> tuple[list[str], str]:
    """Those that enough subjects have beside another one that is kept."""
    least = min(facts.subjects, max(_LEAST_SUBJECTS, ceil(_LEAST_SHARE * facts.subjects)))
    kept, before = set(facts.images), -1
    while len(kept) != before:
        before = len(kept)
        together = [(set(pattern.split()) & kept, n) for pattern, n in facts.patterns.items()]
        kept = {k for k in kept if sum(n for names, n in together if k in names and len(names) > 1) >= least}
    if not kept:
        raise DatasetError(
            f"no two modalities are there together in {_subjects(least)}, found {_listed(facts.patterns)}; a model "
            "learns from subjects that have both what goes in and what comes out"
        )
    left_out = {name: n for name, n in facts.images.items() if name not in kept}
    reason = f"at least {_subjects(least)} have each together with another"
    return sorted(kept), reason + (f"; left out: {_listed(left_out)}" if left_out else "")


def _spacing(facts: Fingerprint, machine: Machine) -> tuple[float, str]:
    """The data's own, no finer than the device learns from in good time."""
    finest = FINEST_MM[machine.kind]
    if facts.in_plane_mm is None:
        return (
            finest,
            "none is stated, the data are used voxel by voxel; set it if you know it, for scans that state theirs",
        )
    own = round(facts.in_plane_mm, 2)
    if own < finest:
        return finest, f"the data have {own:g} mm; on a {machine.kind} not finer than {finest:g} mm"
    return own, "the data's own, in plane"


def _budget(facts: Fingerprint, machine: Machine, size: int) -> tuple[dict[str, float], str]:
    slices = f"about {facts.useful_slices} slices"
    if machine.is_cpu:
        minutes = min(max(facts.useful_slices * _SECONDS_A_SLICE / 60, _MINUTES[0]), _MINUTES[1])
        bounds = f"within {_MINUTES[0]} and {_MINUTES[1]} minutes"
        return {"minutes": float(round(minutes))}, f"for each model {_SECONDS_A_SLICE} s for each of {slices}, {bounds}"
    steps = min(max(facts.useful_slices * _SHOWN // size, _STEPS[0]), _STEPS[1])
    shown = steps * size / max(1, facts.useful_slices)
    return {
        "steps": steps
    }, f"each of {slices} is shown {shown:.0f} times ({_SHOWN}, within {_STEPS[0]} and {_STEPS[1]} steps)"


def _slicing(facts: Fingerprint) -> str:
    distance = "" if facts.slice_mm is None else f", {facts.slice_mm:g} mm apart (median)"
    return f"Slices are kept as they lie, across the coarsest axis: {_listed(facts.planes)}{distance}."


def _unstated(facts: Fingerprint) -> list[str]:
    if not facts.unstated:
        return []
    return [f"Without a stated spacing, so used voxel by voxel: {facts.unstated} of {_subjects(facts.subjects)}."]


def _memory(config: TrainConfig, facts: Fingerprint, machine: Machine) -> str:
    costs = [cost(choice, len(config.modalities), config.batch, config.losses) for choice in config.models]
    need = Need.of(costs, config.batch.size, config.batch.crop, facts.voxels(config.spacing_mm))
    free = "unknown" if machine.memory is None else f"{machine.memory / _GB:.1f} GB"
    told = (
        f"Memory: about {need.main(machine) / _GB:.1f} GB ({free} free); the data are {need.data / _GB:.2f} GB of it, "
        f"{need.reading / _GB:.2f} GB while they are read"
    )
    if machine.device_memory is not None:
        told += f"; on the {machine.name} about {need.step / _GB:.1f} GB ({machine.device_memory / _GB:.1f} GB free)"
    if machine.memory is not None and need.main(machine) > machine.memory:
        told += ". MORE THAN IS FREE: take fewer subjects, or lower batch.size or batch.crop"
    return f"{told}."


def _subjects(n: int) -> str:
    return f"{n} subject{'s' if n != 1 else ''}"


def _listed(counts: Mapping[str, int]) -> str:
    """ "t1n (3), t2f (1)"."""
    return ", ".join(f"{name} ({n})" for name, n in counts.items())
