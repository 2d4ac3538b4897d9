"""Workers end with the process that started them: done, failed, interrupted, terminated or killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from medk2n.errors import SystemLimitError
from medk2n.workers import each

# Started afresh, as a user's program is; its workers say who they are, then work longer than any test waits.
PROGRAM = """
import os, sys, time
from pathlib import Path
from contextlib import closing
from medk2n.cli import main
from medk2n.workers import each, run_program

def work(folder):
    (folder / str(os.getpid())).touch()
    run_program(["sleep", "600"]) if sys.argv[2] == "program" else time.sleep(600)

def verb():
    with closing(each(work, [Path(sys.argv[1])] * 3, 2, start=sys.argv[3])) as outcomes:
        for _ in outcomes:
            pass

if __name__ == "__main__":
    main.main = lambda arguments: told(verb)
    def told(verb):
        try:
            verb()
        except BaseException as error:
            line, code = main.explain(error)
            print("medk2n: error:", line, file=sys.stderr)
            return code
        return 0
    main.run()
"""


def double(n: int) -> int:
    return 2 * n


def die(n: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return n


def fail(n: int) -> int:
    raise ValueError(f"no {n}")


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_is_done_once(processes: int) -> None:
    assert sorted(each(double, range(5), processes, start="fork")) == [(n, 2 * n) for n in range(5)]


def test_what_a_worker_dies_or_complains_of_is_told() -> None:
    with pytest.raises(SystemLimitError, match="a process was killed"):
        list(each(die, range(4), 2, start="fork"))
    with pytest.raises(ValueError, match="no "):
        list(each(fail, range(4), 2, start="fork"))


def alive(pid: int) -> bool:
    """Whether a process is there and no corpse that nobody has fetched."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return False


def below(pid: int) -> set[int]:
    """A process's children, theirs, and so on."""
    children = [p for p in Path("/proc").glob("[0-9]*") if alive(int(p.name))]
    mine = {int(p.name) for p in children if _parent(p) == pid}
    return mine.union(*(below(child) for child in mine)) if mine else set()


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().split(")")[1].split()[1])
    except OSError:
        return 0


def hears() -> None:
    """A terminal's signals are heard again, also where the tests run in the background, which ignores them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("work", ["python", "program"])
@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        pytest.param(signal.SIGTERM, False, 130, id="SIGTERM"),
        pytest.param(signal.SIGTERM, True, 130, id="SIGTERM to the group"),
        pytest.param(signal.SIGHUP, True, 130, id="a terminal that was closed"),
        pytest.param(signal.SIGINT, True, 130, id="Ctrl-C"),
        pytest.param(signal.SIGKILL, False, -9, id="kill -9"),
    ],
)
def test_no_process_outlives_the_one_that_started_it(
    tmp_path: Path, start: str, work: str, number: signal.Signals, group: bool, code: int
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "at").mkdir()
    words = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "at"), work, start]
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hears)
    try:
        wait_until(lambda: len(list((tmp_path / "at").iterdir())) == 2)
        wait_until(lambda: work == "python" or len(below(running.pid)) >= 4 + (start == "spawn"))
        started = below(running.pid)
        assert len(started) >= 2
        (os.killpg if group else os.kill)(running.pid, number)
        _, said = running.communicate(timeout=20)
        wait_until(lambda: not any(map(alive, started)))
        assert running.returncode == code
        if code == 130:
            assert said == "medk2n: error: interrupted; nothing half-written was left behind\n"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def wait_until(true, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
