"""Skull stripping: by a mask that is there, or by one that a program of the user's makes."""

import shlex
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from medk2n.errors import DatasetError, UsageError
from medk2n.io.nifti import read_labels, write_volume
from medk2n.io.volume import Volume
from medk2n.preparation.draft import Draft, Outcome
from medk2n.vocabulary import modality
from medk2n.workers import run_program

BRAIN = "brain"


@dataclass(frozen=True)
class MaskCommand:
    """A program that is given the reference image and writes a brain mask on its grid.

    Attributes:
        command: its words; `{input}` and `{mask}` stand for the two files (.nii.gz). No shell reads them.
    """

    name: ClassVar[str] = "mask_command"
    command: tuple[str, ...]

    def apply(self, draft: Draft) -> Outcome:
        """The study with the mask as its brain mask.

        Raises:
            UsageError: no such program.
            DatasetError: it fails, writes no mask, or an empty one, or one on another grid.
        """
        reference = draft.scans[draft.reference]
        with tempfile.TemporaryDirectory(prefix="medk2n-") as folder:
            files = {"{input}": Path(folder) / "input.nii.gz", "{mask}": Path(folder) / "mask.nii.gz"}
            write_volume(reference, files["{input}"], description="")
            words = [_filled(word, files) for word in self.command]
            try:
                done = run_program(words)
            except OSError as error:
                raise UsageError(
                    f"--strip-command: {words[0]} cannot be started ({error.strerror}); check its path"
                ) from error
            if done.returncode:
                said = " ".join((done.stderr or done.stdout).split())[-200:] or "it said nothing"
                raise DatasetError(
                    f"{draft.id}: --strip-command ended with code {done.returncode}: {said}; try it by hand on "
                    f"{reference.provenance.get('path', draft.reference)}"
                )
            if not files["{mask}"].is_file():
                raise DatasetError(f"{draft.id}: --strip-command wrote no {{mask}}; expected a mask there (.nii.gz)")
            mask = read_labels(files["{mask}"])
        if not mask.grid.same_as(reference.grid):
            raise DatasetError(
                f"{draft.id}: the mask of --strip-command has shape {mask.grid.shape} or an affine of its own; "
                f"expected the grid of its input, {reference.grid.shape}"
            )
        if not (mask.array > 0).any():
            raise DatasetError(f"{draft.id}: the mask of --strip-command is empty; expected a brain")
        share = float((mask.array > 0).mean())
        return Outcome(replace(draft, masks={**draft.masks, BRAIN: mask}), {"made_on": draft.reference, "share": share})


def words_of(text: str) -> tuple[str, ...]:
    """The words of a command line, as a shell would part them.

    Raises:
        UsageError: no words, or not both places to fill in.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--strip-command {text}: {error}; expected PROGRAM {{input}} {{mask}}") from error
    if not all(any(place in word for word in words) for place in ("{input}", "{mask}")):
        raise UsageError(
            f"--strip-command {text}: expected {{input}} and {{mask}} in it, as in PROGRAM {{input}} {{mask}}"
        )
    return words


def _filled(word: str, files: dict[str, Path]) -> str:
    for place, path in files.items():
        word = word.replace(place, str(path))
    return word


@dataclass(frozen=True)
class Strip:
    """Everything outside a mask becomes air.

    Attributes:
        mask: which one: "brain", "head" or another that the data set has.
    """

    name: ClassVar[str] = "strip"
    mask: str

    def apply(self, draft: Draft) -> Outcome:
        """The study without what is around; all its scans and masks lie on one grid by now.

        Raises:
            DatasetError: the subject has no such mask, or it is empty.
        """
        if self.mask not in draft.masks:
            there = ", ".join(sorted(draft.masks)) or "none"
            raise DatasetError(f"{draft.id}: no {self.mask} mask to strip by (masks: {there}); use --strip-command")
        inside = draft.masks[self.mask].array > 0
        if not inside.any():
            raise DatasetError(f"{draft.id}: the {self.mask} mask is empty; expected the patient in it")
        stripped = {label: _without_rest(volume, inside) for label, volume in draft.scans.items()}
        return Outcome(draft.with_volumes(stripped), {"share": float(inside.mean())})


def _without_rest(volume: Volume, inside: np.ndarray) -> Volume:
    """What is inside alone; it has a grey scale of its own then."""
    array = np.where(inside, volume.array, np.float32(modality(volume.modality).background))
    return Volume(array, volume.grid, volume.modality, {**volume.provenance, "scaling": None})
