"""Does the digital cohort look like real scans in numbers? Prints a Markdown table.

    python recipes/phantom_realism.py COHORT REAL_DATA [--out docs/results/phantom-realism.md]

COHORT was written by `medk2n phantom`; REAL_DATA holds `volumes/` (NIfTI, one folder a study) and
`four128/` (arrays t1n t1c t2w t2f, 1.5 x 1.5 x 2 mm). Both are measured alike: tissue classes by a
three-component Gaussian mixture of T1 within the brain, lesions left out; means as a part of the
white matter's; contrast-to-noise of grey against white; slope of the radial power spectrum of
axial slices between 0.03 and 0.2 cycles per mm, where both kinds of grid can speak.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion
from sklearn.mixture import GaussianMixture

from medk2n.io.atomic import write_text
from medk2n.io.outputs import output_file

CONTRASTS = ("t1n", "t1c", "t2w", "t2f")
BIDS = {"t1n": "anat/{}_T1w", "t1c": "anat/{}_ce-gadolinium_T1w", "t2w": "anat/{}_T2w", "t2f": "anat/{}_FLAIR",
        "dwi": "dwi/{}_dwi", "adc": "dwi/{}_ADC"}  # fmt: skip

Study = tuple[str, dict[str, np.ndarray], np.ndarray, np.ndarray, float]  # name, images, brain, lesion, mm in plane


def cohort_studies(folder: Path) -> Iterator[Study]:
    """Digital subjects, brain only."""
    for subject in sorted(folder.glob("sub-*")):
        truth = folder / "derivatives" / "truth" / subject.name / "anat"
        images = {m: _array(subject / (p.format(subject.name) + ".nii.gz")) for m, p in BIDS.items()}
        brain = _array(truth / f"{subject.name}_desc-brain_mask.nii.gz") > 0
        lesion = _array(truth / f"{subject.name}_desc-lesion_mask.nii.gz") > 0
        spacing = nib.load(truth / f"{subject.name}_desc-brain_mask.nii.gz").header.get_zooms()[0]
        yield subject.name, images, brain, lesion, float(spacing)


def real_studies(folder: Path) -> Iterator[Study]:
    """Real brains with all four contrasts, and ISLES for diffusion."""
    for study in sorted((folder / "volumes").iterdir()):
        files = {p.name.split(".")[0]: p for p in study.glob("*.nii.gz")}
        wanted = [m for m in (*CONTRASTS, "dwi", "adc") if m in files]
        images = {m: np.maximum(_array(files[m]), 0) for m in wanted}
        if "adc" in images and np.percentile(images["adc"], 99) < 100:
            images["adc"] = images["adc"] * 1000  # 1e-3 to 1e-6 mm^2/s
        lesion = _array(files.get("seg", files.get("lesion"))) > 0
        yield study.name, images, images[wanted[0]] > 0, lesion, float(nib.load(files[wanted[0]]).header.get_zooms()[0])
    for path in sorted((folder / "four128").glob("*.npz")):
        if path.name.startswith("HiNet"):
            continue  # histogram-equalised: their grey levels say nothing
        with np.load(path) as stored:
            images = {m: np.moveaxis(stored[m].astype(np.float32), 0, -1) for m in CONTRASTS}
            seg = np.moveaxis(stored["seg"], 0, -1) > 0 if "seg" in stored else np.zeros(images["t1n"].shape, bool)
        yield path.stem, images, images["t1n"] > 0, seg, 1.5


def _array(path: Path) -> np.ndarray:
    return nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)


def measure(images: dict[str, np.ndarray], brain: np.ndarray, lesion: np.ndarray, spacing: float) -> dict[str, float]:
    """All figures of one study."""
    healthy = binary_erosion(brain, iterations=2) & ~binary_dilation(lesion, iterations=3)
    out: dict[str, float] = {}
    if "t1n" in images:
        csf, grey, white = _classes(images["t1n"], healthy)
        for m in CONTRASTS:
            value = {name: images[m][mask] for name, mask in (("csf", csf), ("grey", grey), ("white", white))}
            level = value["white"].mean()
            out[f"{m} grey / white"] = value["grey"].mean() / level
            out[f"{m} csf / white"] = value["csf"].mean() / level
            noise = np.sqrt((value["grey"].var() + value["white"].var()) / 2)
            out[f"{m} contrast-to-noise, grey against white"] = abs(value["grey"].mean() - level) / noise
    if "adc" in images:
        tissue = healthy & (images["adc"] > 300) & (images["adc"] < 1300)
        water = healthy & (images["adc"] > 2200)
        out["adc of tissue, median (1e-6 mm^2/s)"] = float(np.median(images["adc"][tissue]))
        out["dwi csf / tissue"] = images["dwi"][water].mean() / images["dwi"][tissue].mean()
        out["dwi variation within tissue"] = images["dwi"][tissue].std() / images["dwi"][tissue].mean()
    for m, image in images.items():
        out[f"{m} spectral slope"] = _slope(np.where(brain, image, 0), brain, spacing)
    return out


def _classes(t1: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Voxels of three classes in order of T1 brightness: CSF, grey, white."""
    values = t1[mask][:, None]
    low, high = np.percentile(values, (0.5, 99.5))
    sample = np.clip(values[:: max(1, len(values) // 40_000)], low, high)
    start = np.percentile(sample, (6, 40, 80))[:, None]
    mixture = GaussianMixture(3, means_init=start, random_state=0).fit(sample)
    order = np.argsort(mixture.means_[:, 0])
    values = np.clip(values, mixture.means_[order[0]], mixture.means_[order[2]])  # beyond the outer means all is sure
    posterior = mixture.predict_proba(values)[:, order]
    out = []
    for k in range(3):
        chosen = np.zeros(mask.shape, bool)
        chosen[mask] = posterior[:, k] > 0.5
        out.append(chosen)
    return tuple(out)


def _slope(image: np.ndarray, brain: np.ndarray, spacing: float) -> float:
    """Exponent p of power ~ frequency^p, mean over the middle axial slices."""
    area = brain.sum((0, 1))
    slices = np.flatnonzero(area > 0.6 * area.max())[::3]
    fx, fy = (np.fft.fftfreq(n, spacing) for n in image.shape[:2])
    radius = np.hypot(fx[:, None], fy[None])
    edges = np.geomspace(0.03, 0.2, 12)
    power = np.zeros(11)
    for k in slices:
        plane = np.abs(np.fft.fft2(image[:, :, k] - image[:, :, k].mean())) ** 2
        power += [plane[(radius >= a) & (radius < b)].mean() for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return float(np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(power), 1)[0])


def table(real: dict[str, dict[str, float]], digital: dict[str, dict[str, float]]) -> str:
    """Markdown: per figure the real range, the cohort's range and mean, and whether the mean lies within."""
    names = list(dict.fromkeys(key for row in digital.values() for key in row))
    lines = [
        "| figure | real, least to most (n) | cohort, least to most (n) | cohort mean | mean within the real range |"
    ]
    lines.append("|---|---|---|---|---|")
    for name in names:
        a = [row[name] for row in real.values() if name in row]
        b = [row[name] for row in digital.values() if name in row]
        if not a:
            continue
        mean = float(np.mean(b))
        if len(a) > 1:
            verdict = "yes" if min(a) <= mean <= max(a) else "no"
        else:  # one real scan is no range: within 15 percent of it
            verdict = "within 15 %" if abs(mean - a[0]) <= 0.15 * abs(a[0]) else "no"
        spans = [f"{min(v):.2f} to {max(v):.2f} ({len(v)})" for v in (a, b)]
        lines.append(f"| {name} | {spans[0]} | {spans[1]} | {mean:.2f} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace what lies at --out")
    args = parser.parse_args()
    with output_file(args.out, overwrite=args.overwrite) if args.out else nullcontext():
        make(args)


def make(args: argparse.Namespace) -> None:
    """The table, on the screen and at --out."""
    measured = [
        {name: measure(images, brain, lesion, mm) for name, images, brain, lesion, mm in studies}
        for studies in (real_studies(args.real), cohort_studies(args.cohort))
    ]
    text = table(*measured)
    sys.stdout.write(text + "\n")
    if args.out:
        head = "# The digital cohort beside real scans\n\nMade by `recipes/phantom_realism.py`,"
        head += " which says how each figure is taken."
        real = ", ".join(measured[0])
        write_text(args.out, f"{head}\nReal scans: {real}.\n\n{text}\n")


if __name__ == "__main__":
    main()
