"""Where a run computes: one process, or several that share the work of every step (Lightning Fabric under torchrun).

A step is made of `batch.accumulate` parts, shared out over the processes. Each part's loss stands for itself and the
step's is their mean, so a run does not depend on how many processes there are.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medk2n.errors import ConfigError, UsageError

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


class World:
    """This process among those of a run.

    Args:
        device: "cpu", "cuda", "cuda:N" or "mps"; under torchrun every process takes one of its own.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 on CUDA, fp32 elsewhere.

    Raises:
        UsageError: one numbered device for several processes.
    """

    def __init__(self, device: str = "cpu", precision: str = "auto") -> None:
        kind, _, index = device.partition(":")
        several, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if several > 1 and index:
            raise UsageError(f"--device {device} with {several} processes; give --device {kind}: each takes its own")
        self.precision = ("bf16" if kind == "cuda" else "fp32") if precision == "auto" else precision
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        self._fabric = Fabric(
            accelerator=kind,
            devices=[int(index or 0)] if kind == "cuda" and several == 1 else local,
            num_nodes=several // local,
            strategy="ddp" if several > 1 else "auto",
            precision=_PRECISIONS[self.precision],
        )
        self._fabric.launch()
        self.device, self.rank, self.size = self._fabric.device, self._fabric.global_rank, self._fabric.world_size

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, parts: int) -> range:
        """Those of a step's parts that are this process's.

        Raises:
            ConfigError: they cannot be shared out evenly.
        """
        if parts % self.size:
            raise ConfigError(
                f"batch.accumulate is {parts}: so many parts of a step cannot be shared by {self.size} processes; "
                f"expected a multiple: --set batch.accumulate={-(-parts // self.size) * self.size}"
            )
        return range(self.rank, parts, self.size)

    def autocast(self) -> AbstractContextManager[None]:
        """Forward passes in the run's precision."""
        return self._fabric.autocast()

    def wait(self) -> None:
        """Until all processes are here."""
        self._fabric.barrier()

    def told(self, text: str) -> str:
        """The first process's text, for all, once it is here."""
        found: str = self._fabric.broadcast(text)
        return found

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return tensor if self.size == 1 else self._fabric.all_reduce(tensor.to(self.device), reduce_op="sum")

    def summed_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums of what every process has under the same names."""
        values = torch.tensor(list(numbers.values()), dtype=torch.float64 if self.device.type != "mps" else None)
        return dict(zip(numbers, self.summed(values).tolist(), strict=True))

    def agreed(self, value: float) -> float:
        """The first process's value, for all: clocks differ."""
        return self.summed_numbers({"": value if self.leads else 0.0})[""]

    def any(self, flag: bool) -> bool:
        """Whether it is so in some process."""
        return self.summed_numbers({"": float(flag)})[""] > 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over all processes; one that no process has stays None."""
        if self.size == 1:
            return
        all_of_them = list(parameters)
        having = self.summed(torch.tensor([float(p.grad is not None) for p in all_of_them])).tolist()
        used = [p for p, n in zip(all_of_them, having, strict=True) if n]
        for p in used:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        together = self.summed(torch.cat([p.grad.flatten() for p in used]))
        for p, gradient in zip(used, together.split([p.numel() for p in used]), strict=True):
            p.grad.copy_(gradient.view_as(p))
