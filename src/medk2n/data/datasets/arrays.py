"""Arrays: one .npz a subject, axial slices, keys named by modality.

Two layouts. Stacks: `t1n`, `t2f`, ... are (slice, row, column), first row anterior, first slice inferior;
`seg` is the lesion; `valid` (slice,) marks slices that have every contrast; `spacing` (3,) is x, y, z in mm,
if known. Single slices: `mr_axial`, `ct_axial` are (x, y), y growing towards anterior; `mask_axial` is the head.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from medk2n.data.subject import Subject
from medk2n.errors import DatasetError, VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.io.atomic import sha256_file
from medk2n.io.volume import Header, LabelMap, Volume
from medk2n.vocabulary import short_name

_AXIAL = "_axial"
_MASKS = {"seg": "lesion", "mask": "head", "brain": "brain"}


class Arrays:
    """A folder of .npz files, or of folders of them (train, val, test)."""

    name = "arrays"
    expects = "*.npz with arrays named t1n, t2f, ... (arrays)"

    def matches(self, root: Path) -> bool:
        """At least one .npz in `root` or in a folder in it."""
        return bool(_files(root))

    def index(self, root: Path) -> list[Subject]:
        """One subject a file; reads the names of the arrays only."""
        return [subject for subject in map(_subject, _files(root)) if subject.readers]


def _files(root: Path) -> list[Path]:
    return sorted([*root.glob("[!.]*.npz"), *root.glob("[!.]*/[!.]*.npz")])


def _subject(path: Path) -> Subject:
    with _opened(path) as data:
        keys = data.files
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for key in keys:
        word = key.removesuffix(_AXIAL)
        if word in _MASKS:
            masks[_MASKS[word]] = key
        elif (name := short_name(word)) is not None:
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
    )


def read_array(path: Path, key: str, name: str) -> Volume:
    """One array of an .npz as a Volume in (x, y, z) order, RAS, float32.

    Where the file states no spacing the grid has unit spacing and the provenance says `"spacing": "unknown"`:
    millimetres mean nothing then, and the array is to be used as it is.

    Raises:
        VolumeReadError: damaged file, wrong dimensions, non-finite or constant values.
    """
    array, spacing = _load(path, key)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise VolumeReadError(f"{path}: array {key} has NaN or infinite values; expected finite ones; set them to 0")
    if array.min() == array.max():
        raise VolumeReadError(f"{path}: every value of array {key} is {array.flat[0]:g}; leave a constant one out")
    provenance = {
        "path": f"{path}:{key}",
        "sha256": sha256_file(path),
        "spacing": "unknown" if spacing is None else "stated",
    }
    return Volume(array, _grid(array.shape, spacing), name, provenance)


def read_array_header(path: Path, key: str) -> Header:
    """Where the voxels of `read_array` are, without unpacking them.

    Raises:
        VolumeReadError: damaged file, or a shape that is none of the two layouts.
    """
    with _opened(path) as data, data.zip.open(f"{key}.npy") as member:
        is_first = np.lib.format.read_magic(member) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape = read(member)[0]
        slices = int(np.count_nonzero(data["valid"])) if "valid" in data.files else shape[0]
        spacing = np.asarray(data["spacing"], dtype=float) if "spacing" in data.files else None
    if key.endswith(_AXIAL):
        return Header(_grid((*shape[-2:], 1), spacing), spacing is not None)
    if len(shape) != 3:
        raise VolumeReadError(f"{path}: array {key} has shape {shape}, expected (slice, row, column)")
    return Header(_grid((shape[2], shape[1], slices), spacing), spacing is not None)


def read_array_labels(path: Path, key: str) -> LabelMap:
    """One mask of an .npz, placed as `read_array` places images."""
    array, spacing = _load(path, key)
    return LabelMap(array.astype(np.int32), _grid(array.shape, spacing))


def _grid(shape: tuple[int, ...], spacing: np.ndarray | None) -> Grid:
    return Grid(shape, np.diag([*(np.ones(3) if spacing is None else spacing), 1.0]))  # type: ignore[arg-type]


def _load(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The array in (x, y, z) order, valid slices only, and the spacing if stated."""
    with _opened(path) as data:
        array = data[key]
        valid = data["valid"] if "valid" in data.files else None
        spacing = np.asarray(data["spacing"], dtype=float) if "spacing" in data.files else None
    if array.dtype.kind not in "biuf":
        raise VolumeReadError(f"{path}: array {key} is {array.dtype}, expected real numbers")
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


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as data:
            yield data
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, VolumeReadError):
            raise
        raise VolumeReadError(
            f"{path}: cannot be read as .npz ({error}); expected plain arrays; copy it again"
        ) from error


COMPONENT = Arrays()
