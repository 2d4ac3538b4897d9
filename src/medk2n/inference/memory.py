"""How much memory a process takes at its peak; loads no torch."""

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from medk2n.errors import SystemLimitError


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, but bytes on macOS
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)


def peaks_alone(work: Callable[..., object], tasks: Iterable[tuple[Any, ...]]) -> Iterator[float | None]:
    """Peak memory of a process that does work(*task) and nothing else, one process a task.

    They are forked from one that has loaded the module of `work` and done nothing: forked from this one, or started by
    it, they would begin with this one's peak. None for each task where the system does not tell, or cannot fork.

    Raises:
        SystemLimitError: a process was ended from outside, as systems do that run out of memory.
    """
    if peak_memory_mb() is None or "forkserver" not in multiprocessing.get_all_start_methods():
        yield from (None for _ in tasks)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for task in tasks:
            try:
                yield pool.submit(_peak_after, work, task).result()
            except BrokenProcessPool as error:
                raise SystemLimitError(
                    "a process whose memory was measured ended early; is memory short? Free some, or measure a smaller "
                    "model"
                ) from error


def _peak_after(work: Callable[..., object], task: tuple[Any, ...]) -> float | None:
    work(*task)
    return peak_memory_mb()
