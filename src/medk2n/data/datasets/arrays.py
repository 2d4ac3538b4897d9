"""Arrays: one .npz a subject, axial slices, keys named by modality.

Two layouts. Stacks: `t1n`, `t2f`, ... are (slice, row, column), first row anterior, first slice inferior;
`seg` is the lesion; `valid` (slice,) marks slices that have every contrast; `spacing` (3,) is x, y, z in mm,
if known. Single slices: `mr_axial`, `ct_axial` are (x, y), y growing towards anterior; `mask_axial` is the head.
"""

from functools import partial
from pathlib import Path

import numpy as np

from medk2n.data.subject import LeftOut, Subject, or_faulty
from medk2n.errors import DatasetError, GeometryError, VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.io.atomic import sha256_array
from medk2n.io.npy import Npz, opened_npz
from medk2n.io.volume import Header, LabelMap, Volume, as_labels, check_values
from medk2n.vocabulary import short_name

_AXIAL = "_axial"
_OTHER_PLANES = ("_coronal", "_sagittal")  # of the same image
_FACTS = ("valid", "spacing")
_MASKS = {"seg": "lesion", "mask": "head", "brain": "brain"}


class Arrays:
    """A folder of .npz files, or of folders of them (train, val, test)."""

    name = "arrays"
    expects = "*.npz with arrays named t1n, t2f, ... (arrays)"

    def matches(self, root: Path) -> bool:
        """At least one .npz in `root` or in a folder in it."""
        return bool(_files(root))

    def index(self, root: Path) -> list[Subject]:
        """One subject a file, a faulty one if it cannot be opened; reads the names of the arrays only."""
        return [or_faulty(path.stem, partial(_subject, path)) for path in _files(root)]


def _files(root: Path) -> list[Path]:
    return sorted([*root.glob("[!.]*.npz"), *root.glob("[!.]*/[!.]*.npz")])


def _subject(path: Path) -> Subject:
    with opened_npz(path) as data:
        keys = data.keys
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    left: list[LeftOut] = []
    for key in keys:
        word = key.removesuffix(_AXIAL)
        if word in _MASKS:
            masks[_MASKS[word]] = key
        elif word in _FACTS or key.endswith(_OTHER_PLANES):
            continue
        elif (name := short_name(word)) is None:
            left.append(LeftOut(f"{path}:{key}", "its key tells no modality"))
        else:
            if name in images:
                raise DatasetError(f"{path}: arrays {images[name]} and {key} are both {name}; expected one, rename it")
            images[name] = key
    return Subject(
        id=path.stem,
        readers={name: partial(read_array, path, key, name) for name, key in images.items()},
        masks={kind: partial(read_array_labels, path, key) for kind, key in masks.items()},
        headers={name: partial(read_array_header, path, key) for name, key in images.items()},
        provenance={name: f"{path}:{key}" for name, key in images.items()},
        files=(path,),
        left_out=tuple(left),
    )


def read_array(path: Path, key: str, name: str) -> Volume:
    """One array of an .npz as a Volume in (x, y, z) order, RAS, float32.

    Where the file states no spacing the grid has unit spacing and the provenance says `"spacing": "unknown"`:
    millimetres mean nothing then, and the array is to be used as it is. Its sha256 is that of the voxels.

    Raises:
        VolumeReadError: damaged file, wrong dimensions, non-finite or constant values.
        GeometryError: too large, or a spacing that cannot be.
    """
    array, spacing = _load(path, key, noisy=True)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    check_values(array, f"{path}: array {key}")
    provenance = {
        "path": f"{path}:{key}",
        "sha256": sha256_array(array),
        "spacing": "unknown" if spacing is None else "stated",
    }
    return Volume(array, _grid(path, array.shape, spacing), name, provenance)


def read_array_header(path: Path, key: str) -> Header:
    """Where the voxels of `read_array` are, without unpacking them; raises as that does."""
    with opened_npz(path) as data:
        shape, spacing, valid = data.shape(key), _spacing(data), _valid(data)
    if key.endswith(_AXIAL):
        return Header(_grid(path, (*shape[-2:], 1), spacing), spacing is not None)
    if len(shape) != 3:
        raise VolumeReadError(f"{path}: array {key} has shape {shape}, expected (slice, row, column)")
    slices = shape[0] if valid is None else int(np.count_nonzero(valid))
    return Header(_grid(path, (shape[2], shape[1], slices), spacing), spacing is not None)


def read_array_labels(path: Path, key: str) -> LabelMap:
    """One mask of an .npz, placed as `read_array` places images; raises as that does."""
    array, spacing = _load(path, key)
    return LabelMap(as_labels(array, f"{path}: array {key}"), _grid(path, array.shape, spacing))


def _grid(path: Path, shape: tuple[int, ...], spacing: np.ndarray | None) -> Grid:
    try:
        return Grid(shape, np.diag([*(np.ones(3) if spacing is None else spacing), 1.0]))  # type: ignore[arg-type]
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _load(path: Path, key: str, *, noisy: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """The array in (x, y, z) order, valid slices only, and the spacing if stated."""
    with opened_npz(path) as data:
        array, spacing, valid = data.read(key, noisy=noisy), _spacing(data), _valid(data)
    if array.dtype.kind not in "biuf":
        raise VolumeReadError(f"{path}: array {key} is {array.dtype}, expected real numbers")
    if not array.size:
        raise VolumeReadError(f"{path}: array {key} is empty (shape {array.shape}), expected voxels")
    if key.endswith(_AXIAL):
        array = array[0] if array.ndim == 3 and len(array) == 1 else array
        if array.ndim != 2:
            raise VolumeReadError(f"{path}: array {key} has shape {array.shape}, expected one (x, y) slice")
        return array[:, :, None], spacing
    if array.ndim != 3:
        raise VolumeReadError(f"{path}: array {key} has shape {array.shape}, expected (slice, row, column)")
    if valid is not None:
        if valid.shape != array.shape[:1] or not valid.any():
            raise VolumeReadError(f"{path}: `valid` has shape {valid.shape}; expected a flag, some true, a slice")
        array = array[valid.astype(bool)]
    return np.ascontiguousarray(array.transpose(2, 1, 0)[:, ::-1]), spacing


def _spacing(data: Npz) -> np.ndarray | None:
    """(3,) x, y, z in mm; None where none is stated."""
    if "spacing" not in data.keys:
        return None
    spacing = np.asarray(data.read("spacing"), dtype=float)
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise VolumeReadError(f"{data.path}: `spacing` is {spacing.tolist()}; expected x, y and z in mm")
    return spacing


def _valid(data: Npz) -> np.ndarray | None:
    return data.read("valid") if "valid" in data.keys else None


COMPONENT = Arrays()
