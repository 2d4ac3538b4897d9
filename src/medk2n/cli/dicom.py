"""DICOM on the command line: which series is which modality, what was taken for what, and studies of a cohort."""

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medk2n.cli.common import Manifest
from medk2n.cli.complaints import one_line, say

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig
    from medk2n.dicom import DicomStudy, Outline
    from medk2n.report.places import Form


class Format(StrEnum):
    """File formats of images."""

    dicom = "dicom"
    nifti = "nifti"
    both = "both"


def dicom_studies(
    study: Path | None,
    inputs: Sequence[str],
    series: Sequence[str],
    config: "ModelConfig",
    run: Manifest,
    failed: dict[str, Any],
) -> "list[DicomStudy | Outline]":
    """The study if it is DICOM, read and told; of several what is known before they are read; nothing if it is none.

    Of several, those that cannot be used join `failed` (id -> complaint).
    """
    from medk2n.dicom import holds_dicom, read_study, studies_in
    from medk2n.errors import UsageError

    if study is None or inputs or not holds_dicom(study):
        if series:
            raise UsageError("--series chooses among the series of a DICOM study; none was given")
        return []
    if holds_nifti(study):
        raise UsageError(f"{study}: holds DICOM and NIfTI images; expected one of them; name the folder of one")
    places = studies_in(study)
    if len(places) == 1:
        found = read_study(places[0], series=_named_series(series), known=config.modalities)
        run.facts["dicom"] = tell_study(found)
        return [found]
    if series:
        raise UsageError(f"--series names a series of one study; {study} holds {len(places)}; complete that one alone")
    say(f"{study}: {len(places)} studies of DICOM")
    return _outlines(study, places, config, failed)


def holds_nifti(folder: Path) -> bool:
    """Whether a folder is a study of NIfTI images, whatever else is in it."""
    from medk2n.data.datasets.studies import study_files
    from medk2n.io.names import recognise

    return folder.is_dir() and any(recognise(path) for path in study_files(folder))


def _outlines(
    cohort: Path, places: Sequence[Path], config: "ModelConfig", failed: dict[str, Any]
) -> "list[DicomStudy | Outline]":
    from medk2n.dicom import Outline, outline_study
    from medk2n.errors import DicomError

    found: dict[str, Outline] = {}
    for place in places:
        try:
            one = outline_study(place, known=config.modalities)
            if one.id in found:
                raise DicomError(f"{place}: is the study that lies in {found[one.id].source} too; keep one of them")
        except DicomError as error:
            relative = place.relative_to(cohort).as_posix()
            failed[f"folder-{hashlib.sha256(relative.encode()).hexdigest()[:8]}"] = str(error)
            continue
        found[one.id] = one
        say(one_line(f"{one.id}: {place} ({', '.join(one.modalities)})"))
    if not found:
        raise DicomError(f"{cohort}: all {len(places)} studies are faulty; the first: {next(iter(failed.values()))}")
    return list(found.values())


def tell_study(found: "DicomStudy") -> dict[str, Any]:
    """Say what was taken for what, what was left out and what else is to know; returns the same for the manifest."""
    for name, one in found.series.items():
        say(f"{name}: series {one.uid}, {len(one.instances)} slices ({one.evidence})")
    for row in found.left_out:
        say(f"left out: {f'series {row.series}, ' if row.series else ''}{row.images} images ({row.reason})")
    for note in found.notes:
        say(f"note: {note}")
    return {
        "study": found.uid,
        "series": {
            name: {"uid": one.uid, "evidence": one.evidence, "sha256_of_voxels": one.volume.provenance["sha256"]}
            for name, one in found.series.items()
        },
        "left_out": [{"series": row.series, "images": row.images, "reason": row.reason} for row in found.left_out],
        "notes": list(found.notes),
    }


def content_digest(source: Path) -> str:
    """SHA-256 of all that is in a study's folder or .zip, whatever the files are called and wherever they lie in it."""
    from medk2n.dicom.files import regular_files
    from medk2n.io.atomic import sha256_file

    digests = sorted(map(sha256_file, [source] if source.is_file() else regular_files(source)))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _named_series(values: Sequence[str]) -> dict[str, str]:
    """`t1n=1.2.3`, modality -> series UID."""
    from medk2n.errors import UsageError
    from medk2n.vocabulary import modality

    chosen: dict[str, str] = {}
    for value in values:
        name, _, uid = value.partition("=")
        if not uid:
            raise UsageError(f"--series {value}: expected MODALITY=SERIES_UID")
        short = modality(name).name
        if short in chosen:
            raise UsageError(f"--series names {short} twice; give each modality once")
        chosen[short] = uid
    return chosen


def form_of(wanted: Format | None, *, is_dicom: bool, burn_in: bool | None) -> "Form":
    """In which files images come; raises UsageError for DICOM without a study of DICOM."""
    from medk2n.errors import UsageError
    from medk2n.report.places import Form

    if wanted in (Format.dicom, Format.both) and not is_dicom:
        raise UsageError(f"--format {wanted}: a DICOM series joins a DICOM study, and none was given; give its folder")
    wanted = wanted or (Format.dicom if is_dicom else Format.nifti)
    return Form(wanted != Format.dicom, wanted != Format.nifti, burn_in)
