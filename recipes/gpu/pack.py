"""Pack real scans into a few files that a short run on a rented card can take along.

    python recipes/gpu/pack.py DATA OUT [--sets recipes/gpu/sets.yaml] [--megabytes 40]

OUT/part-N.zip hold one member a subject: what training draws from (`medk2n.data.stored.Stored`: 8-bit slices, and the
tables beside them), cut to the slices and the box that have a patient, xz inside. The first parts have what is watched
and some of every set, so that a part alone is of use. Nothing of it may be passed on: the scans keep their licences.
"""

import argparse
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medk2n.data.discover import discover
from medk2n.data.stored import ENOUGH, Stored
from medk2n.data.working import WorkingStudy, load_working
from medk2n.errors import DatasetError
from medk2n.io.atomic import sha256_array

sys.path.insert(0, str(Path(__file__).parents[1]))
from brain_masks import CONTRASTS, brain_mask  # a recipe beside this folder

SETS = Path(__file__).with_name("sets.yaml")
_XZ: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 6, "pb": 0, "lc": 4}]
_STYLES = "head", "brain"


@dataclass(frozen=True, slots=True)
class Packed:
    """One subject.

    Attributes:
        set: which data set it is of.
        part: "train" or "val".
        licence: of its scans.
        free: whether weights that learned from it may be given away under Apache-2.0.
        modalities: of the channels of `stored`.
    """

    id: str
    set: str
    part: str
    licence: str
    free: bool
    modalities: tuple[str, ...]
    stored: Stored


def subjects(data: Path, sets: Path = SETS) -> Iterator[tuple[Packed, dict[str, str]]]:
    """Every subject that `sets` names, with the digests of its images, as training reads them."""
    plan = yaml.safe_load(sets.read_text(encoding="utf-8"))
    names = tuple(plan["modalities"])
    for entry in plan["sets"]:
        root, left_out, free = data / entry["folder"], entry.get("leave_out", ()), entry.get("free", ())
        manifest = root.parent / "manifest.json"
        rows = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
        for subject in discover(root):
            readers = {
                name: read
                for name, read in subject.readers.items()
                if name in names and f"{subject.id}:{name}" not in left_out
            }
            if subject.id in left_out or not readers:
                continue
            study = load_working(replace(subject, readers=readers), plan["spacing_mm"])
            if entry.get("brain_masks"):
                study = replace(study, brain=_brain(root / f"{subject.id}.npz", study))
            yield (
                Packed(
                    id=subject.id,
                    set=entry["name"],
                    part=entry["part"],
                    licence=rows.get(subject.id, {}).get("licence", entry.get("licence", "unknown")),
                    free=any(fnmatch(subject.id, pattern) for pattern in free),
                    modalities=names,
                    stored=trimmed(Stored.of(study, names)),
                ),
                {name: sha256_array(image) for name, image in study.images.items()},
            )


def _brain(path: Path, study: WorkingStudy) -> np.ndarray:
    """A mask of a whole head's brain (recipes/brain_masks.py), as the array reader would have read it."""
    with np.load(path) as file:
        mask = brain_mask([file[name] for name in CONTRASTS if name in file.files])
    if mask.shape != study.foreground.shape:
        raise DatasetError(f"{path}: slices of {mask.shape}, read as {study.foreground.shape}; expected one grid")
    return mask


def trimmed(stored: Stored) -> Stored:
    """Without the slices that are neither learned from nor neighbours of such, and without the empty rim."""
    array, used = stored.array(), np.flatnonzero(stored.foreground_share > ENOUGH)
    if not len(used):
        return stored
    z = slice(max(0, used[0] - 1), used[-1] + 2)
    rows, columns = (np.flatnonzero(array[z, 0].any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = array[z, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    brain = None if stored.brain_share is None else stored.brain_share[z]
    return replace(
        stored, slices=np.ascontiguousarray(box), foreground_share=stored.foreground_share[z], brain_share=brain
    )


def to_bytes(packed: Packed) -> bytes:
    """A subject as a member of a part."""
    stored = packed.stored
    about = {name: getattr(packed, name) for name in ("id", "set", "part", "licence", "free", "modalities")}
    about |= {"channels": stored.channels, "stripped": stored.stripped}
    tables = {"slices": stored.slices, "foreground": stored.foreground_share}
    if stored.brain_share is not None:
        tables["brain"] = stored.brain_share
    for m in range(len(packed.modalities)):
        tables |= {f"stretch {m} {k}": table for k, table in enumerate(stored.stretch[m])}
        for kind, style in zip(_STYLES, stored.styles, strict=True):
            if style is not None and style[m] is not None:
                tables[f"{kind} {m}"] = style[m].astype(np.float32)
    about["styles"] = [style is not None for style in stored.styles]
    tables["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **tables)
    return lzma.compress(file.getvalue(), format=lzma.FORMAT_XZ, filters=_XZ)


def from_bytes(raw: bytes) -> Packed:
    """What `to_bytes` gave."""
    with np.load(io.BytesIO(lzma.decompress(raw)), allow_pickle=False) as file:
        tables = {name: file[name] for name in file.files}
    about = json.loads(tables["about"].tobytes())
    channels = tuple(tuple(c) for c in about.pop("channels"))
    stretch = tuple(tuple(tables[f"stretch {m} {k}"] for k in range(len(c))) for m, c in enumerate(channels))
    styles = [
        tuple(tables.get(f"{kind} {m}") for m in range(len(channels))) if there else None
        for kind, there in zip(_STYLES, about.pop("styles"), strict=True)
    ]
    stored = Stored(
        tables["slices"], channels, about.pop("stripped"), tables["foreground"], tables.get("brain"), stretch,
        (styles[0], styles[1]),
    )  # fmt: skip
    return Packed(**about | {"modalities": tuple(about["modalities"]), "stored": stored})


def write(data: Path, out: Path, *, sets: Path = SETS, limit: int = 40_000_000) -> list[Path]:
    """Write the parts and return them.

    Raises:
        DatasetError: an image is both learned from and watched, or OUT has parts already.
    """
    if list(out.glob("part-*.zip")):
        raise DatasetError(f"{out}: has parts already; remove them or choose another folder")
    made: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
    seen: dict[str, str] = {}
    for packed, digests in subjects(data, sets):
        for digest in digests.values():
            if seen.setdefault(digest, packed.part) != packed.part:
                raise DatasetError(f"{packed.id} of {packed.set}: an image is both learned from and watched")
        name = f"{packed.set}/{packed.part}/{packed.id}"
        made.setdefault((packed.set, packed.part), []).append((name, to_bytes(packed)))
    watched = [member for (_, part), members in made.items() if part == "val" for member in members]
    learned = [members for (_, part), members in made.items() if part != "val"]
    each = max(map(len, learned), default=0)  # evenly through the parts
    spread = sorted(((k + 0.5) * each / len(ms), m) for ms in learned for k, m in enumerate(ms))
    return _parts(out, [*watched, *(member for _, member in spread)], limit)


def _parts(out: Path, members: Sequence[tuple[str, bytes]], limit: int) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    groups: list[list[tuple[str, bytes]]] = [[]]
    for member in members:
        size = sum(len(raw) + 300 for _, raw in [*groups[-1], member])
        if groups[-1] and size > limit:
            groups.append([])
        groups[-1].append(member)
    paths = []
    for k, group in enumerate(groups, 1):
        paths.append(out / f"part-{k}.zip")
        with zipfile.ZipFile(paths[-1], "w") as file:
            for name, raw in group:
                file.writestr(name, raw)
    return paths


def read(folder: Path, *, free_only: bool = False) -> list[Packed]:
    """All subjects of the parts that are in a folder.

    Raises:
        DatasetError: no part there.
    """
    raws = []
    for path in sorted(folder.glob("part-*.zip")):
        with zipfile.ZipFile(path) as file:
            raws += [file.read(name) for name in file.namelist()]
    if not raws:
        raise DatasetError(f"{folder}: expected part-1.zip of recipes/gpu/pack.py; make it, or name its folder")
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(from_bytes, raws))
    return [packed for packed in found if packed.free or not free_only]


def main() -> None:
    """Write the parts and say what is in them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", type=Path, default=SETS)
    parser.add_argument("--megabytes", type=float, default=40)
    asked = parser.parse_args()
    for path in write(asked.data, asked.out, sets=asked.sets, limit=int(asked.megabytes * 1e6)):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    found = read(asked.out)
    for name in sorted({(p.set, p.part) for p in found}):
        of = [p for p in found if (p.set, p.part) == name]
        slices = sum(int((p.stored.foreground_share > ENOUGH).sum()) for p in of)
        print(f"{' '.join(name)}: {len(of)} subjects, {sum(p.free for p in of)} of them free, {slices} slices")


if __name__ == "__main__":
    main()
