"""Break what every reader reads, thousands of times, and see that it is read or refused in one line: never more.

    python recipes/fuzz.py [--count 3000] [--seed 0] [--reader nifti ...] [--keep DIR]

Prints, for each reader, how many files were tried, read, refused and ended in an internal error, the slowest, and by
how much the memory of the process grew. Exit code 1 after an internal error; --keep keeps the files that did it.
"""

import argparse
import gzip
import io
import json
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from medk2n import checkpoint
from medk2n.config.control import load_control
from medk2n.config.draft import read_draft
from medk2n.config.overrides import apply_override
from medk2n.data.discover import discover
from medk2n.data.prepared import read_record
from medk2n.data.split import read_split
from medk2n.data.stored import Stored
from medk2n.errors import Medk2nError
from medk2n.geometry.resample import working_grid
from medk2n.io.nifti import read_header, read_labels, read_volume
from medk2n.io.sealed import sealed
from medk2n.preparation.run import prepare
from medk2n.preparation.study import Plan
from medk2n.training.log import read_log

Rng = np.random.Generator
SHAPE = (6, 7, 5)
NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 1e30, -1e30, np.inf, -np.inf, np.nan, 0.0, 348, 540, 32767, -32768, 1e-30)
WORDS = (
    "../x", "/etc/passwd", "nan", "inf", "-1", "0", "1e999", "1e30", "\0", "\ufeff", "[" * 300, "{", "}", '"', "'",
    "&a ", "*a", "!!python/name:os.system ", "9" * 5000, ":", "\t", ",", "\n", "\u202e", "null", "true", "[]", "{}",
    "%", "#", "~", "x" * 300, "t1n", "lesion", "ct", "10000000000", "5.5", "- ", "? ", "|\n", "\r", "\x1b[2J", "=",
)  # fmt: skip


def broken(rng: Rng, raw: bytes) -> bytes:
    """Bytes changed, overwritten, inserted, taken away or cut off, in one to four places."""
    data = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        at, many = int(rng.integers(len(data) + 1)), int(rng.integers(1, 24))
        match rng.integers(8):
            case 0 | 1 | 2 if at < len(data):
                data[at] ^= 1 << rng.integers(8)
            case 3:
                data[at : at + many] = rng.bytes(many)
            case 4:
                data[at : at + many] = bytes([rng.choice([0, 255])]) * many
            case 5:
                data[at:at] = data[at : at + many]
            case 6:
                del data[at : at + many]
            case 7 if rng.random() < 0.2:
                del data[at:]
    return bytes(data)


def reworded(rng: Rng, text: str) -> str:
    """Some of the words and numbers of a text replaced by others; at times its bytes broken as well."""
    words = re.split(r"(\W)", text)
    for at in rng.integers(len(words), size=rng.integers(1, 4)):
        words[at] = str(rng.choice(WORDS))
    if rng.random() < 0.3:
        return broken(rng, "".join(words).encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
    return "".join(words)


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def voxels(rng: Rng) -> np.ndarray:
    return rng.integers(0, 900, SHAPE).astype(rng.choice(["int16", "uint8", "float32", "int32", "float64"]))


def nifti(rng: Rng, folder: Path) -> None:
    """A field of the header set to anything, or the file broken anywhere; packed anew, so that the sum is right."""
    kind = nib.Nifti1Image if rng.random() < 0.8 else nib.Nifti2Image
    image = kind(voxels(rng), np.diag([-1.0, 1.5, 2, 1]), dtype=None)
    raw = bytearray(image.to_bytes())
    header = type(image.header)(bytes(raw[: image.header.sizeof_hdr]), check=False)
    for _ in range(rng.integers(0, 4)):
        name = str(rng.choice(header.keys()))
        if header[name].dtype.kind in "iuf":
            with np.errstate(all="ignore"):
                value = np.array(rng.choice(NUMBERS)).astype(header[name].dtype)
            place = header.structarr[name]
            place[tuple(rng.integers(n) for n in place.shape)] = value
    raw[: image.header.sizeof_hdr] = header.binaryblock
    body = broken(rng, bytes(raw)) if rng.random() < 0.5 else bytes(raw)
    path = folder / str(rng.choice(["a.nii", "a.nii.gz"]))
    packed = gzip.compress(body, 1) if path.suffix == ".gz" else body
    path.write_bytes(broken(rng, packed) if rng.random() < 0.2 else packed)
    for read in (read_header, read_labels, lambda p: read_volume(p, "t1n")):
        grid = read(path).grid
    working_grid(grid, 1.5)


def pair(rng: Rng, folder: Path) -> None:
    """The two files of a pair, one of them broken."""
    nib.save(nib.Nifti1Pair(voxels(rng), np.eye(4)), folder / "a.hdr")
    path = folder / str(rng.choice(["a.hdr", "a.img"]))
    path.write_bytes(broken(rng, path.read_bytes()))
    read_volume(path, "t1n")


def read_all(root: Path) -> None:
    """Everything that can be read of the subjects of a data set."""
    for subject in discover(root):
        for name in subject.modalities:
            working_grid(subject.header(name).grid, 1.5)
            subject.readers[name]()
        for read in subject.masks.values():
            read()


def npz(rng: Rng, folder: Path) -> None:
    """Arrays broken inside the archive, or the archive itself."""
    stack = {name: rng.integers(0, 255, (4, 7, 6)).astype(np.uint8) for name in ("t1n", "t2f")}
    arrays = stack | {"seg": stack["t1n"] > 99, "valid": np.array([1, 0, 1, 1]), "spacing": np.array([0.5, 0.5, 5.0])}
    with zipfile.ZipFile(folder / "p1.npz", "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])) as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            raw = file.getvalue()
            if rng.random() < 0.15:
                raw = reworded(rng, raw.decode("latin-1")).encode("latin-1", "replace")
            elif rng.random() < 0.15:
                raw = broken(rng, raw)
            archive.writestr(f"{name}.npy", raw)
    if rng.random() < 0.5:
        path = folder / "p1.npz"
        path.write_bytes(broken(rng, path.read_bytes()))
    read_all(folder)


def png(rng: Rng, folder: Path) -> None:
    """A picture or .npy of a stack of slices broken, or a chunk of a picture with a right sum."""
    rows = ["subject,modality,file,slice"]
    for level in range(2):
        plane = rng.integers(0, 250, (7, 6)).astype(rng.choice(["uint8", "uint16"]))
        Image.fromarray(plane).save(folder / f"{level}.png")
        np.save(folder / f"{level}.npy", plane)
        rows += [f"p1,t1n,{level}.png,{level}", f"p1,t2w,{level}.npy,{level}"]
    (folder / "slices.csv").write_text("\n".join(rows) + "\n")
    path = folder / str(rng.choice(["0.png", "1.png", "1.npy"]))
    raw = path.read_bytes()
    if path.suffix == ".png" and rng.random() < 0.5:
        head = bytearray(raw[12:29])  # IHDR and what it says
        with np.errstate(all="ignore"):
            head[4 + rng.integers(13)] = int(rng.integers(256))
        path.write_bytes(raw[:12] + head + zlib.crc32(head).to_bytes(4, "big") + raw[33:])
    else:
        path.write_bytes(broken(rng, raw))
    read_all(folder)


def slices(rng: Rng, folder: Path) -> None:
    """The table of slices reworded."""
    rows = ["subject,modality,file,slice,spacing_mm,site"]
    for level in range(2):
        Image.fromarray(rng.integers(0, 250, (7, 6)).astype(np.uint8)).save(folder / f"{level}.png")
        rows += [
            f"p{k},{name},{level}.png,{level},0.5 0.5 5,here" for k in (1, 2) for name in ("t1n", "flair", "lesion")
        ]
    write(folder / "slices.csv", reworded(rng, "\n".join(rows) + "\n"))
    read_all(folder)


def tables(rng: Rng, folder: Path) -> None:
    """participants.tsv of BIDS, dataset.json of nnU-Net, a split, or the metrics of a run, reworded."""
    match rng.integers(4):
        case 0:
            (folder / "sub-01" / "anat").mkdir(parents=True)
            nib.save(nib.Nifti1Image(voxels(rng), np.eye(4)), folder / "sub-01" / "anat" / "sub-01_T1w.nii")
            write(
                folder / "participants.tsv", reworded(rng, "participant_id\tage\tsite\nsub-01\t40\tA\nsub-02\t50\tB\n")
            )
            read_all(folder)
        case 1:
            (folder / "imagesTr").mkdir()
            for channel in range(2):
                nib.save(nib.Nifti1Image(voxels(rng), np.eye(4)), folder / "imagesTr" / f"a_000{channel}.nii")
            described = {"channel_names": {"0": "T1", "1": "FLAIR"}, "file_ending": ".nii"}
            write(folder / "dataset.json", reworded(rng, json.dumps(described)))
            read_all(folder)
        case 2:
            placed = {"part": "train", "patient": "a", "site": "", "modalities": ["t1n"]}
            split = {"seed": 0, "shares": {"train": 1.0}, "subjects": {"a": placed, "b": placed | {"patient": "b"}}}
            write(folder / "split.json", reworded(rng, json.dumps(split)))
            read_split(folder / "split.json")
        case 3:
            rows = "model,step,seconds,progress,name,value\n" + "unet,20,1.5,0.1,log_mse,0.25\n" * 3
            write(folder / "metrics.csv", reworded(rng, rows))
            read_log(folder / "metrics.csv")


@cache
def prepared_once() -> tempfile.TemporaryDirectory:
    """A prepared data set of one study; goes with the process."""
    kept = tempfile.TemporaryDirectory(prefix="medk2n-fuzz-")
    source = Path(kept.name) / "source"
    (source / "p1").mkdir(parents=True)
    grey = np.pad(np.random.default_rng(0).integers(1, 900, (4, 5, 3)).astype(np.int16), 1)
    for name, image in {"t1n": np.roll(grey, 1, 0), "t2w": grey, "seg": grey}.items():
        nib.save(nib.Nifti1Image(image, np.eye(4)), source / "p1" / f"{name}.nii")
    prepare(discover(source), source, Path(kept.name) / "prepared", Plan(spacing_mm=1.0))
    return kept


def prepared(rng: Rng, folder: Path) -> None:
    """The sidecar of a prepared study reworded, or one of its files broken."""
    shutil.copytree(Path(prepared_once().name) / "prepared", folder / "prepared")
    path = folder / "prepared" / "p1" / str(rng.choice(["study.json", "study.json", "t1n.nii", "tables.safetensors"]))
    if path.suffix == ".json":
        write(path, reworded(rng, path.read_text()))
    else:
        path.write_bytes(broken(rng, path.read_bytes()))
    read_all(folder / "prepared")
    record = read_record(path.parent)
    record.statistics()
    Stored.opened(path.parent, ("t1n", "t2w"), ("t1n", "t2w"))


YAML = """seed: 3
modalities: [t1n, t2w, flair]
spacing_mm: 1.5  # of the plane
models:
  - name: unet
    params: {widths: [24, 40, 72, 112, 144]}
optimiser: {learning_rate: 1.5e-3, ema: 0.998}
budget: {minutes: 30.0}
batch: {size: 2, crop: 96}
licence: 'Apache-2.0'
"""
OPTIONS = ("seed=3", "models.unet.params.widths=[24, 40]", "batch.crop=auto", "budget={steps: 5}", "core=[t1n]")
RULES = ("fusion.t2f.key=t1n", "fusion.t2f.leave_out=[t1c]", "fusion.t2f.weights.t2w.at_most=0.3")


def settings(rng: Rng, folder: Path) -> None:
    """A file of settings, or an option, reworded."""
    match rng.integers(3):
        case 0:
            write(folder / "c.yaml", reworded(rng, YAML))
            read_draft(folder / "c.yaml")
        case 1:
            write(folder / "c.yaml", YAML)
            read_draft(folder / "c.yaml", [reworded(rng, str(rng.choice(OPTIONS)))])
            apply_override({}, reworded(rng, str(rng.choice(OPTIONS))))
        case 2:
            load_control([reworded(rng, str(rng.choice(RULES)))])


def model(rng: Rng, folder: Path) -> None:
    """A model folder: its description reworded, its weights broken; at times with a hash that is right again."""
    config = checkpoint.ModelConfig(
        model="unet",
        modalities=("t1n", "t2w"),
        spacing_mm=2.0,
        params={"slices": 3, "widths": [8, 8, 8, 8, 8]},
        statistics=checkpoint.Statistics(
            affine_maps={"t1n": {"t2w": (1.0, 0.0, 0.1)}}, variance={"t1n": 0.1}, typical_scaling={"t1n": (0.0, 900.0)}
        ),
    )
    checkpoint.save(folder, checkpoint.build(config), config)
    path, weights = folder / checkpoint.CONFIG, folder / checkpoint.WEIGHTS
    text = path.read_text()
    if rng.random() < 0.5:
        weights.write_bytes(broken(rng, weights.read_bytes()))
        text = re.sub(r'"sha256": "\w+"', f'"sha256": "{checkpoint.sha256_file(weights)}"', text)
    else:
        text = reworded(rng, text)
    if rng.random() < 0.8 and not re.search("[\ud800-\udfff]", text):
        text = sealed(re.sub(r'"config_sha256": "\w*"', '"config_sha256": ""', text), checkpoint._SEAL)
    write(path, text)
    checkpoint.load(folder)


READERS: dict[str, Callable[[Rng, Path], None]] = {
    reader.__name__: reader for reader in (nifti, pair, npz, png, slices, tables, prepared, settings, model)
}


@dataclass
class Outcome:
    """What became of the files of one reader; `internal` holds a line for each error that is none of ours."""

    read: int = 0
    refused: int = 0
    internal: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def fuzz(name: str, count: int, seed: int = 0, keep: Path | None = None) -> Outcome:
    """Break `count` files and read them; file k of a seed is the same in every run."""
    found = Outcome()
    for k in range(count):
        folder = Path(tempfile.mkdtemp(prefix="medk2n-fuzz-"))
        started = time.perf_counter()
        try:
            READERS[name](np.random.default_rng([seed, k]), folder)
            found.read += 1
        except Medk2nError as error:
            found.refused += 1
            if error.exit_code != 2 or "\n" in str(error):
                found.internal.append(f"{name} {k}: {type(error).__name__}: {error}")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found.internal.append(
                f"{name} {k}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            )
            if keep:
                shutil.copytree(folder, keep / f"{name}-{k}", dirs_exist_ok=True)
        finally:
            shutil.rmtree(folder)
        found.slowest_s = max(found.slowest_s, time.perf_counter() - started)
    return found


def main() -> None:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, nargs="*", default=list(READERS))
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    print("| reader | files | read | refused | internal errors | slowest, s | memory grew by, MB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    failed = []
    for name in args.reader:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = fuzz(name, args.count, args.seed, args.keep)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"| {name} | {args.count} | {found.read} | {found.refused} | {len(found.internal)} |"
              f" {found.slowest_s:.2f} | {grown:.0f} |", flush=True)  # fmt: skip
        failed += found.internal
    print(*failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
