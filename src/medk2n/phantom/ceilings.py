"""The best attainable PSNR: what noise, and not knowing the protocol, leave to a perfect predictor."""

import numpy as np

from medk2n.phantom.acquire import ideal_image
from medk2n.phantom.body import Body
from medk2n.phantom.signal import FIXED, random_protocol
from medk2n.phantom.tissues import Tissue

FIELDS = ("subject", "modality", "region", "noise_psnr_db", "unknown_protocol_psnr_db")
_TRIALS = 8  # random protocols whose mean stands for "the protocol is not known"


def scaled_psnr(reference: np.ndarray, prediction: np.ndarray, *, rescale_both: bool = False) -> float:
    """PSNR in dB of values (n,) scaled to 0..1 by the reference's 0.5 and 99.5 percentiles and clipped.

    With `rescale_both` the prediction is scaled by its own percentiles (images in other units).
    """
    low, high = np.percentile(reference, (0.5, 99.5))
    own = np.percentile(prediction, (0.5, 99.5)) if rescale_both else (low, high)
    a = np.clip((reference - low) / max(high - low, 1e-9), 0, 1)
    b = np.clip((prediction - own[0]) / max(own[1] - own[0], 1e-9), 0, 1)
    return float(-10 * np.log10(max(float(np.mean((a - b) ** 2)), 1e-12)))


def noise_ceiling(noisy: np.ndarray, clean: np.ndarray, body: Body) -> list[dict[str, object]]:
    """Two rows (brain, head): the stored image against the noise-free one."""
    regions = {"brain": body.brain, "head": body.head}
    return [
        {"region": name, "noise_psnr_db": round(scaled_psnr(noisy[mask], clean[mask]), 2)}
        for name, mask in regions.items()
    ]


def unknown_protocol_ceiling(
    rng: np.random.Generator, sample: Body, tissues: dict[str, Tissue], modality: str
) -> tuple[float, float]:
    """PSNR (brain, head) of the mean over random protocols against the fixed one, both noise-free.

    Each image is scaled to 0..1 by its own percentiles first. `sample` may be `body.thinned()`: 27 times cheaper.
    """
    protocols = [FIXED[modality], *(random_protocol(rng, modality) for _ in range(_TRIALS))]
    signals = np.stack([ideal_image(sample, tissues, protocol) for protocol in protocols]).reshape(len(protocols), -1)
    values = []
    for mask in (sample.brain, sample.head):
        wanted, *trials = (_unit(row[mask.ravel()]) for row in signals)
        values.append(round(scaled_psnr(wanted, np.mean(trials, axis=0)), 2))
    return values[0], values[1]


def with_noise(psnr_db: float, noise_psnr_db: float) -> float:
    """What is left of a noise-free ceiling when the reference is noisy: independent errors add."""
    return round(-10 * float(np.log10(10 ** (-psnr_db / 10) + 10 ** (-noise_psnr_db / 10))), 2)


def _unit(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, (0.5, 99.5))
    return np.clip((image - low) / max(high - low, 1e-9), 0, 1)
