"""V: images on one side, the texts of modalities on the other, brought into one space where a cosine compares them."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS, SPACE = (24, 48, 64), 48
_STRIDE = 8
_LEAST_SPREAD = 1e-3
_MOST_SCALE = 50.0


class Block(nn.Module):
    """Two convolutions beside the way round them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*_conv(width, width), *_conv(width, width)[:2])

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w), the same."""
        return functional.relu(x + self.convs(x))


def _conv(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


class IdentityNet(nn.Module):
    """One V with its projection of k texts.

    A stem of stride 2 that keeps every pixel, and a maximum over the image, let it see small vessels. Brightness
    and contrast of a whole image do not reach it: each has mean 0 and spread 1 there, where it is above 0.
    """

    texts: Tensor

    def __init__(self, texts: Tensor | np.ndarray) -> None:
        """texts: (k, d), as of `TextTable.apart`."""
        super().__init__()
        a, b, c = WIDTHS
        self.image = nn.Sequential(
            nn.PixelUnshuffle(2), *_conv(8, a), *_conv(a, b, stride=2), Block(b), *_conv(b, c, stride=2), Block(c)
        )
        self.project = nn.Linear(2 * c, SPACE)
        self.register_buffer("texts", torch.as_tensor(texts, dtype=torch.float32).clone())
        self.text = nn.Linear(self.texts.shape[1], SPACE, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, images: Tensor) -> Tensor:
        """images (n, h, w) in [0, 1], 0 outside the patient -> (n, k) scaled cosines with the texts."""
        return self.compare(self.see(images))

    def see(self, images: Tensor) -> Tensor:
        """images (n, h, w) -> (n, SPACE), of length 1."""
        h, w = images.shape[1:]
        images = functional.pad(images, (0, -w % _STRIDE, 0, -h % _STRIDE))
        inside = (images > 0).to(images.dtype)
        area = inside.sum(dim=(1, 2), keepdim=True).clamp_min(1.0)
        mean = (images * inside).sum(dim=(1, 2), keepdim=True) / area
        spread = ((images - mean).square() * inside).sum(dim=(1, 2), keepdim=True) / area
        level = (images - mean) * inside / spread.clamp_min(_LEAST_SPREAD**2).sqrt()
        features = self.image(torch.stack([level, inside], dim=1)).float()
        seen = functional.adaptive_avg_pool2d(inside[:, None], features.shape[-2:])
        mean = (features * seen).sum(dim=(2, 3)) / seen.sum(dim=(2, 3)).clamp_min(1.0)
        return functional.normalize(self.project(torch.cat([mean, features.amax(dim=(2, 3))], dim=1)), dim=1)

    def compare(self, seen: Tensor) -> Tensor:
        """(n, SPACE) -> (n, k)."""
        return self.log_scale.exp().clamp_max(_MOST_SCALE) * seen @ self.named().T

    def named(self) -> Tensor:
        """(k, SPACE) what the texts are projected to; of length 1."""
        return functional.normalize(self.text(self.texts), dim=1)


def naming_error(net: Callable[[Tensor], Tensor], images: Tensor, there: Tensor) -> Tensor:
    """InfoNCE, both ways: each image finds its text among all, and each text its image among those of the same slice.

    Args:
        images: (b, k, h, w), image j of a slice being what text j describes.
        there: (b, k) bool.
    """
    label = there.nonzero()[:, 1]
    found = net(images[there]).float()
    table = found.new_full((*there.shape, there.shape[1]), -1e4)  # [b, i, j]: how well image i fits text j
    table[there] = found[:, : there.shape[1]]
    by_text = table.transpose(1, 2)[there]  # (n, k) over the images of one slice
    return functional.cross_entropy(found, label) + functional.cross_entropy(by_text, label)
