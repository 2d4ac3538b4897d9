"""Study folders, as BraTS hands them out: one folder a study, modalities told by the file names.

They may lie in groups: `HGG` and `LGG` of BraTS 2018, or several cohorts beside each other.
"""

from pathlib import Path

from medk2n.data.datasets._files import image_files, subject_of
from medk2n.data.datasets.bids import DATATYPES
from medk2n.data.datasets.flat import is_flat
from medk2n.data.datasets.nnunet import is_nnunet
from medk2n.data.prepared import is_prepared
from medk2n.data.subject import Subject
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
        """Studies with at least one recognised image; reads no voxels."""
        found = (subject_of(_name(folder.resolve()), study_files(folder)) for folder in _studies(root))
        return [subject for subject in found if subject.readers]


def _name(folder: Path) -> str:
    """A study is called as its folder; a session of a BIDS subject by both."""
    session = folder.name.startswith("ses-") and folder.parent.name.startswith("sub-")
    return f"{folder.parent.name}_{folder.name}" if session else folder.name


def _studies(root: Path) -> list[Path]:
    """`root` itself if it is a study, else the folders in it, or in a group that is none itself."""
    if _is_study(root):
        return [root]
    return [study for folder in _folders(root) for study in ([folder] if _is_study(folder) else _folders(folder))]


def _folders(root: Path) -> list[Path]:
    """Folders in `root`; hidden ones, and `sub-*` ones, which are the BIDS reader's, are left out."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "sub-")))


def _is_study(folder: Path) -> bool:
    return any(recognise(file) for file in study_files(folder))


def study_files(folder: Path) -> list[Path]:
    """Images in a study folder, and in its BIDS datatype folders (so that one `sub-01` is a study too)."""
    places = [folder, *(folder / name for name in DATATYPES if (folder / name).is_dir())]
    return [file for place in places for file in image_files(place)]


COMPONENT = Studies()
