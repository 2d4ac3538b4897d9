"""Modality as frame: one encoder turns every 2.5-D frame into a pyramid.

This is what an encoder promises. Encoders live one a file in `encoders`, and a configuration names one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

STRIDES = (2, 4, 8, 16)
CONTEXT_STRIDES = (4, 8, 16)


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """How an encoder is built: `build(params, m, slices, channels, embedding)` for m modalities.

    `channels` are those wanted at every stride. The module says at which `strides` its pyramid has levels: 4, 8 and 16,
    and perhaps 32, which is rounded up to whole voxels. It takes frames (f, s, h, w) with h and w multiples of 16,
    modality (f,) and embeddings (f, embedding), and gives every level normalised, so that no frame drowns another.
    """

    name: str
    params: type
    build: Callable[[Any, int, int, dict[int, int], int], nn.Module]
