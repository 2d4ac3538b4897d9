"""Where the files of one study go and what they are called: a folder of its own, or a BIDS derivative."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from medk2n.io.names import bids_name, synth_name
from medk2n.io.outputs import HOME
from medk2n.vocabulary import modality

REPORT = "report.html"
RECORDS = f"{HOME}/studies"
_LINK = "raw"  # what the data set that a derivative was made from is called in its URIs
# What BIDS has no name for: pages, CT, MR of unstated contrast, and a diffusion image without a table of gradients.
_NOT_IN_BIDS = ("*.html", "ct", "*_MR.*", "*_dwi.*")


@dataclass(frozen=True)
class Form:
    """In which files the images of a study come.

    Attributes:
        nifti: as .nii.gz.
        dicom: as derived series of the DICOM study that they were made from, a folder each.
        burn_in: whether the word SYNTHETIC goes into the pixels; None: into those of DICOM alone.
    """

    nifti: bool = True
    dicom: bool = False
    burn_in: bool | None = None


@dataclass(frozen=True)
class StudyFolder:
    """All files of a study beside each other in one folder.

    Attributes:
        out: that folder.
        study: what the files are called by.
        dataset: folder of the data set that `out` belongs to; it holds dataset_description.json and the records.
        form: in which files the images come.
    """

    out: Path
    study: str
    dataset: Path
    form: Form = Form()

    @property
    def part(self) -> str:
        """What of the data set it is; nothing else is made there if it is all of it."""
        return "" if self.out == self.dataset else self.out.name

    @property
    def report(self) -> Path:
        """The page to read first."""
        return self.out / REPORT

    @property
    def record(self) -> Path:
        """What the study was made from, and the hashes of its files (`report/record.py`)."""
        return self.dataset / RECORDS / f"{self.out.name}.json"

    def image(self, target: str) -> Path:
        """`<study>_desc-synth_T2w.nii.gz`."""
        return self.out / synth_name(self.study, target)

    def source(self, path: str | None, modality_name: str) -> str:
        """How a sidecar names a file that the study was made from, or an image that was in memory alone."""
        return path or f"{modality_name} in memory"

    def own(self, path: Path) -> str:
        """How a sidecar names another file of the study."""
        return path.name

    def described(self) -> dict[str, Any]:
        """What dataset_description.json says beside what all of ours say."""
        return {}

    def ignored(self) -> tuple[str, ...]:
        """Lines of `.bidsignore`."""
        return ()


@dataclass(frozen=True)
class BidsDerivative:
    """Files in the tree of a BIDS derivative: `sub-X/[ses-Y/]anat/sub-X[_ses-Y]_desc-synth_T2w.nii.gz`.

    Attributes:
        dataset: the derivative's folder.
        subject, session: labels without `sub-` and `ses-`.
        raw: the data set that it is made from.
        form: in which files the images come.
    """

    dataset: Path
    subject: str
    session: str | None
    raw: Path
    form: Form = Form()

    @property
    def study(self) -> str:
        """`sub-X[_ses-Y]`."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")

    @property
    def part(self) -> str:
        """What of the data set it is: other sessions may be made meanwhile."""
        return self.study

    @property
    def report(self) -> Path:
        """The page to read first, at the top of the data set."""
        return self.dataset / f"{self.study}.html"

    @property
    def record(self) -> Path:
        """What the study was made from, and the hashes of its files."""
        return self.dataset / RECORDS / f"{self.study}.json"

    def image(self, target: str) -> Path:
        """Entities in BIDS order."""
        folder = self.dataset.joinpath(*self.study.split("_"))
        name = bids_name(self.subject, target, session=self.session, desc="synth")
        return folder / modality(target).bids_datatype / name

    def source(self, path: str | None, modality_name: str) -> str:
        """`bids:raw:sub-X/anat/...`."""
        if path is None or not Path(path).is_relative_to(self.raw):
            return path or f"{modality_name} in memory"
        return f"bids:{_LINK}:{quote(PurePosixPath(Path(path).relative_to(self.raw)).as_posix())}"

    def own(self, path: Path) -> str:
        """`bids::sub-X/anat/...`: in this data set."""
        return f"bids::{path.relative_to(self.dataset).as_posix()}"

    def described(self) -> dict[str, Any]:
        """Where the data set is that it is made from, seen from here."""
        link = quote(Path(_way(self.dataset.resolve(), self.raw.resolve())).as_posix())
        return {"SourceDatasets": [{"URL": link}], "DatasetLinks": {_LINK: link}}

    def ignored(self) -> tuple[str, ...]:
        """What a validator should pass over."""
        return _NOT_IN_BIDS


Place = StudyFolder | BidsDerivative


def planned_outputs(place: Place, targets: Iterable[str]) -> list[Path]:
    """Every file (or folder of a series) that a synthesis leaves for people, known before anything is computed."""
    files = [place.report]
    for target in targets:
        for image in (place.image(target), deviation_of(place.image(target))):
            files.append(sidecar_of(image))
            files += [image] if place.form.nifti else []
            files += [series_of(image)] if place.form.dicom else []
    return files


def planned_names(place: Place, targets: Iterable[str]) -> list[str]:
    """The same as `output_folder` wants it: the report first, a series as the pattern of its files."""
    paths = planned_outputs(place, targets)
    names = [path.relative_to(place.dataset).as_posix() for path in paths]
    return [name if name.endswith((".html", ".nii.gz", ".json")) else f"{name}/*" for name in names]


def deviation_of(image: Path) -> Path:
    """`<study>_desc-synthstd_T2w.nii.gz`: predicted standard error of every voxel, beside its image."""
    return image.with_name(image.name.replace("_desc-synth_", "_desc-synthstd_"))


def series_of(image: Path) -> Path:
    """The folder beside an image that holds the same as a DICOM series."""
    return image.with_name(image.name.removesuffix(".nii.gz") + "_dicom")


def sidecar_of(image: Path) -> Path:
    """The JSON file beside an image."""
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")


def _way(start: Path, end: Path) -> str:
    try:
        return os.path.relpath(end, start)
    except ValueError:  # another drive
        return end.as_uri()
