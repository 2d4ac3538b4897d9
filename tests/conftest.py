"""A model with random weights, for every test that needs one which answers."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

MODALITIES = ("ct", "t1c", "t1n", "t2f", "t2w")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    import torch

    from medk2n import checkpoint
    from medk2n.models._spec import Statistics
    from medk2n.registry import resolve

    folder = tmp_path_factory.mktemp("model")
    spec = resolve("models", "medk2n")
    params = spec.params(widths=(8, 8, 8, 8, 16), embedding=8, memory_slots=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = spec.build(params, len(MODALITIES), Statistics.neutral(len(MODALITIES)))
    statistics = checkpoint.Statistics(
        affine_maps={target: {source: (1.0, 0.0, 0.05) for source in MODALITIES} for target in MODALITIES},
        variance=dict.fromkeys(MODALITIES, 0.05),
        typical_scaling={name: (0.0, 800.0) for name in MODALITIES} | {"ct": (-1000.0, 2000.0)},
    )
    config = checkpoint.ModelConfig(
        model="medk2n", modalities=MODALITIES, spacing_mm=2.0, params=asdict(params), statistics=statistics
    )
    checkpoint.save(folder, module, config)
    return folder


_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")


@pytest.fixture(scope="session")
def run_killed() -> Callable[[Callable[[], object], int, Path], bool]:
    """Runs `work` in a child that is killed before its nth write below a folder; tells whether it came to its end."""
    return _run_killed


def _run_killed(work: Callable[[], object], at: int, below: Path) -> bool:
    pid = os.fork()
    if pid == 0:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            writes = event in _WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes and str(below) in str(arguments[0]):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            os._exit(1 if work() else 0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "it failed"
    return os.WIFEXITED(status)
