"""BIDS: `sub-*/[ses-*/]{anat,dwi,ct,pet}/*`, masks from `derivatives/`, sites from `participants.tsv`.

Masks lie in a pipeline's folder as images do, or, as ISLES 2022 has them, in `derivatives/sub-*/ses-*` itself.
"""

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

from medk2n.data.datasets._files import folders, image_files, other_formats, subject_of
from medk2n.data.subject import Subject
from medk2n.errors import DatasetError
from medk2n.io.door import door, read_any_text

DATATYPES = ("anat", "ct", "dwi", "pet")
_TRUTH = "truth"  # our phantom's derivative; its masks count before another pipeline's


class Bids:
    """Every session is a subject: `sub-01`, or `sub-01_ses-02` where there are sessions."""

    name = "bids"
    expects = "sub-*/anat/*.nii.gz (BIDS)"

    def matches(self, root: Path) -> bool:
        """At least one `sub-*` folder holds a datatype folder."""
        return any(
            _datatype_folders(session) for subject in subject_folders(root) for session in session_folders(subject)
        )

    def index(self, root: Path) -> list[Subject]:
        """One subject a session, some perhaps without an image that can be used; reads no voxels."""
        derivatives = root / "derivatives"
        pipelines = folders(derivatives) if derivatives.is_dir() else []
        pipelines.sort(key=lambda folder: folder.name != _TRUTH)
        sites = _sites(root / "participants.tsv")
        found = []
        for folder in subject_folders(root):
            for session in session_folders(folder):
                place = session.relative_to(root)
                masks = [f for pipeline in pipelines for f in session_files(pipeline / place)]
                masks += image_files(derivatives / place) if (derivatives / place).is_dir() else []
                subject = subject_of("_".join(place.parts), session_files(session), masks)
                found.append(replace(subject, site=sites.get(folder.name, ""), patient=folder.name))
        return found


def _sites(table: Path) -> dict[str, str]:
    """Participant -> site, where the table of participants has such a column.

    Raises:
        DatasetError: it cannot be read.
    """
    if not table.is_file():
        return {}
    with door(DatasetError, f"{table}: cannot be read", "expected tab-separated text; mend or remove it"):
        rows = list(csv.DictReader(StringIO(read_any_text(table), newline=""), delimiter="\t"))
    return {row.get("participant_id") or "": row.get("site") or "" for row in rows}


def subject_folders(root: Path) -> list[Path]:
    """`sub-*` of a data set, sorted."""
    return [folder for folder in folders(root) if folder.name.startswith("sub-")]


def session_folders(subject: Path) -> list[Path]:
    """`ses-*` of a subject, sorted; the subject's own folder where it has none."""
    return [folder for folder in folders(subject) if folder.name.startswith("ses-")] or [subject]


def _datatype_folders(session: Path) -> list[Path]:
    return [session / name for name in DATATYPES if (session / name).is_dir()]


def session_files(session: Path) -> list[Path]:
    """Images and masks in the datatype folders of a session; in other formats too, which are told and left out."""
    return [file for folder in _datatype_folders(session) for file in image_files(folder) + other_formats(folder)]


COMPONENT = Bids()
