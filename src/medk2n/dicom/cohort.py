"""Which folders and archives of a data set are one study each: the topmost ones whose images are of one study alone."""

from collections import Counter
from pathlib import Path, PurePath

from medk2n.dicom.study import study_places
from medk2n.errors import DicomError

_Place = tuple[PurePath, str]  # relative to the data set; the study of its images, empty if none could be read


def studies_in(path: Path) -> list[Path]:
    """The folders and .zip files that are a study each, in name order; `path` itself if it is one.

    Raises:
        DicomError: a study lies in several folders beside other studies.
        UsageError: the extra `dicom` is not installed.
    """
    if path.is_file() or not any(place.is_dir() or place.suffix.lower() == ".zip" for place in path.iterdir()):
        return [path]
    places = [(PurePath(place.name), place.study) for place in study_places(path)]
    roots = dict(_roots(places, PurePath()))
    if len(roots) < 2:
        return [path / root for root in roots if (path / root).is_file()] or [path]
    often = Counter(study for study in roots.values() if study)
    if split := [str(root) for root, study in roots.items() if often[study] > 1]:
        raise DicomError(
            f"{path}: holds {len(often)} studies, and one of them lies in several folders ({', '.join(split[:4])}); "
            "give one study at a time, or each a folder of its own"
        )
    return [path / root for root in roots]


def _roots(places: list[_Place], folder: PurePath) -> list[_Place]:
    """Of what lies in a folder the topmost places of one study; the folder itself if it cannot be parted."""
    if len(places) == 1 and places[0][0].suffix.lower() == ".zip":
        return places
    studies = {study for _, study in places if study}
    if len(studies) < 2 or any(place == folder for place, _ in places):
        return [(folder, min(studies, default=""))]
    inner: dict[PurePath, list[_Place]] = {}
    for place in places:
        inner.setdefault(PurePath(*place[0].parts[: len(folder.parts) + 1]), []).append(place)
    return [root for one, members in inner.items() for root in _roots(members, one)]
