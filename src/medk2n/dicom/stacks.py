"""Series into stacks: slices of one orientation, one size and one contrast, each position once."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from medk2n.dicom.frame import Facts, Frame
from medk2n.errors import DicomError

_SAME_DIRECTION = 1e-3  # of a cosine
_SAME_SPACING = 1e-3  # of a spacing
_SAME_PLACE = 1e-3  # mm
_MOST_PLANES = 200  # a series of radial slices has some dozens


@dataclass(frozen=True)
class Stack:
    """Slices that may be one volume.

    Attributes:
        name: the SeriesInstanceUID, with #2, #3, ... where a series holds several.
        frames: sorted along the normal of the slices, upwards.
        repeated: places that still hold several slices, which nothing tells apart.
    """

    name: str
    frames: tuple[Frame, ...]
    repeated: int = 0

    @property
    def facts(self) -> Facts:
        """Of its first slice; all have the same contrast."""
        return self.frames[0].facts


def stacks(frames: Iterable[Frame]) -> list[Stack]:
    """Sort the frames of a study; in the order of their series numbers."""
    ordered = sorted(frames, key=lambda frame: (frame.series_number, frame.series))
    found = []
    for series, members in groupby(ordered, key=lambda frame: frame.series):
        parts = [part for plane in _planes(list(members)) for part in _contrasts(plane)]
        parts.sort(key=lambda part: -len(part))
        for number, part in enumerate(parts, 1):
            name = series if number == 1 else f"{series}#{number}"
            heights = _heights(part)
            repeated = int((np.diff(heights) < _SAME_PLACE).sum())
            found.append(Stack(name, tuple(part), repeated))
    return found


def without_copies(frames: Sequence[Frame]) -> list[Frame]:
    """One of each SOP instance and frame: the same file twice in a folder is one slice."""
    return list({(frame.sop_uid, frame.number): frame for frame in reversed(frames)}.values())[::-1]


def normal(frame: Frame) -> np.ndarray:
    """(3,) across the slice, LPS."""
    return np.cross(frame.row, frame.column)


def _heights(frames: Sequence[Frame]) -> np.ndarray:
    return np.array([frame.position for frame in frames]) @ normal(frames[0])


def _planes(frames: list[Frame]) -> list[list[Frame]]:
    """Apart by orientation, size and spacing, which are measured: near ones are the same."""
    groups: list[list[Frame]] = []
    for frame in frames:
        group = next((group for group in groups if _same_plane(group[0], frame)), None)
        if group is None and len(groups) == _MOST_PLANES:
            raise DicomError(
                f"series {frame.series}: its images lie in more than {_MOST_PLANES} directions or sizes; it is "
                "damaged, or no volume; leave it out"
            )
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    return groups


def _same_plane(a: Frame, b: Frame) -> bool:
    return (
        (a.rows, a.columns, a.sop_class, a.frame_of_reference) == (b.rows, b.columns, b.sop_class, b.frame_of_reference)
        and np.allclose((*a.row, *a.column), (*b.row, *b.column), atol=_SAME_DIRECTION)
        and np.allclose(a.spacing_mm, b.spacing_mm, rtol=_SAME_SPACING)
    )


def _contrasts(frames: list[Frame]) -> list[list[Frame]]:
    """Apart by what makes a contrast; then, where positions still repeat, by time and acquisition."""
    groups = [_sorted(group) for group in _by(frames, _contrast)]
    for index in range(max(len(frame.order) for frame in frames)):
        groups = [part for group in groups for part in (_by_order(group, index) if _repeats(group) else [group])]
    return groups


def _by_order(frames: list[Frame], index: int) -> list[list[Frame]]:
    return [_sorted(part) for part in _by(frames, lambda frame: frame.order[index : index + 1])]


def _contrast(frame: Frame) -> Hashable:
    facts = frame.facts
    return replace(
        facts,
        echo_ms=_rounded(facts.echo_ms),
        inversion_ms=_rounded(facts.inversion_ms),
        b_value=_rounded(facts.b_value),
        repetition_ms=None,  # drifts within a triggered series
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _by(frames: Sequence[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    groups: dict[Hashable, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(key(frame), []).append(frame)
    return list(groups.values())


def _sorted(frames: Sequence[Frame]) -> list[Frame]:
    heights = _heights(frames)
    return [frames[i] for i in np.argsort(heights, kind="stable")]


def _repeats(frames: Sequence[Frame]) -> bool:
    return bool((np.diff(_heights(frames)) < _SAME_PLACE).any())
