"""A node at work: the door, the worker and the courier, until it is told to stop."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from medk2n.errors import UsageError
from medk2n.io.atomic import check_writable
from medk2n.node.deliver import Destination, deliver
from medk2n.node.ledger import Ledger
from medk2n.node.receive import INCOMING, Door, Receiver
from medk2n.node.work import RESULTS, WORK, Complete, work

LEDGER, _LOCK = "node.sqlite", "lock"
_LOOK_S = 0.5
_LEAVE_S = 5.0
_REST_S = 5.0


@dataclass(frozen=True)
class Pace:
    """How long a node waits.

    Attributes:
        quiet_s: without a new image of a study before it is taken up.
        patience_s: the same, if a series lacks images by its own count.
        keep_s: after a study ended and was delivered, before its images and results are removed.
    """

    quiet_s: float = 60.0
    patience_s: float = 600.0
    keep_s: float = 24 * 3600.0


@contextmanager
def alone_in(folder: Path) -> Iterator[Path]:
    """Make the node's folder, for its owner alone, and hold it: a second node in it is refused.

    Raises:
        UsageError: another node works in it, or it is something else.
        OutputPermissionError: it may not be written to.
    """
    ours = any((folder / name).exists() for name in (LEDGER, _LOCK))
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: is no node's folder; expected one that is empty or not there yet")
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with FileLock(folder / _LOCK, timeout=0):  # the system lets go of it however this process ends
            yield folder
    except Timeout as error:
        raise UsageError(f"{folder}: another node works in it; end that one, or choose another folder") from error


def serve(
    folder: Path,
    door: Door,
    pace: Pace,
    complete: Complete,
    to: Destination | None,
    log: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Run a node in `folder` until `stop` is set. A node that was killed goes on where it stood.

    Args:
        to: where results go; None keeps them in `folder`.

    Raises:
        UsageError: the address cannot be listened on.
    """
    for name in (INCOMING, WORK, RESULTS):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    ledger = Ledger(folder / LEDGER)
    _recover(ledger, folder)
    with Receiver(door, folder, ledger, log) as receiver:
        log(f"{door.aet} listens on {door.host}:{receiver.port}")
        courier = threading.Thread(target=_carry, args=(ledger, folder, to, log, stop), name="courier", daemon=True)
        if to is not None:
            courier.start()
        try:
            _repeat(lambda: _work(ledger, folder, pace, complete, log), min(_LOOK_S, pace.quiet_s / 4), log, stop)
        finally:
            stop.set()
            if to is not None:
                courier.join(_LEAVE_S)  # what it has not heard of is offered again, and taken once


def _repeat(turn: Callable[[], bool], pause_s: float, log: Callable[[str], None], stop: threading.Event) -> None:
    """Take turns until told to stop, with a pause when there was nothing to do, or the disk did not let us."""
    while not stop.is_set():
        try:
            if not turn():
                stop.wait(pause_s)
        except (OSError, sqlite3.Error) as error:
            log(f"the node's folder cannot be used now ({error}); tried again in {_REST_S:.0f} s")
            stop.wait(_REST_S)


def _work(ledger: Ledger, folder: Path, pace: Pace, complete: Complete, log: Callable[[str], None]) -> bool:
    _forget(ledger, folder, time.time() - pace.keep_s)
    return work(ledger, folder, complete, log, quiet_s=pace.quiet_s, patience_s=pace.patience_s)


def _carry(ledger: Ledger, folder: Path, to: Destination, log: Callable[[str], None], stop: threading.Event) -> None:
    _repeat(lambda: deliver(ledger, folder, to, time.time, log), _LOOK_S, log, stop)


def _recover(ledger: Ledger, folder: Path) -> None:
    """Clear away what a killed node had begun; its sender, or the worker, does it again."""
    ledger.recover()
    shutil.rmtree(folder / WORK)
    (folder / WORK).mkdir(mode=0o700)
    for file in (folder / INCOMING).iterdir():
        if not ledger.knows(f"{INCOMING}/{file.name}"):
            file.unlink()


def _forget(ledger: Ledger, folder: Path, before: float) -> None:
    for key, files in ledger.forget(before):
        shutil.rmtree(folder / RESULTS / key, ignore_errors=True)
        for file in files:
            (folder / file).unlink(missing_ok=True)
