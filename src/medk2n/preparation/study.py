"""One study through all steps, and what is written of it."""

import json
import platform
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import medk2n
from medk2n.data.prepared import (
    FORMAT,
    STUDY,
    ImageRecord,
    Shape,
    StudyRecord,
    mask_name,
    read_record,
    subject_of,
)
from medk2n.data.statistics import Moments
from medk2n.data.stored import Stored
from medk2n.data.subject import Subject
from medk2n.data.working import load_working
from medk2n.errors import DatasetError, OutputExistsError
from medk2n.gatekeeper import Gatekeeper
from medk2n.io.atomic import sha256_array, sha256_file, write_json
from medk2n.io.nifti import write_int16, write_labels
from medk2n.io.outputs import record_folder
from medk2n.preparation.ants import AntsRegister
from medk2n.preparation.draft import Draft, Step, read_draft
from medk2n.preparation.n4 import N4
from medk2n.preparation.preview import write_preview
from medk2n.preparation.register import Register
from medk2n.preparation.regrid import Regrid
from medk2n.preparation.strip import BRAIN, MaskCommand, Strip

PREVIEW = "preview.png"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to every study; all of it may be left out.

    Attributes:
        spacing_mm: in-plane spacing of the working grid; None keeps each study's own.
        reference: modality that the others are brought to; None, or where a subject lacks it: its first in name order.
        register: rigidly, to the reference.
        ants: register by ANTs, which has to be installed.
        n4: divide out the shading of coils.
        strip: name of the mask outside which all becomes air.
        strip_command: words of a program that makes a brain mask, by which it is then stripped.
    """

    spacing_mm: float | None = None
    reference: str | None = None
    register: bool = False
    ants: bool = False
    n4: bool = False
    strip: str | None = None
    strip_command: tuple[str, ...] | None = None

    def steps(self) -> list[Step]:
        """In the order in which they are taken: what looks at scans as acquired before what resamples them."""
        steps: list[Step] = []
        steps += [AntsRegister() if self.ants else Register()] if self.register else []
        steps += [N4()] if self.n4 else []
        steps += [MaskCommand(self.strip_command)] if self.strip_command else []
        steps += [Regrid(self.spacing_mm)]
        mask = BRAIN if self.strip_command else self.strip
        return steps + ([Strip(mask)] if mask else [])

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data, by which two runs are compared."""
        steps = [{"step": step.name, **asdict(step)} for step in self.steps()]  # type: ignore[call-overload]
        return json.loads(json.dumps([{"step": "read", "reference": self.reference}, *steps]))


def prepare_study(
    subject: Subject, plan: Plan, place: Path, root: Path, scratch: Path, keeper: Gatekeeper | None = None
) -> StudyRecord:
    """Take one subject through the steps and write it to the folder `place`, whole or not at all.

    Args:
        root: of its data set; sources are named relative to it.
        scratch: folder on the same disk where it is made.
        keeper: looks at its scans before anything is done to them.

    Raises:
        Medk2nError: it cannot be read, a step cannot be taken, or a file cannot be written.
    """
    draft, done, warnings = _through_steps(subject, plan, keeper)
    sources = hashes(subject, root)
    _refuse_changed(draft, set(sources.values()))
    filling = scratch / place.name
    try:
        filling.mkdir()
        cut = _write_images(draft, filling)
        write_preview(draft, filling / PREVIEW)
        warnings += [
            f"{label}: {count} voxels were far beyond all others and were cut off" for label, count in cut.items()
        ]
        record = _write_cache(draft, subject, filling, sources=sources, steps=done, warnings=warnings)
        record_folder(filling)
        filling.rename(place)
    finally:
        shutil.rmtree(filling, ignore_errors=True)
    return record


def _refuse_changed(draft: Draft, now: Collection[str]) -> None:
    """What was read has to be what is there, or the sidecar would tell of other voxels.

    Raises:
        DatasetError: a NIfTI file is not what it was when it was read.
    """
    for volume in draft.scans.values():
        path, read = Path(volume.provenance.get("path") or ""), volume.provenance.get("sha256")
        if path.name.lower().endswith((".nii", ".nii.gz")) and read not in now:
            raise DatasetError(f"{path}: was changed while it was prepared; prepare it again")


def _through_steps(
    subject: Subject, plan: Plan, keeper: Gatekeeper | None = None
) -> tuple[Draft, list[dict[str, Any]], list[str]]:
    draft = read_draft(subject, plan.reference)
    done: list[dict[str, Any]] = [{"step": "read", "reference": draft.reference, "scans": _read_from(draft)}]
    warnings: list[str] = []
    if keeper:
        examined = keeper.examine(draft.scans, draft.reference, pairs=not plan.register).admitted()
        done[0]["checks"] = examined.to_json()
        warnings += examined.lines()
    for step in plan.steps():
        outcome = step.apply(draft)
        draft = outcome.draft
        done.append({"step": step.name, **asdict(step), "done": dict(outcome.facts)})  # type: ignore[call-overload]
        warnings += outcome.warnings
    return draft, done, warnings


def _read_from(draft: Draft) -> dict[str, Any]:
    return {
        label: {"path": str(v.provenance.get("path", "")), "shape": v.grid.shape, "affine": v.grid.affine.tolist()}
        for label, v in draft.scans.items()
    }


def _write_images(draft: Draft, folder: Path) -> dict[str, int]:
    """Returns how many voxels were cut off, where any were."""
    cut = {label: write_int16(volume, folder / f"{label}.nii") for label, volume in draft.scans.items()}
    for kind, mask in draft.masks.items():
        write_labels(mask, folder / mask_name(kind))
    return {label: count for label, count in cut.items() if count}


def _write_cache(
    draft: Draft,
    subject: Subject,
    folder: Path,
    *,
    sources: dict[str, str],
    steps: list[dict[str, Any]],
    warnings: list[str],
) -> StudyRecord:
    """What training draws from, made of the files just written, so that it is what any reader would make of them."""
    first = draft.scans[draft.reference]
    grid = Shape(
        shape=first.grid.shape,
        affine=tuple(map(tuple, first.grid.affine.tolist())),
        spacing="stated" if draft.spacing_known else "unknown",
        slice_axis=first.provenance["slice_axis"],
    )
    images = {
        label: ImageRecord(modality=v.modality, target=label == v.modality, scaling=v.provenance["scaling"])
        for label, v in draft.scans.items()
    }
    written = subject_of(folder, subject.id, grid, images, draft.masks)
    study = load_working(written, spacing_mm=None)
    names = written.modalities
    Stored.of(study, names).save(folder, names)
    moments = Moments.of(study, names)
    fitted = {name: images[name].model_copy(update={"scaling": study.scalings[name].to_json()}) for name in names}
    record = StudyRecord(
        format=FORMAT,
        id=subject.id,
        site=subject.site,
        patient=subject.patient,
        sources=sources,
        grid=grid,
        images=images | fitted,
        masks=sorted(draft.masks),
        digests={name: sha256_array(image) for name, image in study.images.items()},
        moments={"modalities": moments.modalities, "mean": moments.mean.tolist(), "product": moments.product.tolist()},
        steps=steps,
        warnings=warnings,
        versions=versions(),
    )
    write_json(folder / STUDY, record.model_dump())
    return record


def hashes(subject: Subject, root: Path) -> dict[str, str]:
    """SHA-256 of every file of a subject, named relative to its data set where it lies in it."""
    files = {
        *subject.files,
        *(image for f in subject.files if (image := f.with_suffix(".img")) != f and image.is_file()),
    }
    named = {str(file.relative_to(root)) if file.is_relative_to(root) else str(file): file for file in files}
    return {name: sha256_file(named[name]) for name in sorted(named)}


def is_there(subject: Subject, place: Path, root: Path) -> bool:
    """Whether a subject was prepared before, from the same files.

    Raises:
        OutputExistsError: it was, from other files, or as another subject.
        DatasetError: its sidecar cannot be read.
    """
    if not place.exists():
        return False
    record = read_record(place)
    now = hashes(subject, root)
    changed = sorted(name for name in {*now, *record.sources} if now.get(name) != record.sources.get(name))
    if record.id != subject.id or changed:
        what = f"{changed[0]} is not what it was" if changed else f"holds {record.id}"
        raise OutputExistsError(
            f"{place} was prepared from other files ({what}); remove the folder to prepare it again, or choose another "
            "--out"
        )
    return True


def versions() -> dict[str, str]:
    """Of what decides about the result."""
    used = {name: metadata.version(name) for name in ("numpy", "scipy", "nibabel", "SimpleITK")}
    return {"medk2n": medk2n.__version__, "python": platform.python_version(), **used}
