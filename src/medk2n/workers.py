"""Work in several processes, which end with the one that started them, however that ends."""

import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from medk2n.errors import SystemLimitError

Task, Outcome = TypeVar("Task"), TypeVar("Outcome")

_STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_programs: set[subprocess.Popen[str]] = set()
_starting = threading.Lock()


def each(
    work: Callable[[Task], Outcome],
    tasks: Sequence[Task],
    processes: int,
    *,
    start: str = "spawn",
    prepare: Callable[[], object] | None = None,
) -> Iterator[tuple[Task, Outcome]]:
    """Each task with what became of it, as they are done; one process works in this one.

    Args:
        start: "spawn", or "fork" where workers should share what is in memory already.
        prepare: called once in each worker.

    Raises:
        SystemLimitError: a worker was killed.
    """
    if processes <= 1:
        for task in tasks:
            yield task, work(task)
        return
    context = multiprocessing.get_context(start)
    heard, told = context.Pipe(duplex=False)
    with _stops_held():
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(heard, prepare))
    with pool:
        with _stops_held():  # a worker begins as deaf to them as it stays: they are for the process that started it
            waiting = {pool.submit(work, task): task for task in tasks}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as error:
            raise SystemLimitError(
                "a process was killed, most likely for want of memory; what is done stays: repeat with fewer processes"
            ) from error
        finally:
            if any(not future.done() for future in waiting):
                told.send_bytes(b"end")
                pool.shutdown(cancel_futures=True)
            told.close()


def run_program(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program of the user's to its end; it is killed if this process ends before. No shell reads the words.

    Raises:
        OSError: it cannot be started.
    """
    with _starting:
        program = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        _programs.add(program)
    with program:
        try:
            out, err = program.communicate()
        except BaseException:
            program.kill()
            raise
        finally:
            _programs.discard(program)
    return subprocess.CompletedProcess(list(words), program.returncode, out, err)


@contextmanager
def _stops_held() -> Iterator[None]:
    """What asks a program to stop waits until this is over, in this thread and for good in what it starts."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(heard: Connection, prepare: Callable[[], object] | None) -> None:
    """In a worker: leave Ctrl-C, which reaches all processes of a terminal, to the process that started it."""
    ends: list[Any] = [heard]
    if hasattr(signal, "pthread_sigmask"):
        asked, ask = os.pipe()
        ends.append(asked)
        for number in _STOPS:  # handlers: what is ignored would be by programs it starts, too
            signal.signal(number, _nothing)
        signal.signal(signal.SIGTERM, lambda *_: os.write(ask, b"end"))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    threading.Thread(target=_end_in_time, args=(ends,), daemon=True).start()
    if prepare:
        prepare()


def _nothing(*_: Any) -> None:
    pass


def _end_in_time(ends: list[Any]) -> None:
    """End this worker, and a program that it runs, when it is asked to or the process that started it is dead."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, *ends])
        with _starting:  # none is begun and not yet known
            for program in list(_programs):
                program.kill()
            os._exit(1)


def cores() -> int:
    """Those that the scheduler gives this process, where it says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
