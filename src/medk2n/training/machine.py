"""What a machine has to train with: cores, memory, and a device with memory of its own."""

import os
from dataclasses import dataclass
from pathlib import Path

from medk2n.workers import cores

_MEMINFO = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What can be used now, in bytes; None where the system does not tell.

    Attributes:
        device: as torch calls it.
        name: of the device, for people.
        cores: that this process may use.
        memory: free main memory.
        device_memory: free memory of the device; None for the CPU.
    """

    device: str
    name: str
    cores: int
    memory: int | None
    device_memory: int | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether the main processor does the work."""
        return self.device == "cpu"

    @property
    def kind(self) -> str:
        """ "CPU" or "GPU"."""
        return "CPU" if self.is_cpu else "GPU"


def look_at_machine(device: str) -> Machine:
    """This machine, for work on a torch device that is there."""
    memory = _free_memory()
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return Machine(device, torch.cuda.get_device_name(device), cores(), memory, free)
    if device == "mps":
        import torch

        return Machine(device, "Apple GPU", cores(), memory, torch.mps.recommended_max_memory())
    return Machine(device, "CPU", cores(), memory)


def _free_memory() -> int | None:
    """Linux: what can be had without swapping, within the bounds of a container; elsewhere half of what is built in."""
    if _MEMINFO.is_file():
        rows = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
        return min([int(rows["MemAvailable"].split()[0]) * 1024, *_left_in_container()])
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return None


def _left_in_container() -> list[int]:
    """What a control group (version 2) still allows, if it sets a bound."""
    try:
        most, used = ((_CONTAINER / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return []
    return [max(0, int(most) - int(used))] if most.isdigit() else []
