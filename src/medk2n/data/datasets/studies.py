"""Study folders, as BraTS hands them out: one folder a study, modalities told by the file names.

They may lie in groups: `HGG` and `LGG` of BraTS 2018, several cohorts beside each other, or sessions in a patient's
folder (`Patient-001/week-000`), whose studies are called by both names.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from medk2n.data.datasets._files import folders, image_files, other_formats, subject_of
from medk2n.data.datasets.bids import DATATYPES
from medk2n.data.datasets.flat import is_flat
from medk2n.data.datasets.nnunet import is_nnunet
from medk2n.data.prepared import is_prepared
from medk2n.data.sessions import is_session
from medk2n.data.subject import LeftOut, Subject
from medk2n.io.names import recognise


class Studies:
    """A folder of study folders or of groups of them, or one study folder."""

    name = "studies"
    expects = "STUDY/*t1n*.nii.gz (study folders)"

    def matches(self, root: Path) -> bool:
        """`root` or a folder in it holds recognised images, and `root` is no layout of many subjects."""
        if is_flat(root) or is_nnunet(root) or is_prepared(root):
            return False
        return any(recognise(file) for folder in _studies(root) for file in study_files(folder))

    def index(self, root: Path) -> list[Subject]:
        """One subject a study, some perhaps without an image that can be used; reads no voxels."""
        studies = _studies(root)
        if studies == [root]:
            return [study_of(root)]
        once = Counter(folder.name for folder in studies)
        found = []
        for folder in studies:
            nested = folder.parent.name if folder.parent != root else ""
            patient = nested if nested and _holds_sessions(folder.parent) else ""
            study = study_of(folder)
            name = f"{nested}_{folder.name}" if patient or (nested and once[folder.name] > 1) else study.id
            found.append(replace(study, id=name, patient=patient))
        return found


def study_of(folder: Path) -> Subject:
    """One study; a study is called as its folder, a session of a BIDS subject by both."""
    place = folder.resolve()
    session = place.name.startswith("ses-") and place.parent.name.startswith("sub-")
    name = f"{place.parent.name}_{place.name}" if session else place.name
    subject = subject_of(name, study_files(folder))
    further = [inner for inner in _folders(folder) if inner.name not in DATATYPES and _is_study(inner)]
    told = (LeftOut(str(inner), "a folder with images of its own beside those of this study") for inner in further)
    return replace(subject, left_out=(*subject.left_out, *told))


def _holds_sessions(folder: Path) -> bool:
    """Whether the studies in a folder are called as sessions of one patient are."""
    inner = [study.name for study in _folders(folder) if _is_study(study)]
    return any(map(is_session, inner)) and all(is_session(name) or name.isdecimal() for name in inner)


def _studies(root: Path) -> list[Path]:
    """`root` itself if it is a study, else the folders in it, or in a group that is none itself."""
    if _is_study(root):
        return [root]
    return [study for folder in _folders(root) for study in ([folder] if _is_study(folder) else _folders(folder))]


def _folders(root: Path) -> list[Path]:
    """Folders in `root`; `sub-*` ones, which are the BIDS reader's, are left out."""
    return [folder for folder in folders(root) if not folder.name.startswith("sub-")]


def _is_study(folder: Path) -> bool:
    return any(recognise(file) for file in study_files(folder))


def study_files(folder: Path) -> list[Path]:
    """Images in a study folder (other formats too, told and left out) and in its BIDS datatype folders, so that one
    `sub-01` is a study too.
    """
    places = [folder, *(folder / name for name in DATATYPES if (folder / name).is_dir())]
    return [file for place in places for file in image_files(place) + other_formats(place)]


COMPONENT = Studies()
