"""Damage to inputs while training, so that fusion learns what to leave out; targets are never damaged.

Each kind takes one input (s, h, w) in [0, 1] and a severity in (0, 1]: a strength, or how much of something else is
blended in. At 1 nothing of use is left but for motion, bias, what is misplaced and what is lost in part.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FARTHEST_PX = 24
"""How far off a misplaced input may be."""
GHOST_PX, GHOST_LINES = 12, 8
"""How far the patient may move, and how many lines of k-space are read between two moves."""


def _noise(rng: np.random.Generator, image: Tensor, severity: float) -> Tensor:
    """Blended with white noise."""
    white = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    return torch.lerp(image, (0.5 + 0.2 * white).clamp(0, 1), severity)


def _blank(rng: np.random.Generator, image: Tensor, severity: float) -> Tensor:
    """Blended with one grey level: an image that faded."""
    return torch.lerp(image, torch.full_like(image, float(rng.uniform(0.1, 0.9))), severity)


def _motion(rng: np.random.Generator, image: Tensor, severity: float) -> Tensor:
    """Moved along the first axis while some lines of k-space were read: ghosts and blur."""
    lines = image.shape[1]
    moved = rng.uniform(-1, 1, max(2, lines // GHOST_LINES)).repeat(GHOST_LINES)[:lines]
    shift = np.zeros(lines)
    shift[: len(moved)] = moved * severity * GHOST_PX
    phase = torch.from_numpy(np.exp(-2j * np.pi * np.fft.fftfreq(lines) * shift).astype(np.complex64))
    return torch.fft.ifft(torch.fft.fft(image, dim=1) * phase[:, None], dim=1).abs().clamp(0, 1)


def _bias(rng: np.random.Generator, image: Tensor, severity: float) -> Tensor:
    """Brighter here than there by up to a factor of about 10."""
    coarse = torch.from_numpy(rng.uniform(-1.2, 1.2, (1, 1, 3, 3)).astype(np.float32))
    field = functional.interpolate(coarse, size=image.shape[1:], mode="bicubic", align_corners=True)[0]
    return (image * (severity * field).exp()).clamp(0, 1)


def _misplaced(rng: np.random.Generator, image: Tensor, severity: float) -> Tensor:
    """Shifted within the plane: registered wrongly."""
    angle, far = rng.uniform(0, 2 * np.pi), severity * FARTHEST_PX
    shift = round(far * np.cos(angle)), round(far * np.sin(angle))
    return torch.roll(image, shift, dims=(1, 2))


def _partly(rng: np.random.Generator, image: Tensor, severity: float) -> Tensor:
    """A region with a soft edge, up to half of what shows the patient, lost to no signal or to noise.

    As beside metal, or beyond a field of view that ended early; alike in all slices.
    """
    coarse = torch.from_numpy(rng.standard_normal((1, 1, 4, 4)).astype(np.float32))
    field = functional.interpolate(coarse, size=image.shape[1:], mode="bicubic", align_corners=True)[0, 0]
    shown = field[image.amax(dim=0) > 0]
    edge = torch.quantile(shown if len(shown) else field.flatten(), 1 - severity / 2)
    white = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    instead = (0.5 + 0.2 * white).clamp(0, 1) if rng.random() < 0.5 else torch.zeros_like(image)
    return torch.lerp(image, instead, (8 * (field - edge)).clamp(0, 1))


Kind = Callable[[np.random.Generator, Tensor, float], Tensor]
KINDS: dict[str, Kind] = {
    "noise": _noise,
    "blank": _blank,
    "motion": _motion,
    "bias": _bias,
    "misplaced": _misplaced,
    "partly": _partly,
}
MIXED = "mislabelled", "elsewhere"
"""Blends with another modality of the crop, and with the same modality of another crop: wrong name, wrong slice."""


def corrupt(images: Tensor, acquired: Tensor, rng: np.random.Generator, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Damage a share of the inputs, each in one way, with a severity drawn evenly from 0 to 1.

    Args:
        images: (b, m, s, h, w) in [0, 1].
        acquired: (b, m) bool.
        rng: the only source of chance.
        share: chance of each input.

    Returns:
        The images; the severity (b, m) of each, 0 where it is whole; and (b, m) int64 which modality of the same crop
        was blended into each, -1 for none: nobody may be asked for that one from it.
    """
    severity, mixed = torch.zeros(acquired.shape), torch.full(acquired.shape, -1)
    out = images.clone()
    for b, m in acquired.nonzero().tolist():
        if rng.random() >= share:
            continue
        strength = float(rng.uniform())
        kind = (*KINDS, *MIXED)[rng.integers(len(KINDS) + len(MIXED))]
        if kind in KINDS:
            out[b, m] = KINDS[kind](rng, images[b, m], strength)
        else:
            others = [(b, i) for i in range(acquired.shape[1]) if i != m] if kind == "mislabelled" else [
                (k, m) for k in range(len(acquired)) if k != b
            ]  # fmt: skip
            there = [at for at in others if acquired[at]]
            if not there:
                continue
            at = there[rng.integers(len(there))]
            out[b, m] = torch.lerp(images[b, m], images[at], strength)
            mixed[b, m] = at[1] if at[0] == b else -1
        severity[b, m] = strength
    return out, severity, mixed
