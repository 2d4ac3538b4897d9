"""Hand completed studies to nnU-Net in its raw layout: acquired scans, and synthetic ones in the gaps.

    medk2n synth STUDIES -o SYNTHETIC
    python recipes/nnunet_raw.py STUDIES SYNTHETIC nnUNet_raw/Dataset501_Completed --channels t1n,t1c,t2w,t2f

STUDIES is any data set that medk2n reads. Cases with a lesion mask go to imagesTr and labelsTr, the others to imagesTs.
`synthetic.json` says which channel of which case is synthetic: keep it with whatever is measured on these data.
"""

import argparse
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from medk2n.data.discover import discover
from medk2n.errors import GeometryError
from medk2n.io.outputs import output_folder
from medk2n.report.record import records


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", type=Path)
    parser.add_argument("synthetic", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--channels", default="t1n,t1c,t2w,t2f")
    args = parser.parse_args(arguments)
    channels = args.channels.split(",")
    with output_folder(args.out, ["*"]) as folder:
        with folder.whole(last="dataset.json") as new:
            told = fill(new, args.studies, synthetic_images(args.synthetic), channels)
        (args.out / "imagesTr").mkdir(exist_ok=True)  # by which readers know the layout
    print(f"{len(told)} cases, {sum(map(len, told.values()))} synthetic channels: {args.out}")


def fill(out: Path, studies: Path, made: dict[str, dict[str, Path]], channels: list[str]) -> dict[str, list[str]]:
    """Write all cases that have every channel; returns case -> its synthetic ones."""
    told: dict[str, list[str]] = {}
    training = 0
    for subject in discover(studies):
        acquired = {name: Path(path) for name, path in subject.provenance.items()}
        files = {name: acquired.get(name) or made.get(subject.id, {}).get(name) for name in channels}
        if lacking := [name for name, path in files.items() if path is None]:
            print(f"{subject.id} left out: {', '.join(lacking)} neither acquired nor synthesised")
            continue
        same_grid(subject.id, files)
        told[subject.id] = [name for name in channels if name not in acquired]
        part = "Tr" if "lesion" in subject.masks else "Ts"
        training += part == "Tr"
        for number, path in enumerate(files.values()):
            write(nib.load(path), out / f"images{part}" / f"{subject.id}_{number:04d}.nii.gz", path)
        if part == "Tr":
            mask = subject.masks["lesion"]()
            image = nib.Nifti1Image(mask.array.astype(np.uint8), mask.grid.affine)
            write(image, out / "labelsTr" / f"{subject.id}.nii.gz")
    labels = {"background": 0, "lesion": 1}
    described = {"channel_names": {str(i): name for i, name in enumerate(channels)}, "labels": labels}
    described |= {"numTraining": training, "file_ending": ".nii.gz"}
    (out / "dataset.json").write_text(json.dumps(described, indent=2))
    (out / "synthetic.json").write_text(json.dumps(told, indent=2))
    return told


def synthetic_images(folder: Path) -> dict[str, dict[str, Path]]:
    """Study -> modality -> its synthetic image, from the records of a cohort."""
    found: dict[str, dict[str, Path]] = {}
    for record in records(folder):
        for name in (name for name in record["outputs"] if name.endswith(".json") and "desc-synth_" in name):
            sidecar = json.loads((folder / name).read_text())
            image = folder / (name.removesuffix(".json") + ".nii.gz")
            found.setdefault(record["study"], {})[sidecar["Modality"]] = image
    return found


def same_grid(case: str, files: dict[str, Path]) -> None:
    """nnU-Net wants all channels of a case on one grid."""
    images = {name: nib.load(path) for name, path in files.items()}
    first = next(iter(images.values()))
    for name, image in images.items():
        if image.shape != first.shape or not np.allclose(image.affine, first.affine, atol=1e-3):
            raise GeometryError(f"{case}: {name} lies on another grid; run `medk2n prepare` on the studies first")


def write(image: nib.Nifti1Image, path: Path, source: Path | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if source is not None and source.name.endswith(".nii.gz"):
        shutil.copyfile(source, path)
    else:
        nib.save(image, path)


if __name__ == "__main__":
    main()
