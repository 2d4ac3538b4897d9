"""From a body to images: tissue signals mixed by fraction, coil shading, the acquired voxel, noise."""

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from medk2n.phantom.body import Body
from medk2n.phantom.fields import smooth_field
from medk2n.phantom.signal import Protocol, apparent_diffusion, mr_signal
from medk2n.phantom.tissues import Tissue

FWHM = 2.3548  # full width at half maximum of a Gaussian, in deviations
AIR_HU = -1000.0


def ideal_image(body: Body, tissues: dict[str, Tissue], protocol: Protocol) -> np.ndarray:
    """Signal without shading, blur or noise; (x, y, z) float32.

    Args:
        body: where tissue is.
        tissues: this subject's own values.
        protocol: the acquisition.
    """
    out = np.full(int(np.prod(body.grid.shape)), AIR_HU if protocol.sequence == "ct" else 0.0, np.float32)
    texture = body.texture.reshape(3, -1)
    for name, (index, share) in body.fractions.items():
        pure, slopes = (
            ct_and_slopes(tissues[name]) if protocol.sequence == "ct" else mr_and_slopes(tissues[name], protocol)
        )
        varied = np.full(len(index), pure, np.float32)
        for field, slope in zip(texture, slopes, strict=True):
            if slope:
                varied += np.float32(slope * tissues[name].texture) * field[index]
        out[index] += share * np.maximum(varied, 0)
    return out.reshape(body.grid.shape)


def ct_and_slopes(row: Tissue) -> tuple[float, tuple[float, float, float]]:
    """HU above air and what a relative change adds: density alone matters to CT."""
    return row.hu - AIR_HU, (40.0 if row.hu < 200 else row.hu, 0.0, 0.0)


def mr_and_slopes(row: Tissue, protocol: Protocol) -> tuple[float, tuple[float, float, float]]:
    """Signal of one tissue and its change with the three texture fields, to first order.

    Water content lengthens T1 and T2 and raises PD together (first field), T2 and uptake vary
    besides (second), PD and ADC on their own (third).
    """

    def at(a: float = 0.0, b: float = 0.0, c: float = 0.0) -> float:
        t1, t2 = row.t1_ms * (1 + a), row.t2_ms * (1 + 0.6 * a + 0.8 * b)
        pd, adc = row.pd * (1 + 0.3 * a + 0.3 * c), row.adc * (1 + 0.6 * b + 0.8 * c)
        return float(mr_signal(protocol, t1, t2, pd, adc, row.uptake_mm * (1 + 2 * b), row.flow, row.fat))

    h = 0.05
    return at(), ((at(a=h) - at(a=-h)) / (2 * h), (at(b=h) - at(b=-h)) / (2 * h), (at(c=h) - at(c=-h)) / (2 * h))


def coil_shading(rng: np.random.Generator, body: Body, strength: float = 0.10) -> np.ndarray:
    """Smooth positive factor (x, y, z), mean about 1: what coils and the radio field do over some 15 cm."""
    spacing = float(body.grid.spacing_mm[0])
    return np.exp(strength * smooth_field(rng, body.grid.shape, spacing, 180)).astype(np.float32)


def voxel_blur(image: np.ndarray, spacing_mm: float, psf_mm: float, slice_mm: float | None) -> np.ndarray:
    """Blur to the acquired voxel: isotropic `psf_mm`, and `slice_mm` along z where slices are thicker."""
    out = image
    if psf_mm > spacing_mm:
        out = gaussian_filter(out, np.sqrt(psf_mm**2 - spacing_mm**2) / FWHM / spacing_mm, truncate=3)
    if slice_mm and slice_mm > spacing_mm:
        out = gaussian_filter1d(out, np.sqrt(slice_mm**2 - spacing_mm**2) / FWHM / spacing_mm, axis=2, truncate=3)
    return out


def rician(rng: np.random.Generator, image: np.ndarray, sigma: float) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise of deviation `sigma` in each channel."""
    real = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32))


def scan(
    rng: np.random.Generator,
    body: Body,
    tissues: dict[str, Tissue],
    protocol: Protocol,
    shading: np.ndarray | float,
    slice_mm: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One MR or CT image as stored, and the same without noise; (x, y, z) float32 each.

    MR is in scanner units (a random gain, mean of the brain at 300 to 700), CT in HU.
    """
    spacing = float(body.grid.spacing_mm[0])
    clean = ideal_image(body, tissues, protocol)
    if protocol.sequence == "ct":
        clean = voxel_blur(clean, spacing, protocol.psf_mm, slice_mm)
        noise = gaussian_filter(rng.standard_normal(clean.shape, dtype=np.float32), 0.6, truncate=3)
        noisy = clean + np.float32(protocol.noise) * noise / noise.std()
        return np.clip(noisy, AIR_HU - 24, 3071), clean
    clean = voxel_blur(clean * shading, spacing, protocol.psf_mm, slice_mm)
    clean *= np.float32(rng.uniform(300, 700) / clean[body.brain].mean())
    return rician(rng, clean, protocol.noise * float(clean[body.brain].mean())), clean


def scan_adc(
    rng: np.random.Generator, body: Body, tissues: dict[str, Tissue], protocol: Protocol, slice_mm: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """ADC map in 1e-6 mm^2/s from a b = 0 and a weighted image (shading cancels), and the same without noise.

    Where the b = 0 signal is too weak (bone, air) no ADC is given: 0, at the same voxels in both.
    """
    spacing = float(body.grid.spacing_mm[0])
    clean = [
        voxel_blur(ideal_image(body, tissues, p), spacing, protocol.psf_mm, slice_mm)
        for p in (replace(protocol, b=0.0), protocol)
    ]
    level = float(clean[0][body.brain].mean())
    valid = clean[0] > 0.25 * level
    noisy = [rician(rng, image, protocol.noise * level) for image in clean]
    made = [np.where(valid, apparent_diffusion(s0, sb, protocol.b), 0).astype(np.float32) for s0, sb in (noisy, clean)]
    return made[0], made[1]
