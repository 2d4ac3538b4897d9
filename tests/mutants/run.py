"""Does the suite notice? Every fault of `faults.txt`, one by one, against the tests that are to see it.

    make mutants                                              all, on all cores; minutes
    .venv/bin/python tests/mutants/run.py -k losses/ -j 1     those whose file or words hold it

No file is changed. Pytest collects all the tests once; for each fault its process is split, and there the functions
that the fault changes get the code of the changed text. Where a fault is outside of functions (a constant, a default),
a process of its own compiles the module from the changed text. First all tests run without a fault. Exit code 1 where
less than 95 % are noticed, where a fault lives that the list does not excuse, or where one that it excuses is noticed.
"""

import argparse
import gc
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from faults import LEAST, SOURCE, TESTS, Fault, read

sys.path.insert(0, str(SOURCE.parent))
_CPU_S = 300  # of one process: a fault that never ends is noticed
PASSED, FAILED, UNANSWERED = 0, 1, 3
_SPEAK = os.dup(1)  # what pytest and the tests say is thrown away
Answer = tuple[Fault | None, int, str]


class Changed(MetaPathFinder, SourceFileLoader):
    """Compiles one module from another text than its file's."""

    def __init__(self, fault: Fault) -> None:
        SourceFileLoader.__init__(self, module_of(fault), str(SOURCE / fault.file))
        self.text = fault.text()

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """Only of the one module."""
        spec = PathFinder.find_spec(name, path) if name == self.name else None
        if spec:
            spec.loader = self
        return spec

    def get_code(self, name: str) -> CodeType:
        """Never from a cache."""
        return compile(self.text, self.path, "exec", dont_inherit=True)


def module_of(fault: Fault) -> str:
    return f"medk2n.{fault.file.removesuffix('.py').replace('/', '.')}"


def put_in(fault: Fault) -> None:
    """Put a fault into this process: where its module is loaded, into its functions."""
    sys.meta_path.insert(0, Changed(fault))
    if module_of(fault) not in sys.modules:
        return
    path = str(SOURCE / fault.file)
    live = [f for f in gc.get_objects() if type(f) is FunctionType and f.__code__.co_filename == path]
    for old, new in functions_of(fault) or ():
        for function in live:
            code = function.__code__
            if (code.co_qualname, code.co_firstlineno) == (old.co_qualname, old.co_firstlineno):
                function.__code__ = new


def functions_of(fault: Fault) -> list[tuple[CodeType, CodeType]] | None:
    """Old and new code of the functions that a fault changes; None if it changes more than functions."""
    texts = (SOURCE / fault.file).read_text(encoding="utf-8"), fault.text()
    return changed_functions(*(compile(text, str(SOURCE / fault.file), "exec", dont_inherit=True) for text in texts))


def changed_functions(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """Old and new code of the functions of a module, or of its classes, that differ; None if more than they differ."""
    inner, others = ([c for c in code.co_consts if isinstance(c, CodeType)] for code in (old, new))
    plain, others_plain = ([c for c in code.co_consts if not isinstance(c, CodeType)] for code in (old, new))
    same = (old.co_code, old.co_names, plain) == (new.co_code, new.co_names, others_plain)
    if len(inner) != len(others) or not same:
        return None
    found = []
    for a, b in zip(inner, others, strict=True):
        if a.co_flags & 2:  # with variables of its own: a function, no body of a class
            found += [(a, b)] if _told(a) != _told(b) else []
        elif (below := changed_functions(a, b)) is None:
            return None
        else:
            found += below
    return found


def _told(code: CodeType) -> tuple[object, ...]:
    """What a function does, wherever it stands."""
    inner = tuple(_told(c) if isinstance(c, CodeType) else (type(c), c) for c in code.co_consts)
    return code.co_qualname, code.co_code, code.co_names, code.co_varnames, code.co_freevars, inner


@dataclass(frozen=True)
class Trial:
    """A process at work on a fault, or on none."""

    fault: Fault | None
    pipe: int
    scratch: tempfile.TemporaryDirectory


def split_off(fault: Fault | None, work: Callable[[Fault | None], tuple[int, str]]) -> tuple[int, Trial]:
    """A process that works and tells its answer through a pipe; what it writes goes with it."""
    ours, theirs = os.pipe()
    trial = Trial(fault, ours, tempfile.TemporaryDirectory(prefix="mutants-"))
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, trial
    try:
        if fault:
            resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
        os.environ["PYTEST_DEBUG_TEMPROOT"] = trial.scratch.name
        sys.stdout.flush()
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code, said = work(fault)
    except BaseException as error:
        code, said = UNANSWERED, repr(error)
    os.write(theirs, said.encode()[:4000])
    os._exit(code)


def answers(
    faults: Sequence[Fault | None], work: Callable[[Fault | None], tuple[int, str]], workers: int
) -> Iterator[Answer]:
    """Each as it ends, some at once; one that was stopped for its time is noticed."""
    waiting, running = list(reversed(faults)), {}
    while waiting or running:
        while waiting and len(running) < workers:
            pid, trial = split_off(waiting.pop(), work)
            running[pid] = trial
        pid, status = os.waitpid(-1, 0)
        trial = running.pop(pid)
        with os.fdopen(trial.pipe, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        trial.scratch.cleanup()
        if os.WIFSIGNALED(status):
            timed_out = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
            yield trial.fault, FAILED if timed_out else UNANSWERED, signal.Signals(os.WTERMSIG(status)).name
        else:
            yield trial.fault, os.WEXITSTATUS(status), said


class Trials:
    """A pytest plugin: instead of running what was collected, it runs some of it for each fault."""

    def __init__(self, faults: Sequence[Fault], options: argparse.Namespace, tell: Callable[..., None]) -> None:
        self.faults, self.options, self.tell = faults, options, tell
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of a test that is run in a process that was split off."""
        self.failed += [report.nodeid] if report.failed else []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Split off a process for each fault."""
        items: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            items.setdefault(f"{item.path.relative_to(TESTS)}::{item.originalname}", []).append(item)
        if session.testsfailed:
            self.tell(None, UNANSWERED, "a file of tests cannot be imported")
            return True

        def work(fault: Fault | None) -> tuple[int, str]:
            if fault:
                put_in(fault)
            wanted = session.items if fault is None else [item for test in fault.tests for item in items[test]]
            for item, after in zip(wanted, [*wanted[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if self.failed and fault:
                    break
            return (FAILED, " ".join(self.failed)) if self.failed else (PASSED, "")

        for answer in answers([*([] if self.options.no_check else [None]), *self.faults], work, self.options.j):
            self.tell(*answer)
        return True


def alone(fault: Fault) -> tuple[int, str]:
    """A fault in a process where nothing of the package is loaded yet."""
    sys.meta_path.insert(0, Changed(fault))
    code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *(str(TESTS / test) for test in fault.tests)]))
    return (code if code in (PASSED, FAILED) else UNANSWERED), f"pytest ended with {code}"


def main() -> int:
    asked = argparse.ArgumentParser(description="Try every fault of faults.txt.")
    asked.add_argument("-k", nargs="*", default=[""], help="only those whose file or words hold one of these")
    asked.add_argument("-j", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    asked.add_argument("--no-check", action="store_true", help="take it that the tests pass without a fault")
    options = asked.parse_args()
    faults = [fault for fault in read() if any(part in str(fault) for part in options.k)]
    outside = [fault for fault in faults if functions_of(fault) is None]
    tests = dict.fromkeys(str(TESTS / test) for fault in faults for test in fault.tests)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.chdir(TESTS.parent)
    began, noticed, wrong = time.monotonic(), 0, 0

    def tell(fault: Fault | None, code: int, said: str) -> None:
        nonlocal noticed, wrong
        noticed += bool(fault) and code == FAILED
        if code == (FAILED if fault and not fault.excuse else PASSED):
            return
        wrong += 1
        word = {PASSED: "lives", FAILED: "noticed, though excused"}.get(code, "no answer")
        line = f"{word}: {fault} ({said or ', '.join(fault.tests)})" if fault else f"without a fault: {said}"
        os.write(_SPEAK, f"{line}\n".encode())

    def collected(_: Fault | None) -> tuple[int, str]:
        inside = [fault for fault in faults if fault not in outside]
        pytest.main(["-q", "-s", "-p", "no:cacheprovider", *tests], plugins=[Trials(inside, options, tell)])
        return PASSED, f"{noticed} {wrong}"

    # in a process of its own: what the tests load must not be there yet for the faults outside of functions
    _, _, said = next(answers([None], collected, 1))
    noticed, wrong = map(int, said.split())
    for answer in answers(outside, alone, options.j):
        tell(*answer)
    share = noticed / max(len(faults), 1)
    print(f"{noticed} of {len(faults)} noticed ({share:.1%}), {time.monotonic() - began:.0f} s")
    return 0 if not wrong and share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
