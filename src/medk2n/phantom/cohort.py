"""A cohort of digital subjects as a BIDS data set, with the truth beside it under `derivatives/truth`."""

import csv
import json
import multiprocessing
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import medk2n
from medk2n.errors import UsageError
from medk2n.io.names import bids_name
from medk2n.io.outputs import output_folder
from medk2n.phantom.acquire import coil_shading, scan, scan_adc
from medk2n.phantom.anatomy import Anatomy, load_icbm152
from medk2n.phantom.body import Body, build_body
from medk2n.phantom.ceilings import FIELDS as CEILING_FIELDS
from medk2n.phantom.ceilings import noise_ceiling, unknown_protocol_ceiling, with_noise
from medk2n.phantom.signal import FIXED, RANDOM_MODALITIES, Protocol, random_protocol
from medk2n.phantom.tissues import LESION_LABELS, TISSUES, draw_tissues
from medk2n.vocabulary import modality
from medk2n.workers import each

Progress = Callable[[int, int], None]

# Strength of what shades one scan alone; diffusion is read out of an array coil and stored without a correction.
OWN_SHADING, OWN_SHADING_DWI = 0.10, 0.22
_MADE_BY = "medk2n phantom"
_DESCRIPTION = "dataset_description.json"


@dataclass(frozen=True)
class CohortPlan:
    """What every subject of a cohort has in common; sent to the workers."""

    folder: Path
    seed: int
    spacing_mm: float
    protocols: Literal["fixed", "random"]
    anatomy: Path | None
    stripped: bool
    slice_mm: float | None


def make_cohort(
    out: Path | str,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 1.0,
    protocols: Literal["fixed", "random"] = "fixed",
    anatomy: Path | str | None = None,
    stripped: bool = False,
    slice_thickness_mm: float | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a cohort of digital subjects with t1n t1c t2w t2f pd dwi adc ct.

    A subject depends on `seed` and its own number alone, not on how many there are or who makes it.

    Args:
        out: folder to make; what is in it appears when all is written, its description last.
        subjects: how many, at least 1.
        seed: of the cohort.
        spacing_mm: edge of the isotropic voxels.
        protocols: "fixed" (one protocol per modality) or "random" (beside it a second acquisition of each
            MR contrast under random parameters, `acq-random`: an input for training, never a target).
        anatomy: a T1-weighted NIfTI whose head is used instead of ICBM152.
        stripped: brain only; MR and ADC are 0 around it and CT is -1000.
        slice_thickness_mm: blur along z as slices this thick would; the grid stays isotropic.
        workers: processes; by default two, or one where there is one core.
        overwrite: replace an earlier cohort.
        progress: called with (subjects done, subjects wanted).

    Returns:
        `out` as a Path.

    Raises:
        UsageError: an argument out of range.
        OutputExistsError: a cohort is there and `overwrite` is False, or anything else is.
        OutputPermissionError, SystemLimitError.
    """
    if subjects < 1 or not 0.5 <= spacing_mm <= 8 or protocols not in ("fixed", "random") or seed < 0:
        raise UsageError(
            f"phantom: expected subjects >= 1, seed >= 0, spacing 0.5 to 8 mm and protocols fixed or random; "
            f"got subjects {subjects}, seed {seed}, spacing {spacing_mm}, protocols {protocols!r}"
        )
    head = Path(anatomy) if anatomy else None
    with output_folder(out, ["*"], overwrite=overwrite) as place, place.whole(last=_DESCRIPTION) as new:
        plan = CohortPlan(new, seed, spacing_mm, protocols, head, stripped, slice_thickness_mm)
        records = _make_all(plan, subjects, workers or min(2, os.cpu_count() or 1), progress)
        _write_tables(plan, [records[i] for i in sorted(records)])
    return Path(out)


def _make_all(plan: CohortPlan, subjects: int, workers: int, progress: Progress | None) -> dict[int, dict[str, Any]]:
    """Make every subject; number -> record. The anatomy is loaded before workers fork, so that they share it."""
    _anatomy(plan)
    records: dict[int, dict[str, Any]] = {}
    start = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    work, numbers = partial(make_subject, plan), range(1, subjects + 1)
    with closing(each(work, numbers, min(workers, subjects), start=start, prepare=_one_thread)) as made:
        for number, record in made:
            records[number] = record
            if progress:
                progress(len(records), subjects)
    return records


def _one_thread() -> None:
    """A worker uses one core; the process that started it keeps its own setting."""
    import torch

    torch.set_num_threads(1)


def _anatomy(plan: CohortPlan) -> Anatomy:
    if plan.anatomy is None:
        return load_icbm152()
    from medk2n.phantom.segment import load_head

    return load_head(plan.anatomy)


def subject_rng(seed: int, number: int, purpose: int = 0) -> np.random.Generator:
    """The source of chance of one subject, independent of all others."""
    return np.random.default_rng([seed, number, purpose])


def make_subject(plan: CohortPlan, number: int) -> dict[str, Any]:
    """Draw, scan and write one subject; what the tables of the cohort need comes back."""
    name = f"{number:03d}"
    body = build_body(_anatomy(plan), subject_rng(plan.seed, number), plan.spacing_mm, stripped=plan.stripped)
    tissues = draw_tissues(subject_rng(plan.seed, number, 1))
    shading = coil_shading(subject_rng(plan.seed, number, 2), body)
    writer = _Writer(plan, name, body)
    thin = body.thinned()
    ceilings = []
    for slot, (kind, protocol) in enumerate(FIXED.items()):
        rng = subject_rng(plan.seed, number, 10 + slot)
        noisy, clean = _scan(plan, rng, body, tissues, kind, protocol, shading)
        writer.image(kind, noisy, protocol)
        writer.truth(kind, clean)
        ceilings += [{"subject": f"sub-{name}", "modality": kind, **row} for row in noise_ceiling(noisy, clean, body)]
        if kind in RANDOM_MODALITIES:
            unknown = unknown_protocol_ceiling(subject_rng(plan.seed, number, 40 + slot), thin, tissues, kind)
            for row, value in zip(ceilings[-2:], unknown, strict=True):
                row["unknown_protocol_psnr_db"] = with_noise(value, row["noise_psnr_db"])
            if plan.protocols == "random":
                other = random_protocol(rng, kind)
                writer.image(kind, _scan(plan, rng, body, tissues, kind, other, shading)[0], other, acq="random")
    writer.maps()
    return {"number": number, "lesion": body.plan.kind, "lesion_ml": writer.lesion_ml(), "ceilings": ceilings}


def _scan(plan, rng, body, tissues, kind: str, protocol: Protocol, shading) -> tuple[np.ndarray, np.ndarray]:
    """One modality of one subject; brain only, if the plan says so."""
    if kind == "adc":
        noisy, clean = scan_adc(rng, body, tissues, protocol, plan.slice_mm)
    else:
        strength = OWN_SHADING_DWI if kind == "dwi" else OWN_SHADING
        own = coil_shading(rng, body, strength) if kind != "ct" else 1.0
        noisy, clean = scan(rng, body, tissues, protocol, shading * own, plan.slice_mm)
    if plan.stripped:
        empty = modality(kind).background
        noisy, clean = (np.where(body.brain, image, empty) for image in (noisy, clean))
    return noisy, clean


class _Writer:
    """Puts one subject's files where BIDS wants them; not one by one under other names: the whole cohort is renamed."""

    def __init__(self, plan: CohortPlan, name: str, body: Body) -> None:
        self._body, self._name, self._affine = body, name, body.grid.affine
        self._raw = plan.folder / f"sub-{name}"
        self._truth = plan.folder / "derivatives" / "truth" / f"sub-{name}"

    def image(self, kind: str, array: np.ndarray, protocol: Protocol, acq: str | None = None) -> None:
        """A raw image with its sidecar."""
        path = self._raw / modality(kind).bids_datatype / bids_name(self._name, kind, acq=acq)
        self._save(path, array)
        if kind == "dwi":  # the mean over directions: a b-value, and no direction
            for suffix, lines in (("bval", [f"{protocol.b:g}"]), ("bvec", ["0", "0", "0"])):
                path.with_name(path.name.replace("nii.gz", suffix)).write_text("\n".join(lines) + "\n")
        sidecar = {"Modality": "CT" if kind == "ct" else "MR", "Units": modality(kind).unit} | protocol.sidecar()
        text = json.dumps(sidecar | {"Synthetic": True}, indent=2)
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(text + "\n")

    def truth(self, kind: str, array: np.ndarray) -> None:
        """A noise-free image."""
        self._save(self._truth / modality(kind).bids_datatype / bids_name(self._name, kind, desc="noisefree"), array)

    def maps(self) -> None:
        """Masks and the tissue segmentation."""
        folder, stem = self._truth / "anat", f"sub-{self._name}_desc-"
        for what, array in (
            ("brain_mask", self._body.brain),
            ("head_mask", self._body.head),
            ("lesion_mask", self._body.lesion_labels()),
            ("tissue_dseg", self._body.labels()),
        ):
            self._save(folder / f"{stem}{what}.nii.gz", array, np.uint8)

    def lesion_ml(self) -> float:
        """Volume of all lesions."""
        voxel_ml = float(np.prod(self._body.grid.spacing_mm)) / 1000
        return round(
            sum(float(self._body.fractions[n][1].sum()) for n in LESION_LABELS if n in self._body.fractions) * voxel_ml,
            2,
        )

    def _save(self, path: Path, array: np.ndarray, dtype: type = np.int16) -> None:
        import nibabel as nib

        path.parent.mkdir(parents=True, exist_ok=True)
        stored = np.rint(np.clip(array, -32768, 32767)).astype(dtype)
        image = nib.Nifti1Image(stored, self._affine)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"SYNTHETIC: digital phantom, medk2n"
        nib.save(image, path)


def _write_tables(plan: CohortPlan, records: list[dict[str, Any]]) -> None:
    """Data set descriptions, participants, tissue labels and ceilings."""
    truth = plan.folder / "derivatives" / "truth"
    made_by = {"Name": _MADE_BY, "Version": medk2n.__version__}
    common = {"BIDSVersion": "1.11.0", "GeneratedBy": [made_by]}
    settings = {
        "Seed": plan.seed,
        "SpacingMm": plan.spacing_mm,
        "Protocols": plan.protocols,
        "Anatomy": plan.anatomy.name if plan.anatomy else "ICBM152 2009a",
        "Stripped": plan.stripped,
        "SliceThicknessMm": plan.slice_mm,
    }
    raw = {"Name": "Digital cohort (synthetic)", "DatasetType": "raw"} | common | {"Settings": settings}
    derived = {"Name": "Truth of the digital cohort", "DatasetType": "derivative"} | common
    _json(plan.folder / _DESCRIPTION, raw)
    _json(truth / _DESCRIPTION, derived)
    (plan.folder / "README").write_text("Synthetic heads made by `medk2n phantom`; no person was scanned.\n")
    (plan.folder / ".bidsignore").write_text("**/ct\n")  # BIDS has no place for it yet
    people = [
        {
            "participant_id": f"sub-{r['number']:03d}",
            "lesion": r["lesion"],
            "lesion_ml": r["lesion_ml"],
            "seed": plan.seed,
        }
        for r in records
    ]
    _table(plan.folder / "participants.tsv", people, "\t")
    names = [{"index": row.label, "name": name} for name, row in TISSUES.items()]
    _table(truth / "desc-tissue_dseg.tsv", names, "\t")
    _table(truth / "ceilings.csv", [row for r in records for row in r["ceilings"]], ",", CEILING_FIELDS)


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _table(path: Path, rows: list[dict[str, Any]], delimiter: str, fields: tuple[str, ...] | None = None) -> None:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(
            handle, fields or list(rows[0]), delimiter=delimiter, lineterminator="\n", restval="n/a"
        )
        writer.writeheader()
        writer.writerows(rows)
