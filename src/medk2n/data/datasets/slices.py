"""Slices with a table: `slices.csv` names a PNG or .npy file a row, and what it shows.

Columns: `subject`, `modality` (or `lesion`, `brain`, `head` for a mask) and `file`, relative to the table; where a
subject has more than one slice `slice`, a number that grows upwards; if known `spacing_mm` ("0.9 0.9 5": x, y, z) and
`site`. First row of an image anterior, its first column the lowest x, as a picture of RAS is drawn.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from math import isfinite
from pathlib import Path

import numpy as np

from medk2n.data.subject import Subject, or_faulty
from medk2n.errors import DatasetError, GeometryError, UnknownNameError, VolumeReadError
from medk2n.geometry.grid import Grid
from medk2n.geometry.limits import check_packed, check_size
from medk2n.io.atomic import sha256_array
from medk2n.io.door import MOST_TABLE, door, read_text
from medk2n.io.npy import read_npy
from medk2n.io.volume import Header, LabelMap, Volume, as_labels, check_values
from medk2n.vocabulary import modality

TABLE = "slices.csv"
_NEEDED = ("subject", "modality", "file")
_MASKS = ("lesion", "brain", "head")
_MOST_PNG = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Stack:
    """The slices of one image, lowest first: files, and (3,) x, y, z spacing in mm, if known."""

    files: tuple[Path, ...]
    spacing_mm: tuple[float, float, float] | None


class Slices:
    """A folder with a table of slices."""

    name = "slices"
    expects = f"{TABLE} naming PNG or .npy files (slices)"

    def matches(self, root: Path) -> bool:
        """The table is there."""
        return (root / TABLE).is_file()

    def index(self, root: Path) -> list[Subject]:
        """One subject a name in the table; reads the table only.

        Raises:
            DatasetError: a column or a value is missing, or a modality is unknown. A subject is faulty if a file is
                missing, a slice is there twice, or its images do not hold the same slices.
        """
        rows: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
        for row in _rows(root / TABLE):
            rows[row["subject"]][_what(row, root)].append(row)
        subjects = [or_faulty(name, partial(_subject, name, images, root)) for name, images in rows.items()]
        return [subject for subject in subjects if subject.readers or subject.fault]


def _rows(table: Path) -> list[dict[str, str]]:
    with door(DatasetError, f"{table}: cannot be read", "expected comma-separated text in UTF-8"):
        text = StringIO(read_text(table, encoding="utf-8-sig", most=MOST_TABLE), newline="")
        rows = [
            {key.strip(): (value or "").strip() for key, value in row.items() if key} for row in csv.DictReader(text)
        ]
    for number, row in enumerate(rows, 2):
        if missing := [name for name in _NEEDED if not row.get(name)]:
            raise DatasetError(f"{table}, line {number}: no {' and no '.join(missing)}; expected one in every line")
    return rows


def _what(row: Mapping[str, str], root: Path) -> str:
    if row["modality"].lower() in _MASKS:
        return row["modality"].lower()
    try:
        return modality(row["modality"]).name
    except UnknownNameError as error:
        raise DatasetError(f"{root / TABLE}, {row['file']}: {error}") from error


def _subject(name: str, images: Mapping[str, list[dict[str, str]]], root: Path) -> Subject:
    levels = {what: _levels(name, what, rows, root) for what, rows in images.items()}
    first, *others = levels
    for other in others:
        if set(levels[other]) != set(levels[first]):
            raise DatasetError(
                f"{root / TABLE}: {name} has {len(levels[first])} slices of {first} and {len(levels[other])} of "
                f"{other}, not the same ones; expected every image at every slice; leave the others out"
            )
    spacings = {row["spacing_mm"] for rows in images.values() for row in rows if row.get("spacing_mm")}
    if len(spacings) > 1:
        raise DatasetError(f"{root / TABLE}: {name} has spacings {' and '.join(sorted(spacings))}; expected one")
    spacing = _spacing(next(iter(spacings)), name, root) if spacings else None
    stacks = {what: Stack(tuple(files[k] for k in sorted(files)), spacing) for what, files in levels.items()}
    shown = {what: stack for what, stack in stacks.items() if what not in _MASKS}
    sites = sorted({row["site"] for rows in images.values() for row in rows if row.get("site")})
    return Subject(
        id=name,
        readers={what: partial(read_stack, stack, what) for what, stack in shown.items()},
        masks={what: partial(read_stack_labels, stack) for what, stack in stacks.items() if what in _MASKS},
        headers={what: partial(read_stack_header, stack) for what, stack in shown.items()},
        provenance={what: _name(stack) for what, stack in shown.items()},
        site=" ".join(sites),
        files=tuple(file for stack in stacks.values() for file in stack.files),
    )


def _levels(name: str, what: str, rows: Sequence[Mapping[str, str]], root: Path) -> dict[float, Path]:
    """Slice number -> file."""
    found: dict[float, Path] = {}
    for row in rows:
        path = _within(root, row["file"])
        try:
            level = float(row.get("slice") or 0)
            if not isfinite(level):
                raise ValueError
        except ValueError:
            raise DatasetError(f"{root / TABLE}, {row['file']}: slice {row['slice']!r}; expected a number") from None
        if level in found:
            raise DatasetError(
                f"{root / TABLE}: {name} has {found[level].name} and {path.name} as {what} at slice {level:g}; "
                "expected one; number them in a column called slice"
            )
        found[level] = path
    return found


def _within(root: Path, name: str) -> Path:
    """A file that the table names; one beside or below the table, since a table may come from anywhere."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DatasetError(f"{root / TABLE}: {name} is outside the data set; expected paths below the table's folder")
    with door(DatasetError, f"{root / TABLE}: {name} cannot be looked for", "expected paths relative to the table"):
        if not (root / name).is_file():
            raise DatasetError(f"{root / TABLE}: {root / name}: no such file; expected paths relative to the table")
    return root / name


def _spacing(text: str, name: str, root: Path) -> tuple[float, float, float]:
    try:
        x, y, z = map(float, text.split())
        if min(x, y, z) <= 0 or not np.isfinite([x, y, z]).all():
            raise ValueError
    except ValueError:
        raise DatasetError(
            f"{root / TABLE}: {name} has spacing_mm {text!r}; expected x, y and z in mm, such as 0.9 0.9 5"
        ) from None
    return x, y, z


def read_stack(stack: Stack, name: str) -> Volume:
    """An image as a Volume in (x, y, z) order, RAS, float32; without a spacing as `read_array` has it.

    Raises:
        VolumeReadError: a damaged, coloured or non-finite image, sizes that differ, or one value throughout.
        GeometryError: too large, or a spacing that cannot be.
    """
    with np.errstate(over="ignore"):
        array = _load(stack).astype(np.float32)
    check_values(array, _name(stack))
    known = "unknown" if stack.spacing_mm is None else "stated"
    provenance = {"path": _name(stack), "sha256": sha256_array(array), "spacing": known}
    return Volume(array, _grid(stack, array.shape), name, provenance)


def read_stack_header(stack: Stack) -> Header:
    """Where the voxels of `read_stack` are, from the first slice."""
    rows, columns = _plane(stack.files[0]).shape
    return Header(_grid(stack, (columns, rows, len(stack.files))), stack.spacing_mm is not None)


def read_stack_labels(stack: Stack) -> LabelMap:
    """A mask, placed as `read_stack` places images."""
    array = _load(stack)
    return LabelMap(as_labels(array, _name(stack)), _grid(stack, array.shape))


def _name(stack: Stack) -> str:
    more = f" and {len(stack.files) - 1} more" if len(stack.files) > 1 else ""
    return f"{stack.files[0]}{more}"


def _grid(stack: Stack, shape: tuple[int, ...]) -> Grid:
    try:
        return Grid(shape, np.diag([*(stack.spacing_mm or (1.0, 1.0, 1.0)), 1.0]))  # type: ignore[arg-type]
    except GeometryError as error:
        raise GeometryError(f"{_name(stack)}: {error}") from error


def _load(stack: Stack) -> np.ndarray:
    """(x, y, z), RAS."""
    planes: list[np.ndarray] = []
    for path in stack.files:
        planes.append(_plane(path))
        if planes[-1].shape != planes[0].shape:
            raise VolumeReadError(
                f"{path}: {planes[-1].shape[1]} x {planes[-1].shape[0]} pixels, {stack.files[0].name} has "
                f"{planes[0].shape[1]} x {planes[0].shape[0]}; expected one size; crop or pad it"
            )
        check_size((*planes[0].shape, len(stack.files)), _name(stack), itemsize=planes[0].itemsize)
    return np.ascontiguousarray(np.stack(planes).transpose(2, 1, 0)[:, ::-1])


def _plane(path: Path) -> np.ndarray:
    """One image, (row, column)."""
    plane = read_npy(path) if path.suffix.lower() == ".npy" else _picture(path)
    if plane.ndim == 3 and plane.shape[2] in (3, 4) and (plane[..., :3] == plane[..., :1]).all():
        plane = plane[..., 0]  # grey, saved as a colour image; with or without opacity
    if plane.ndim != 2 or plane.dtype.kind not in "biuf" or not plane.size:
        what = "coloured" if plane.ndim == 3 else f"an array of {plane.dtype}, shape {plane.shape}"
        raise VolumeReadError(f"{path}: is {what}; expected one grey slice; convert it")
    return plane


def _picture(path: Path) -> np.ndarray:
    """What a PNG holds; no other format is decoded, whatever the name says (some start programs)."""
    from PIL import Image

    with door(VolumeReadError, f"{path}: cannot be read", "expected a PNG or .npy image; copy it again"):
        if path.stat().st_size > _MOST_PNG:
            raise ValueError(f"it is larger than {_MOST_PNG // 2**20} MiB")
        with Image.open(path, formats=("PNG",)) as picture:
            unpacked = picture.width * picture.height * len(picture.getbands()) * (2 if "16" in picture.mode else 1)
            check_size((picture.width, picture.height), str(path))
            check_packed(unpacked, path.stat().st_size, str(path))
            return np.asarray(picture.convert("L") if picture.mode in ("1", "P", "LA") else picture)


COMPONENT = Slices()
