"""NIfTI in and out. What is no readable, finite 3-D image is refused in one line."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medk2n.errors import GeometryError, VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.geometry.limits import check_packed, check_size
from medk2n.io.atomic import atomic_write, sha256_array
from medk2n.io.door import door
from medk2n.io.filekind import ENOUGH, GZIP_MAGIC, nifti_version, other_kind, unpacked
from medk2n.io.names import IMAGE_SUFFIXES
from medk2n.io.nifti_header import IMAGE_CLASSES, affine_mm, remarks
from medk2n.io.source import TAIL, Source
from medk2n.io.volume import Header, LabelMap, Volume, as_labels, check_values

_HEADERS = {1: 348, 2: 540}  # version -> bytes
_EXTENSIONS = 64 * 2**20  # bytes between header and voxels beyond which nothing but a fault is
_INT16 = 32767
_FARTHEST = 30  # ranges of the values beyond which nothing but a fault is
_SAMPLE = 1_000_000  # voxels that the range is found on


def read_volume(path: Path | str, modality: str) -> Volume:
    """Read one 3-D image as float32, slope and intercept applied.

    Returns:
        Volume with provenance: path, sha256 of the bytes that were read (of a pair the header's, then the image's),
        dtype (as stored), and a `note` of what was chosen or taken on trust in the header (no orientation, two at odds,
        a unit other than mm).

    Raises:
        VolumeReadError: missing, not NIfTI, damaged, not 3-D, non-finite or constant.
        GeometryError: an affine that is singular, not finite or of voxels that cannot be, or an image that is too large
            (`geometry/limits.py`).
    """
    path = Path(path)
    with _opened(path) as (image, source, digest):
        grid, facts = _grid(image, str(path)), _header_facts(image)
        _check_scan(image, source, path)
        array = _values(image, source)
    provenance = {"path": str(path), "sha256": digest.hexdigest()} | facts
    return Volume(check_values(array, str(path)), grid, modality, provenance)


def read_header(path: Path | str) -> Header:
    """Where the voxels of an image are, without reading them; raises as `read_volume` but for what they hold."""
    with _opened(Path(path)) as (image, source, _):
        _check_scan(image, source, Path(path))
        return Header(_grid(image, str(path)))


def read_labels(path: Path | str) -> LabelMap:
    """Read a mask or segmentation as int32 (rounded); raises as `read_volume`, but may be constant."""
    path = Path(path)
    with _opened(path) as (image, source, digest):
        grid, array = _grid(image, str(path)), _values(image, source)
    return LabelMap(as_labels(array, str(path)), grid, digest.hexdigest())


def from_nibabel(image: Any, modality: str) -> Volume:
    """A Volume from a nibabel image in memory; the same checks as `read_volume`. Its sha256 is that of the voxels."""
    name = image.get_filename() or "image in memory"
    _check_header(image, name)
    check_size(image.shape, name, itemsize=image.get_data_dtype().itemsize)
    array = check_values(_voxels(image, name), name)
    provenance = {"path": image.get_filename(), "sha256": sha256_array(array)} | _header_facts(image)
    return Volume(array, _grid(image, name), modality, provenance)


def to_nibabel(volume: Volume, *, description: str = "") -> nib.Nifti1Image:
    """A float32 NIfTI image whose `.affine` after saving and loading equals the volume's exactly.

    NIfTI stores its affine in float32, as a matrix (sform), a quaternion (qform) or only spacings. The
    first of them that gives this affine back bit for bit is used, so a grid read from any NIfTI-1 survives.
    An affine that no NIfTI-1 could have held (of NIfTI-2, in double precision) is rounded to float32.
    """
    affine = volume.grid.affine
    image = nib.Nifti1Image(np.asarray(volume.array, dtype=np.float32), affine)
    header = image.header
    header.set_xyzt_units("mm")
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header.set_zooms(volume.grid.spacing_mm)
    for store in (_store_sform, _store_qform, _store_tidy_qform, _store_spacing):
        store(header, affine)
        if np.array_equal(header.get_best_affine(), affine):
            break
    else:
        _store_sform(header, affine)
    return nib.Nifti1Image(image.dataobj, header.get_best_affine(), header)


def _store_sform(header: nib.Nifti1Header, affine: np.ndarray) -> None:
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1, strip_shears=True)
    if not np.allclose(header.get_qform(), affine, atol=1e-4):  # sheared: no quaternion says it
        header.set_qform(None, code=0)


def _store_qform(header: nib.Nifti1Header, affine: np.ndarray) -> None:
    header.set_sform(None, code=0)
    header.set_qform(affine, code=1, strip_shears=True)


def _store_tidy_qform(header: nib.Nifti1Header, affine: np.ndarray) -> None:
    """As `_store_qform`, where the decomposition made a rounding error of what was zero."""
    _store_qform(header, affine)
    for name in ("quatern_b", "quatern_c", "quatern_d"):
        if abs(header[name]) < 1e-6:
            header[name] = 0.0


def _store_spacing(header: nib.Nifti1Header, affine: np.ndarray) -> None:
    header.set_sform(None, code=0)
    header.set_qform(None, code=0)


def write_volume(volume: Volume, path: Path | str, *, description: str = "SYNTHETIC image, not acquired") -> None:
    """Write float32 NIfTI atomically; `description` goes into the header's text field (79 characters)."""
    image = to_nibabel(volume, description=description)
    atomic_write(path, lambda temporary: nib.save(image, temporary))


def write_int16(volume: Volume, path: Path | str, *, description: str = "") -> int:
    """Write NIfTI of 16-bit integers with a slope, atomically; what it says is read back in the volume's unit.

    Whole numbers that fit stay as they are; otherwise 0 stays 0 and the step is at most a 500th of the range that holds
    all but a thousandth of the voxels at each end. Values more than 30 such ranges beyond it are cut off there.

    Returns:
        How many voxels were cut off.
    """
    array = volume.array
    low, high = np.percentile(array.ravel()[:: array.size // _SAMPLE + 1], [0.1, 99.9])
    spread = float(high - low) or float(array.max() - array.min())
    kept = np.clip(array, low - _FARTHEST * spread, high + _FARTHEST * spread)
    slope, inter = _slope(kept, spread)
    floating = to_nibabel(volume, description=description)
    header = floating.header.copy()
    header.set_data_dtype(np.int16)
    codes = np.rint((kept.astype(np.float64) - inter) / slope).astype(np.int16)
    image = nib.Nifti1Image(codes, floating.affine, header)
    image.header.set_slope_inter(slope, inter)  # a new image drops the slope of the header that it is given
    atomic_write(path, lambda temporary: nib.save(image, temporary))
    return int(np.count_nonzero(kept != array))


def _slope(array: np.ndarray, spread: float) -> tuple[float, float]:
    peak = float(np.abs(array).max())
    if peak <= _INT16 and np.array_equal(array, np.rint(array)):
        return 1.0, 0.0
    if peak / _INT16 <= spread / 500:
        return float(np.nextafter(np.float32(peak / _INT16), np.float32(np.inf))), 0.0
    low, high = float(array.min()), float(array.max())
    return float(np.nextafter(np.float32((high - low) / 2 / _INT16), np.float32(np.inf))), float(
        np.float32((low + high) / 2)
    )


def write_labels(labels: LabelMap, path: Path | str) -> None:
    """Write a mask or segmentation atomically, as bytes where its labels fit.

    Raises:
        VolumeReadError: labels beyond 16 bits.
    """
    kind = next((d for d in (np.uint8, np.int16) if _fits(labels.array, d)), None)
    if kind is None:
        raise VolumeReadError(f"{path}: labels from {labels.array.min()} to {labels.array.max()}; expected 16 bits")
    image = nib.Nifti1Image(labels.array.astype(kind), labels.grid.affine)
    image.header.set_xyzt_units("mm")
    atomic_write(path, lambda temporary: nib.save(image, temporary))


def _fits(array: np.ndarray, dtype: type) -> bool:
    limits = np.iinfo(dtype)
    return bool(array.min() >= limits.min and array.max() <= limits.max)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Source, Any]]:
    """Header (as a nibabel image without voxels), bytes of the voxels, and their digest.

    All that can be known to be wrong before the voxels are read is refused here; whatever goes wrong inside the block
    is a refusal of the file.
    """
    with door(VolumeReadError, f"{path}: cannot be read as NIfTI", "convert or copy it again"):
        _check_file(path)
        digest = hashlib.sha256()
        with _header_file(path).open("rb") as first:
            version = _version(path, first.read(ENOUGH))
            first.seek(0)
            source = Source(first, digest, packed=path.name.lower().endswith(".gz"))
            image = _without_voxels(source.read(_HEADERS[version]), version, single=_in_one_file(path))
            _check_header(image, str(path))
            if _in_one_file(path):
                _check_promise(image, source, path)
                yield image, source, digest
                return
            source.finish()
        with _image_file(path).open("rb") as second:
            source = Source(second, digest, packed=False)
            _check_promise(image, source, path)
            yield image, source, digest


def _check_file(path: Path) -> None:
    if not path.exists():
        raise VolumeReadError(f"{path}: no such file; expected a NIfTI image (.nii or .nii.gz); check the path")
    if path.is_dir():
        raise VolumeReadError(f"{path}: is a folder; expected one NIfTI file; name the file in it")
    for part in {path} if _in_one_file(path) else {path, _header_file(path), _image_file(path)}:
        if part.exists() and not part.is_file():
            raise VolumeReadError(f"{part}: is no regular file (a pipe or device); save it to a file first")
        if not part.exists():
            raise VolumeReadError(f"{path}: lies alone; expected {part.name} beside it; copy both")
    if path.stat().st_size == 0:
        raise VolumeReadError(f"{path}: the file is empty; expected a NIfTI image; copy it again")
    if not path.name.lower().endswith(IMAGE_SUFFIXES):
        raise VolumeReadError(f"{path}: is no .nii, .nii.gz or .hdr/.img file; convert it to .nii.gz")


def _version(path: Path, head: bytes) -> int:
    """1 or 2, by the beginning of the file; what is neither is called what it is."""
    version = nifti_version(unpacked(head))
    if not version and (kind := other_kind(unpacked(head))):
        raise VolumeReadError(f"{path}: is no NIfTI but {kind.found}; {kind.cure}")
    named_gz = path.name.lower().endswith(".gz")
    if named_gz != head.startswith(GZIP_MAGIC):
        found, cure = ("not gzip-compressed", "drop .gz from") if named_gz else ("gzip-compressed", "add .gz to")
        raise VolumeReadError(f"{path}: {found} although its name says otherwise; {cure} its name, or copy it again")
    if not version and len(unpacked(head)) >= _HEADERS[1]:
        raise VolumeReadError(f"{path}: is no NIfTI: its first bytes say nothing known; copy or convert it again")
    return version or 1


def _without_voxels(block: bytes, version: int, *, single: bool) -> Any:
    """A nibabel image of a header alone; extensions, which may be of any size, are not read."""
    files = {"header": BytesIO(block + bytes(4)), "image": BytesIO(block + bytes(4))}
    kind = IMAGE_CLASSES[version, single]
    image = kind.from_file_map(kind.make_file_map(files))
    image.extra["slope"] = float(kind.header_class(block, check=False)["scl_slope"])  # as an image forgets it
    return image


def _in_one_file(path: Path) -> bool:
    return path.suffix.lower() not in (".hdr", ".img")


def _header_file(path: Path) -> Path:
    """Where the header is: of a pair in the .hdr, whichever of the two was named."""
    return path.with_suffix({".img": ".hdr", ".IMG": ".HDR"}.get(path.suffix, path.suffix))


def _image_file(path: Path) -> Path:
    """Where the voxels of a pair are."""
    return path.with_suffix({".hdr": ".img", ".HDR": ".IMG"}.get(path.suffix, path.suffix))


def _promised(image: Any) -> int:
    """Bytes of voxels that a header states."""
    return prod(map(int, image.shape)) * int(image.get_data_dtype().itemsize)


def _check_promise(image: Any, source: Source, path: Path) -> None:
    start, promised = image.dataobj.offset, _promised(image)
    if not 0 <= start <= _EXTENSIONS:
        raise VolumeReadError(f"{path}: its header says that the voxels begin at byte {start}; it is damaged")
    if source.most < start + promised:
        raise VolumeReadError(
            f"{path}: its header promises {promised} bytes of voxels, more than the file ({source.size} bytes) can "
            "hold; it is cut off or damaged; copy it again"
        )
    if source.least > start + promised + TAIL:
        raise VolumeReadError(
            f"{path}: its header promises {promised} bytes of voxels, the file ({source.size} bytes) is far longer; "
            "its header is damaged, or of another file"
        )
    check_size(image.shape, str(path), itemsize=image.dataobj.dtype.itemsize)


def _check_scan(image: Any, source: Source, path: Path) -> None:
    """What is no mask has noise, and cannot have been shrunk to almost nothing."""
    if source.packed:
        check_packed(_promised(image), source.size, str(path))


def _values(image: Any, source: Source) -> np.ndarray:
    """(x, y, z) float32; to be called inside `_opened`."""
    stored = image.dataobj  # keeps offset, slope and intercept, which the header of an image forgets
    source.skip_to(stored.offset)
    array = source.values(image.shape[:3], stored.dtype, stored.slope, stored.inter)
    source.finish()
    return array


def _check_header(image: Any, name: str) -> None:
    if not isinstance(image, nib.Nifti1Pair):
        raise VolumeReadError(f"{name}: is {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    shape = tuple(image.shape)
    if any(n < 1 for n in shape):
        raise VolumeReadError(f"{name}: its header states the shape {shape}; the header is damaged; copy it again")
    if len(shape) < 3 or any(n > 1 for n in shape[3:]):
        raise VolumeReadError(
            f"{name}: has shape {shape} ({len(shape)}-D), expected one 3-D volume; "
            "split the series or extract the volume wanted"
        )
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise VolumeReadError(f"{name}: voxels are {dtype} (colour or complex), expected one real number a voxel")


def _header_facts(image: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"dtype": str(image.header.get_data_dtype())}
    if told := remarks(image):
        facts["note"] = "; ".join(told)
    return facts


def _grid(image: Any, name: str) -> Grid:
    try:
        return Grid(image.shape[:3], affine_mm(image))
    except GeometryError as error:
        raise GeometryError(f"{name}: {error}") from error


def _voxels(image: Any, name: str) -> np.ndarray:
    refused = door(VolumeReadError, f"{name}: cannot be read as NIfTI", "convert or save it again")
    with refused, np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged")).reshape(image.shape[:3])
