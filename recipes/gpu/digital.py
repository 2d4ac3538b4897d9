"""Digital subjects for a card: bodies are made on the host's cores, their scans on the card.

    python recipes/gpu/digital.py OUT --subjects 400 --workers 14

writes OUT/body-00001.npz and so on, each when it is whole: where the tissues are and how they vary
(`medk2n.phantom.body`, the subjects of `medk2n phantom --seed`). `train.py --bodies OUT` takes what is there, looks
for more while it trains, and scans each on the card by the physics of `medk2n.phantom`.
"""

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medk2n.data.grey import UNCHANGED, stretched
from medk2n.data.intensity import PERCENTILES
from medk2n.data.stored import ENOUGH, Stored
from medk2n.phantom import acquire, cohort
from medk2n.phantom.anatomy import Anatomy, load_icbm152
from medk2n.phantom.body import Body, build_body
from medk2n.phantom.signal import FIXED, RANDOM_MODALITIES, Protocol, random_protocol
from medk2n.phantom.tissues import TISSUES, Tissue, draw_tissues
from medk2n.training.device_damage import Chance
from medk2n.vocabulary import modality

_SHARES, _TEXTURE = 255, 40  # levels of a whole voxel, and of a deviation of the texture
_SAMPLE = 200_000  # voxels that percentiles are found on


@dataclass(frozen=True, eq=False)
class Subject:
    """A body on a device, cut to its head; v voxels in (z, x, y) order, which is that of slices.

    Attributes:
        shape: (z, x, y).
        plane: pixels of a whole slice, of which shares are told.
        tissues: name -> (voxel indices (n,), shares (n,)).
        texture: (3, v), unit deviation.
        brain, head: (v,) bool.
    """

    shape: tuple[int, int, int]
    plane: int
    spacing_mm: float
    tissues: dict[str, tuple[Tensor, Tensor]]
    texture: Tensor
    brain: Tensor
    head: Tensor

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "Subject":
        """A file of `save`."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        names = [name for name in TISSUES if f"at {name}" in tensors]
        return cls(
            shape=tuple(arrays["shape"].tolist()),
            plane=int(arrays["plane"]),
            spacing_mm=float(arrays["spacing_mm"]),
            tissues={n: (tensors[f"at {n}"].long(), tensors[f"share {n}"].float() / _SHARES) for n in names},
            texture=tensors["texture"].float() / _TEXTURE,
            brain=tensors["brain"],
            head=tensors["head"],
        )


def save(body: Body, path: Path) -> None:
    """Write a body, cut to the slices and the box that hold its head; it appears when it is whole."""
    used = np.flatnonzero(body.head.mean(axis=(0, 1)) > ENOUGH)
    z = slice(max(0, used[0] - 1), used[-1] + 2)
    x, y = (np.flatnonzero(body.head[:, :, z].any(axis=axes)) for axes in ((1, 2), (0, 2)))
    box = slice(x[0], x[-1] + 1), slice(y[0], y[-1] + 1), z

    def cut(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(array[box], 2, 0))

    brain = cut(body.brain)
    arrays = {"shape": np.array(brain.shape), "plane": np.prod(body.grid.shape[:2]), "brain": brain.ravel()}
    arrays |= {"head": cut(body.head).ravel(), "spacing_mm": np.array(body.grid.spacing_mm[0])}
    texture = np.stack([cut(field).ravel() for field in body.texture])
    arrays["texture"] = np.rint(texture * _TEXTURE).clip(-127, 127).astype(np.int8)
    for name in body.fractions:
        share = np.rint(cut(body.dense(name)).ravel() * _SHARES).astype(np.uint8)
        at = np.flatnonzero(share)
        arrays |= {f"at {name}": at.astype(np.int32), f"share {name}": share[at]}
    part = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(part, **arrays)
    part.rename(path)


def make(folder: Path, numbers: Sequence[int], *, seed: int, spacing_mm: float, workers: int) -> None:
    """Write the bodies that are not there yet, from several processes."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in numbers if not body_path(folder, number).is_file()]
    if not missing:
        return
    with multiprocessing.get_context("fork").Pool(workers, _begin, (load_icbm152(), folder, seed, spacing_mm)) as pool:
        for _ in pool.imap_unordered(_make_one, missing):
            pass


_WORKER: dict[str, Any] = {}


def _begin(anatomy: Anatomy, folder: Path, seed: int, spacing_mm: float) -> None:
    """In each worker, once: the anatomy comes with the fork and is not sent."""
    torch.set_num_threads(1)
    _WORKER.update(anatomy=anatomy, folder=folder, seed=seed, spacing_mm=spacing_mm)


def _make_one(number: int) -> None:
    w = _WORKER
    body = build_body(w["anatomy"], cohort.subject_rng(w["seed"], number), w["spacing_mm"])
    save(body, body_path(w["folder"], number))


def body_path(folder: Path, number: int) -> Path:
    """Of a subject's body."""
    return folder / f"body-{number:05d}.npz"


def visit(
    subject: Subject, modalities: Sequence[str], chance: Chance, rng: np.random.Generator
) -> tuple[Stored, Tensor]:
    """Scan a subject once under the fixed protocols, and each MR contrast again under a random one.

    Tissue values are drawn anew, so a second visit is another person with the same head.

    Returns:
        what `DeviceFeed.add` takes: tables, and slices (s, c, h, w) uint8 on the device.
    """
    tissues = draw_tissues(rng)
    shading = _shading(subject, chance, 0.10)
    layers, channels, robust = [subject.head, subject.brain & subject.head], [], []
    for name in modalities:
        protocols = [FIXED[name]] + ([random_protocol(rng, name)] if name in RANDOM_MODALITIES else [])
        channels.append(tuple(range(len(layers), len(layers) + len(protocols))))
        images = [scan(subject, tissues, name, protocol, shading, chance)[0] for protocol in protocols]
        scaled = [_scaled(image, subject.head, name) for image in images]
        layers += [image for image, _ in scaled]
        robust.append(scaled[0][1])
    slices = torch.stack([layer.to(torch.uint8).view(subject.shape) for layer in layers], dim=1)
    return _stored(slices, subject.plane, channels, robust), slices


def scan(
    subject: Subject, tissues: dict[str, Tissue], name: str, protocol: Protocol, shading: Tensor, chance: Chance
) -> tuple[Tensor, Tensor]:
    """One image (v,) in its unit, and the same without noise; as `medk2n.phantom.cohort` scans."""
    if name == "adc":
        clean = [_blurred(ideal(subject, tissues, p), subject, p) for p in (replace(protocol, b=0.0), protocol)]
        level = clean[0][subject.brain].mean()
        valid = clean[0] > 0.25 * level
        noisy = [_rician(image, protocol.noise * level, chance) for image in clean]
        ratios = [(s0.clamp_min(1e-6) / sb.clamp_min(1e-6)).log() / protocol.b * 1e6 for s0, sb in (noisy, clean)]
        made = [torch.where(valid, ratio.clamp(0, 4000), 0.0) for ratio in ratios]
        return made[0], made[1]
    clean = ideal(subject, tissues, protocol)
    if name == "ct":
        clean = _blurred(clean, subject, protocol)
        noise = _gaussian(chance.normal(len(clean)), subject.shape, 0.6)
        return (clean + protocol.noise * noise / noise.std()).clamp(acquire.AIR_HU - 24, 3071), clean
    own = _shading(subject, chance, cohort.OWN_SHADING_DWI if name == "dwi" else cohort.OWN_SHADING)
    clean = _blurred(clean * shading * own, subject, protocol)
    return _rician(clean, protocol.noise * clean[subject.brain].mean(), chance), clean


def ideal(subject: Subject, tissues: dict[str, Tissue], protocol: Protocol) -> Tensor:
    """Signal without shading, blur or noise (v,): `medk2n.phantom.acquire.ideal_image` on the device."""
    ct = protocol.sequence == "ct"
    out = torch.full((len(subject.head),), acquire.AIR_HU if ct else 0.0, device=subject.head.device)
    for name, (at, share) in subject.tissues.items():
        row = tissues[name]
        pure, slopes = acquire.ct_and_slopes(row) if ct else acquire.mr_and_slopes(row, protocol)
        varied = torch.full_like(share, pure)
        for field, slope in zip(subject.texture, slopes, strict=True):
            if slope:
                varied += slope * row.texture * field[at]
        out.index_add_(0, at, share * varied.clamp_min_(0))
    return out


def _shading(subject: Subject, chance: Chance, strength: float) -> Tensor:
    """A smooth factor as `medk2n.phantom.acquire.coil_shading` draws it."""
    wavelength = 180.0
    step = max(subject.spacing_mm, wavelength / 5)
    lattice = chance.normal(*(max(2, round((n - 1) * subject.spacing_mm / step) + 1) for n in subject.shape))
    reach = torch.arange(-3, 4)
    weights = torch.exp(-0.5 * (reach / (wavelength / step / 5)) ** 2)
    for axis in range(3):
        around = zip(reach.tolist(), (weights / weights.sum()).tolist(), strict=True)
        lattice = sum(w * lattice.roll(k, axis) for k, w in around)
    lattice = (lattice - lattice.mean()) / lattice.std(correction=0).clamp_min(1e-6)
    field = functional.interpolate(lattice[None, None], size=subject.shape, mode="trilinear", align_corners=True)
    return (strength * field.flatten()).exp()


def _blurred(image: Tensor, subject: Subject, protocol: Protocol) -> Tensor:
    spacing = subject.spacing_mm
    if protocol.psf_mm <= spacing:
        return image
    return _gaussian(image, subject.shape, float(np.sqrt(protocol.psf_mm**2 - spacing**2)) / acquire.FWHM / spacing)


def _gaussian(image: Tensor, shape: tuple[int, int, int], deviation: float) -> Tensor:
    reach = int(3 * deviation + 0.5)
    if reach == 0:
        return image
    at = torch.arange(-reach, reach + 1, device=image.device)
    weights = torch.exp(-0.5 * (at / deviation) ** 2)
    weights = weights / weights.sum()
    out = image.view(1, 1, *shape)
    for axis in range(3):
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = reach
        kernel = weights.view([-1 if k == axis else 1 for k in range(3)])[None, None]
        out = functional.conv3d(functional.pad(out, pad, mode="replicate"), kernel)
    return out.flatten()


def _rician(image: Tensor, sigma: Tensor, chance: Chance) -> Tensor:
    real, imaginary = (sigma * chance.normal(len(image)) for _ in range(2))
    return torch.hypot(image + real, imaginary)


def _scaled(image: Tensor, head: Tensor, name: str) -> tuple[Tensor, bool]:
    """Bytes as `data.working.scaled` and `data.grey.to_bytes` make them, and whether the scale is the image's own."""
    row = modality(name)
    if name == "adc":  # exactly 0 where none could be told: read as what surrounds the patient
        head = head & (image > 0)
    if row.scaling == "fixed":
        low, high = row.window
    else:
        inside = image[head]
        share = torch.tensor(PERCENTILES, device=image.device) / 100
        low, high = torch.quantile(inside[:: len(inside) // _SAMPLE + 1], share)
    levels = ((image - low) / (high - low)).clamp(0, 1) * 255
    return torch.where(head & (levels > 0), levels.round().clamp(1, 255), 0.0), row.scaling != "fixed"


def _stored(slices: Tensor, plane: int, channels: Sequence[tuple[int, ...]], robust: Sequence[bool]) -> Stored:
    """The tables beside slices, from histograms within head and brain."""
    head, brain = slices[:, 0] > 0, slices[:, 1] > 0
    counts = [
        [torch.bincount(layer[mask], minlength=256) for mask in (head, brain)] for layer in slices[:, 2:].unbind(1)
    ]
    table = torch.stack([torch.stack(pair) for pair in counts]).cpu().numpy()
    areas = torch.stack([mask.flatten(1).sum(dim=1) for mask in (head, brain)]).cpu().numpy() / plane
    stretch, seen, alone = [], [], []
    for of, own in zip(channels, robust, strict=True):
        tables = [_stretched(table[c - 2, 1]) if own else UNCHANGED for c in of]
        stretch.append(tuple(tables))
        seen.append(_below(table[of[0] - 2, 0]) if own else None)
        moved = np.bincount(tables[0], weights=table[of[0] - 2, 1], minlength=256)
        alone.append(_below(moved) if own else None)
    nothing = np.empty((len(slices), 0, 0, 0), np.uint8)  # they are on the device
    return Stored(nothing, tuple(channels), False, areas[0], areas[1], tuple(stretch), (tuple(seen), tuple(alone)))


def _below(counts: np.ndarray) -> np.ndarray:
    """`data.grey.shares_below` of values that were counted."""
    counts = counts / max(1, counts.sum())
    return np.cumsum(counts) - counts / 2


def _stretched(counts: np.ndarray) -> np.ndarray:
    """`data.grey.stretched` of values that were counted."""
    few = np.repeat(np.arange(256, dtype=np.uint8), np.ceil(counts * min(1.0, 50_000 / counts.sum())).astype(int))
    return stretched(few, np.ones(len(few), bool))


def main() -> None:
    """Make bodies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spacing", type=float, default=1.5)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    asked = parser.parse_args()
    numbers = range(1, asked.subjects + 1)
    make(asked.out, numbers, seed=asked.seed, spacing_mm=asked.spacing, workers=asked.workers)


if __name__ == "__main__":
    main()
