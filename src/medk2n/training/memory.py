"""How much memory a run takes: counted on one small crop, scaled to the batch that is planned.

Convolutions keep what they need for the way back in proportion to the pixels, so one crop tells about all. What a step
takes beyond that was measured with `recipes/plan_memory.py` on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medk2n.config.params import read_params
from medk2n.config.schema import BatchShape, LossWeights, ModelChoice
from medk2n.data.batches import Batch
from medk2n.models._spec import Statistics
from medk2n.registry import resolve
from medk2n.training.machine import Machine
from medk2n.training.objectives import objective
from medk2n.training.queries import as_query, draw_targets, every_target

PROGRAM = 400 * 2**20
"""Bytes of Python, torch and the kernels that it compiles, on the CPU."""
GPU_SHARE = 0.7
"""Of the device's free memory: its allocator leaves gaps, and others may want some."""
_COPIES = 5  # weights, gradients, averaged weights, two moments
_BEYOND_SAVED = 1.5  # gradients on the way back, and buffers, for each byte that was kept for it
_KEPT = 1.3  # bytes a voxel of the training images: one, and what goes with it
_READ = 5.3  # while they are read: as float32 too
_CROP = 48


@dataclass(frozen=True)
class Cost:
    """Of one model with its adversary: weights, and bytes kept for the way back for each pixel of each crop."""

    parameters: int
    bytes_a_pixel: float


def cost(choice: ModelChoice, m: int, batch: BatchShape, losses: LossWeights) -> Cost:
    """Run one crop with all of `m` modalities forwards through a fresh model and count what is kept."""
    spec = resolve("models", choice.name)
    params = read_params(spec.params, choice.params, f"models.{choice.name}.params")
    rng = np.random.default_rng(0)
    acquired = np.ones((1, m), bool)
    samples = np.zeros(batch.draws, int)
    subsets = np.zeros((batch.draws, m), bool)
    subsets[:, : max(1, min(batch.most_sources, m - 1))] = True
    if spec.every_target:
        asked = every_target(acquired[samples], samples, subsets)
    else:
        asked = draw_targets(acquired[samples], samples, subsets, rng, targets=batch.targets)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]):
        module = spec.build(params, m, Statistics.neutral(m)).to(memory_format=torch.channels_last)
        adversary = spec.adversary(params, m) if spec.adversary else None
        image = torch.rand(1, m, params.slices, _CROP, _CROP)
        query = as_query(*asked)
        there, inside = torch.from_numpy(acquired), image[:, 0, 0] >= 0
        whole = Batch(image, there, image[:, :, 0], inside, torch.zeros(1, m), torch.full((1, m), -1))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            prediction = module(image, query, generator=torch.Generator().manual_seed(0))
            own = {"paper": spec.objective, "adversary": adversary}
            objective(prediction, whole, query, losses, **own)
    learned = [*module.parameters(), *(adversary.parameters() if adversary else ())]
    weights = {p.untyped_storage().data_ptr() for p in learned}
    held = sum(size for address, size in kept.items() if address not in weights)
    return Cost(sum(p.numel() for p in learned), held / _CROP**2)


@dataclass(frozen=True)
class Need:
    """Bytes that a run takes.

    Attributes:
        step: of the models while they learn, where they are.
        data: of the training images, in main memory.
        reading: of the same while they are read.
    """

    step: int
    data: int
    reading: int

    @classmethod
    def of(cls, costs: Sequence[Cost], size: int, crop: int, voxels: int) -> "Need":
        """Of models that take turns, each with a batch of `size` crops, and data of so many voxels in all."""
        weights = 4 * _COPIES * sum(each.parameters for each in costs)
        passed = _BEYOND_SAVED * max(each.bytes_a_pixel for each in costs) * size * crop**2
        return cls(round(weights + passed), round(_KEPT * voxels), round(_READ * voxels))

    def main(self, machine: Machine) -> int:
        """Main memory at the most: the data are read before the models learn."""
        return PROGRAM + max(self.reading, self.data + (self.step if machine.is_cpu else 0))

    def fits(self, machine: Machine) -> bool:
        """Whether the models' part has room, where the machine tells what it has.

        On a CPU it shares with the data; data that leave nothing are not helped by smaller models, so that they do not
        count then.
        """
        if machine.is_cpu:
            left = None if machine.memory is None else machine.memory - PROGRAM
            return left is None or self.step <= (left - self.data if left > self.data else left)
        return machine.device_memory is None or self.step <= GPU_SHARE * machine.device_memory
