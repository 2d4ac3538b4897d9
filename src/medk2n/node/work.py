"""A study that is quiet and whole is completed once; what failed for want of memory or disk is tried again."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medk2n.errors import Medk2nError, SystemLimitError, contained
from medk2n.node.deliver import backoff_s
from medk2n.node.ledger import Ledger, Taken

Complete = Callable[[Path, Path], Mapping[str, Any]]
"""Completes the study in a folder into another, which is not there yet; whole or not at all. Of what it returns the
"warnings" are logged."""
WORK, RESULTS = "work", "results"


def work(
    ledger: Ledger,
    folder: Path,
    complete: Complete,
    log: Callable[[str], None],
    *,
    quiet_s: float,
    patience_s: float,
    now: Callable[[], float] = time.time,
) -> bool:
    """Complete the next study, if one is ready; returns whether there was one."""
    taken = ledger.take(now(), quiet_s=quiet_s, patience_s=patience_s)
    if taken is None:
        return False
    place = folder / WORK / taken.key
    shutil.rmtree(place, ignore_errors=True)
    try:
        results, warnings = _complete(taken, folder, place, complete)
    except Exception as error:
        _give_up(taken, error, ledger, log, now)
    else:
        ledger.completed(taken, results, now())
        log(f"study {taken.key}: {len(taken.files)} images in, {len(results)} results")
        for line in warnings:
            log(f"study {taken.key}: warning: {line}")
        _keep_only(folder / RESULTS / taken.key, taken.digest)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return True


def _complete(taken: Taken, folder: Path, place: Path, complete: Complete) -> tuple[list[str], list[str]]:
    """The results, in their final place, as files relative to the node's folder; and what was told of the study."""
    source, made = place / "in", place / "out"
    source.mkdir(parents=True)
    for number, file in enumerate(taken.files, 1):
        _link(folder / file, source / f"{number:06d}.dcm")
    facts = complete(source, made)
    final = folder / RESULTS / taken.key / taken.digest[:16]
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    made.rename(final)
    return sorted(path.relative_to(folder).as_posix() for path in final.rglob("*.dcm")), facts["warnings"]


def _link(file: Path, link: Path) -> None:
    try:
        os.link(file, link)
    except OSError:  # no links here, or too many
        shutil.copyfile(file, link)


def _give_up(
    taken: Taken, error: Exception, ledger: Ledger, log: Callable[[str], None], now: Callable[[], float]
) -> None:
    try:
        complaint: Medk2nError = contained(error)
    except SystemLimitError as limit:
        complaint = limit
    if isinstance(complaint, SystemLimitError):
        wait = backoff_s(ledger.attempts(taken.key))
        ledger.postpone(taken, str(complaint), now() + wait)
        log(f"study {taken.key}: {complaint}; tried again in {wait:.0f} s")
    else:
        ledger.failed(taken, str(complaint), now())
        log(f"study {taken.key} failed: {complaint}")


def _keep_only(folder: Path, digest: str) -> None:
    """Remove results of an earlier state of a study."""
    for old in folder.iterdir():
        if old.name != digest[:16]:
            shutil.rmtree(old, ignore_errors=True)
