"""Which stack of a study is which modality; in doubt the caller decides, and what is left out is named."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from medk2n.dicom.contrast import verdict
from medk2n.dicom.stacks import Stack
from medk2n.errors import DicomError, UsageError

_FEWEST = 5  # slices of a volume
_MOST_NAMED = 4  # series in one complaint
_PHASES = frozenset({"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"})


@dataclass(frozen=True)
class LeftOut:
    """What no input was made of: how many images of a series, and why."""

    series: str
    images: int
    reason: str


@dataclass(frozen=True)
class Choice:
    """Stacks that are inputs (modality -> stack and what says so), and the rest."""

    stacks: dict[str, Stack]
    evidence: dict[str, str]
    left_out: list[LeftOut]


def choose(stacks: Sequence[Stack], wishes: Mapping[str, str], known: Collection[str] | None) -> Choice:
    """Find one stack for each modality.

    Args:
        wishes: modality -> series UID (with #2, ... for a part of it), decided by the caller.
        known: modalities wanted; stacks of others are left out. None is all.

    Raises:
        DicomError: a stack that may be two modalities, or two stacks of one; names both and what says so.
        UsageError: a wish for a series that is not there.
    """
    by_name = {stack.name: stack for stack in stacks}
    for name, series in wishes.items():
        if series not in by_name:
            raise UsageError(
                f"--series {name}={series}: no such series of images; there are: {', '.join(by_name) or 'none'}"
            )
    chosen, left_out = {name: by_name[series] for name, series in wishes.items()}, []
    evidence = dict.fromkeys(wishes, "named by --series")
    candidates: dict[str, list[tuple[Stack, str]]] = {}
    for stack in stacks:
        if stack.name in wishes.values():
            continue
        reason = _no_input(stack)
        reasons = {} if reason else verdict(stack.facts).reasons
        if not reason:
            reason = _no_candidate(reasons, wishes, known)
        if reason:
            left_out.append(LeftOut(stack.name, len(stack.frames), reason))
        elif len(reasons) > 1:
            raise DicomError(_in_doubt(stack, reasons))
        else:
            candidates.setdefault(next(iter(reasons)), []).append((stack, next(iter(reasons.values()))))
    for name, found in candidates.items():
        if len(found) > 1:
            raise DicomError(_two_of(name, found))
        (chosen[name], evidence[name]) = found[0]
    return Choice(chosen, evidence, left_out)


def _no_input(stack: Stack) -> str:
    """Why a stack is no scan to start from; empty if it is."""
    kinds = stack.facts.image_type
    if "LOCALIZER" in kinds:
        return "localiser"
    if _PHASES & set(kinds[2:3]):
        return "phase, not magnitude"
    made = "DERIVED" in kinds or "SECONDARY" in kinds
    if made and not {"ADC", "TRACEW", "TRACE"} & set(kinds):
        return "derived from other images"
    if len(stack.frames) < _FEWEST:
        return f"{len(stack.frames)} slices, a volume has {_FEWEST} or more"
    return ""


def _no_candidate(reasons: Mapping[str, str], wishes: Mapping[str, str], known: Collection[str] | None) -> str:
    if not reasons:
        return "contrast not recognised"
    if known is not None and not set(reasons) & set(known):
        return f"{' or '.join(reasons)}, which the model does not know"
    if set(reasons) <= set(wishes):
        return f"{' or '.join(reasons)}, for which --series names another"
    return ""


def _in_doubt(stack: Stack, reasons: Mapping[str, str]) -> str:
    options = " or ".join(f"{name} ({why})" for name, why in reasons.items())
    cures = " or ".join(f"--series {name}={stack.name}" for name in reasons)
    return f"series {stack.name} may be {options}; say which: {cures}"


def _two_of(name: str, found: Sequence[tuple[Stack, str]]) -> str:
    listed = " and ".join(f"{stack.name} ({len(stack.frames)} slices; {why})" for stack, why in found[:_MOST_NAMED])
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return f"{len(found)} series are {name}: {listed}{more}; choose one with --series {name}=SERIES_UID"
