"""From a body to its scans: signal of every tissue, partial volume, texture, shading, blur and noise."""

import numpy as np
from scipy import ndimage

from medk2n.phantom.body import Body
from medk2n.phantom.fields import smooth_field
from medk2n.phantom.signal import Protocol, apparent_diffusion, mr_signal
from medk2n.phantom.tissues import Tissue

_FWHM_TO_SIGMA = 1.0 / (2.0 * np.sqrt(2.0 * np.log(2.0)))
_BRAIN_SIGNAL = 1000.0  # scanners have no unit; the mean brain is stored as about this
AIR_HU = -1000.0


def coil_shading(rng: np.random.Generator, body: Body, strength: float = 0.12) -> np.ndarray:
    """Smooth multiplicative field (x, y, z) around 1: receive coils see the near side brighter."""
    field = smooth_field(rng, body.grid.shape, float(body.grid.spacing_mm[0]), 110)
    return np.exp(rng.uniform(0.3, 1.0) * strength * np.clip(field, -2.5, 2.5)).astype(np.float32)


def ideal_image(body: Body, tissues: dict[str, Tissue], protocol: Protocol) -> np.ndarray:
    """Noise-free, unshaded image (x, y, z): shares of tissue times their signal; HU for CT.

    Texture varies T1, T2 and PD (or HU) of a tissue smoothly; its effect enters to first order.
    """
    if protocol.sequence == "ct":
        return _ct(body, tissues)
    image = np.zeros(int(np.prod(body.grid.shape)), np.float32)
    texture = body.texture.reshape(3, -1)
    for name, (index, share) in body.fractions.items():
        tissue = tissues[name]
        pure, slopes = _signal_and_slopes(protocol, tissue)
        varied = np.full(len(index), pure, np.float32)
        for field, slope in zip(texture, slopes, strict=True):
            varied += np.float32(slope * tissue.texture) * field[index]
        image[index] += share * np.maximum(varied, 0)
    return image.reshape(body.grid.shape)


def scan(
    rng: np.random.Generator,
    body: Body,
    tissues: dict[str, Tissue],
    protocol: Protocol,
    shading: np.ndarray | float,
    slice_mm: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One acquired image and the same without noise; MR in arbitrary units, CT in HU.

    Shading and blur are in both, so the difference is noise alone.
    """
    ideal = ideal_image(body, tissues, protocol)
    if protocol.sequence == "ct":
        clean = _blurred(ideal, body, protocol.psf_mm, slice_mm)
        return clean + rng.normal(0, protocol.noise, clean.shape).astype(np.float32), clean
    clean = _blurred(ideal * shading, body, protocol.psf_mm, slice_mm)
    clean *= _BRAIN_SIGNAL / float(clean[body.brain].mean())
    return _rician(rng, clean, protocol.noise * _BRAIN_SIGNAL), clean


def scan_adc(
    rng: np.random.Generator,
    body: Body,
    tissues: dict[str, Tissue],
    protocol: Protocol,
    slice_mm: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """ADC map in 1e-6 mm^2/s, fitted to noisy and to noise-free images at b = 0 and at the protocol's b; 0 in air."""
    plain = Protocol("se", protocol.tr_ms, protocol.te_ms, psf_mm=protocol.psf_mm)
    pair = [_blurred(ideal_image(body, tissues, p), body, protocol.psf_mm, slice_mm) for p in (plain, protocol)]
    sigma = protocol.noise * float(pair[1][body.brain].mean())
    noisy = apparent_diffusion(*(_rician(rng, image, sigma) for image in pair), protocol.b)
    clean = apparent_diffusion(*pair, protocol.b)
    # where there is no signal to fit, scanners write 0
    some = pair[1] > 4 * sigma
    return np.where(some, noisy, 0).astype(np.float32), np.where(some, clean, 0).astype(np.float32)


def _ct(body: Body, tissues: dict[str, Tissue]) -> np.ndarray:
    image = np.full(int(np.prod(body.grid.shape)), AIR_HU, np.float32)
    texture = body.texture.reshape(3, -1)[2]
    for name, (index, share) in body.fractions.items():
        tissue = tissues[name]
        varied = tissue.hu - AIR_HU + np.float32(0.1 * tissue.texture * max(abs(tissue.hu), 30)) * texture[index]
        image[index] += share * varied
    return image.reshape(body.grid.shape)


def _signal_and_slopes(protocol: Protocol, tissue: Tissue) -> tuple[float, tuple[float, float, float]]:
    """Signal, and its derivatives with respect to relative changes of T1, T2 and PD (ADC moves with PD)."""

    def at(t1: float = 1.0, t2: float = 1.0, pd: float = 1.0) -> float:
        return float(
            mr_signal(
                protocol,
                tissue.t1_ms * t1,
                tissue.t2_ms * t2,
                tissue.pd * pd,
                tissue.adc * pd,
                tissue.uptake_mm,
                tissue.flow,
            )
        )

    step = 0.05
    slopes = (at(t1=1 + step) - at(t1=1 - step), at(t2=1 + step) - at(t2=1 - step), at(pd=1 + step) - at(pd=1 - step))
    first, second, third = (slope / (2 * step) for slope in slopes)
    return at(), (first, second, third / 3)  # water content varies a third as much as the times


def _blurred(image: np.ndarray, body: Body, psf_mm: float, slice_mm: float | None) -> np.ndarray:
    """Blur to the acquired voxel where it is coarser than the grid; along z to the slice thickness."""
    widths = [psf_mm, psf_mm, max(psf_mm, slice_mm or 0.0)]
    sigmas = [
        _FWHM_TO_SIGMA * np.sqrt(max(width**2 - step**2, 0.0)) / step
        for width, step in zip(widths, body.grid.spacing_mm, strict=True)
    ]
    if max(sigmas) < 0.1:
        return image.copy()
    return ndimage.gaussian_filter(image, sigmas, mode="nearest", truncate=3.0)


def _rician(rng: np.random.Generator, clean: np.ndarray, sigma: float) -> np.ndarray:
    """Magnitude of a signal with Gaussian noise in both channels."""
    real = clean + np.float32(sigma) * rng.standard_normal(clean.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(clean.shape, dtype=np.float32)
    return np.hypot(real, imaginary)
