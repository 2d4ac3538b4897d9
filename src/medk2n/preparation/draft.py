"""A study on its way through the steps, and what every step is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from medk2n.data.subject import Subject
from medk2n.errors import DatasetError
from medk2n.io.volume import LabelMap, Volume


@dataclass(frozen=True)
class Draft:
    """A study between two steps.

    Attributes:
        id: of the subject.
        scans: what a file is going to be called ("t1n", "acq-random_run-1_t1n") -> its volume; the reference first.
        masks: "brain", "lesion", ... -> mask or segmentation.
    """

    id: str
    scans: Mapping[str, Volume]
    masks: Mapping[str, LabelMap]

    @property
    def reference(self) -> str:
        """Which scan the others are brought to."""
        return next(iter(self.scans))

    @property
    def spacing_known(self) -> bool:
        """Whether millimetres mean anything."""
        return self.scans[self.reference].provenance.get("spacing") != "unknown"

    def with_volumes(self, volumes: Mapping[str, Volume]) -> "Draft":
        """The same study with some of its scans replaced."""
        return replace(self, scans={label: volumes.get(label, volume) for label, volume in self.scans.items()})


@dataclass(frozen=True)
class Outcome:
    """What a step made of a study.

    Attributes:
        draft: the study after it.
        facts: plain data for the sidecar: what was done to each scan, or why it was left as it is.
        warnings: lines that a person should read.
    """

    draft: Draft
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Step(Protocol):
    """One step; a dataclass whose fields are its parameters."""

    name: ClassVar[str]

    def apply(self, draft: Draft) -> Outcome:
        """Take one study through it."""


def read_draft(subject: Subject, reference: str | None) -> Draft:
    """Read all that a subject has.

    Args:
        reference: modality that the others are brought to, where the subject has it; else its first in name order.

    Raises:
        DatasetError: it has no image that could be a target.
        VolumeReadError, GeometryError: a file that cannot be used.
    """
    if not subject.readers:
        raise DatasetError(f"{subject.id}: only scans that serve as inputs, expected one of another protocol")
    scans = {name: subject.readers[name]() for name in sorted(subject.modalities, key=lambda n: (n != reference, n))}
    for name in sorted(subject.inputs_only):
        for number, read in enumerate(subject.inputs_only[name], 1):
            scans[f"acq-random_run-{number}_{name}"] = read()
    return Draft(subject.id, scans, {kind: read() for kind, read in subject.masks.items()})
