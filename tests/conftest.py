"""A model with random weights, for every test that needs one which answers."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# how busy the machine is says nothing of what is tested
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--expected-skips", type=Path, help="a file of patterns: what else skips fails the run")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was skipped and is not expected to be: a test that never runs again would not be missed."""
    if config.getoption("--expected-skips") is None:
        return
    lines = config.getoption("--expected-skips").read_text(encoding="utf-8").splitlines()
    expected = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    skipped = [report.nodeid for report in terminalreporter.stats.get("skipped", [])]
    if odd := [name for name in skipped if not any(fnmatchcase(name, pattern) for pattern in expected)]:
        terminalreporter.section("skipped, and not expected to be", red=True)
        for name in odd:
            terminalreporter.line(name)
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


MODALITIES = ("ct", "t1c", "t1n", "t2f", "t2w")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    import torch

    from medk2n import checkpoint
    from medk2n.models._spec import Statistics
    from medk2n.registry import resolve

    folder = tmp_path_factory.mktemp("model")
    spec = resolve("models", "medk2n")
    params = spec.params(widths=(8, 8, 8, 8, 16), embedding=8)
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


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Every load of weights from now on."""
    from medk2n.inference import synthesizer

    seen, load = [], synthesizer.load_predictor
    monkeypatch.setattr(
        synthesizer,
        "load_predictor",
        lambda folder, device, **how: seen.append(str(folder)) or load(folder, device, **how),
    )
    return seen


_PATIENCE_S = 120
_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")


@pytest.fixture(scope="session")
def run_killed() -> Callable[[Callable[[], object], int, Path], int]:
    """Runs `work` in a child that is killed before its nth write below a folder: its writes, or 0 if it was killed."""
    return _run_killed


def _run_killed(work: Callable[[], object], at: int, below: Path) -> int:
    ours, theirs = os.pipe()
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
            import torch

            if hasattr(os, "sched_setaffinity"):  # torch's other threads stayed behind: on one core it asks for none
                os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            torch.set_num_threads(1)
            signal.alarm(_PATIENCE_S)  # a child that hangs is a test that fails
            sys.addaudithook(hook)
            failed = bool(work())
            os.write(theirs, str(count).encode())
            os._exit(failed)
        except BaseException:
            os._exit(1)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        writes = int(pipe.read() or 0)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "it failed"
    return writes
