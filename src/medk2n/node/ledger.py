"""What a node knows, in SQLite: objects that came, studies and where they stand, results that are on their way.

A line of it is written before anybody is told, so a node that was killed goes on where it stood. Files are named by us;
the values of a data set that stand here (UIDs) are never made into a path.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medk2n.errors import UsageError

_FORMAT = 1
RECEIVING, WORKING, DONE, FAILED = "receiving", "working", "done", "failed"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    key TEXT PRIMARY KEY, state TEXT NOT NULL, heard REAL NOT NULL, changes INTEGER NOT NULL,
    taken INTEGER NOT NULL DEFAULT 0, digest TEXT NOT NULL DEFAULT '', note TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0, ended REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS objects (
    study TEXT NOT NULL, sop TEXT NOT NULL, series TEXT NOT NULL, number INTEGER, expected INTEGER,
    file TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (study, sop)
) STRICT;
CREATE TABLE IF NOT EXISTS deliveries (
    file TEXT PRIMARY KEY, study TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0, sent REAL, note TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS files ON objects (file);
CREATE INDEX IF NOT EXISTS waiting ON deliveries (sent, not_before);
"""


@dataclass(frozen=True)
class Arrival:
    """One object that came, as far as the node looks into it.

    Attributes:
        study, series, sop: UIDs.
        number: its place in the series, if it says so.
        expected: how many images its series has, if it says so.
        sha256: of its bytes as sent.
    """

    study: str
    series: str
    sop: str
    number: int | None
    expected: int | None
    sha256: str


@dataclass(frozen=True)
class Taken:
    """A study that is being completed: its key, its files relative to the node's folder, a digest of their content."""

    key: str
    files: tuple[str, ...]
    digest: str


def study_key(uid: str) -> str:
    """What a study is called in files and logs: nothing of it can be read back from it."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


class Ledger:
    """The node's memory; every method is one transaction, and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open it, or begin it.

        Raises:
            UsageError: another version of this package wrote it.
        """
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # what was answered for outlives a power cut
        if (form := self._db.execute("PRAGMA user_version").fetchone()[0]) not in (0, _FORMAT):
            self._db.close()
            raise UsageError(
                f"{path}: is of another version of medk2n (form {form}, expected {_FORMAT}); let that version deliver "
                "what is left, then choose another folder"
            )
        self._db.executescript(_SCHEMA + f"PRAGMA user_version = {_FORMAT};")

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Close it for good."""
        with self._lock:
            self._db.close()

    def is_there(self, arrival: Arrival) -> bool:
        """Whether this very object came before."""
        with self._change() as db:
            return self._known(db, arrival)

    @staticmethod
    def _known(db: sqlite3.Connection, arrival: Arrival) -> bool:
        query = "SELECT 1 FROM objects WHERE study = ? AND sop = ? AND sha256 = ?"
        return db.execute(query, (study_key(arrival.study), arrival.sop, arrival.sha256)).fetchone() is not None

    def received(self, arrival: Arrival, file: str, now: float) -> str | None:
        """Note an object that is on the disk as `file`; opens its study (again).

        Returns:
            A file that is needed no longer: the new one if the very same object came before, the old one if it came
            with other content; None if it is new.
        """
        key = study_key(arrival.study)
        with self._change() as db:
            if self._known(db, arrival):
                return file
            old = db.execute("SELECT file FROM objects WHERE study = ? AND sop = ?", (key, arrival.sop)).fetchone()
            row = (key, arrival.sop, arrival.series, arrival.number, arrival.expected, file, arrival.sha256)
            db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            db.execute(
                "INSERT INTO studies (key, state, heard, changes) VALUES (?, ?, ?, 1) ON CONFLICT (key) DO UPDATE SET "
                "heard = excluded.heard, changes = changes + 1, attempts = 0, not_before = 0, note = '', "
                f"state = CASE state WHEN '{WORKING}' THEN state ELSE excluded.state END",
                (key, RECEIVING, now),
            )
            return old[0] if old else None

    def take(self, now: float, *, quiet_s: float, patience_s: float) -> Taken | None:
        """The next study to complete, if one has been quiet for long enough and no image of it seems to be on its way.

        A series that lacks images by its own count is waited for `patience_s`; then the reader decides.
        """
        with self._change() as db:
            query = "SELECT key, heard, changes, digest FROM studies WHERE state = ? AND not_before <= ? ORDER BY heard"
            for key, heard, changes, before in db.execute(query, (RECEIVING, now)).fetchall():
                waited = now - heard
                if waited < 0:  # the clock was set back
                    db.execute("UPDATE studies SET heard = ? WHERE key = ?", (now, key))
                if waited < quiet_s or (waited < patience_s and not self._seems_whole(db, key)):
                    continue
                rows = db.execute(
                    "SELECT file, sop, sha256 FROM objects WHERE study = ? ORDER BY sop", (key,)
                ).fetchall()
                digest = hashlib.sha256("".join(f"{sop} {sha}\n" for _, sop, sha in rows).encode()).hexdigest()
                if digest == before:  # what came anew is what was there
                    db.execute("UPDATE studies SET state = ? WHERE key = ?", (DONE, key))
                    continue
                db.execute("UPDATE studies SET state = ?, taken = ? WHERE key = ?", (WORKING, changes, key))
                return Taken(key, tuple(file for file, _, _ in rows), digest)
        return None

    @staticmethod
    def _seems_whole(db: sqlite3.Connection, key: str) -> bool:
        query = (
            "SELECT COUNT(*), MAX(expected), MAX(number) - MIN(number) + 1, COUNT(DISTINCT number) "
            "FROM objects WHERE study = ? GROUP BY series"
        )
        return all(
            there >= (expected or 0) and (span or 0) <= max(numbered, 1)
            for there, expected, span, numbered in db.execute(query, (key,))
        )

    def completed(self, taken: Taken, results: list[str], now: float) -> None:
        """A study is complete, and its results are to be delivered instead of older ones that were not yet."""
        with self._change() as db:
            db.execute("DELETE FROM deliveries WHERE study = ? AND sent IS NULL", (taken.key,))
            db.executemany(
                "INSERT OR REPLACE INTO deliveries (file, study) VALUES (?, ?)",
                [(file, taken.key) for file in results],
            )
            self._end(db, taken, DONE, "", now)
            db.execute("UPDATE studies SET digest = ?, attempts = 0 WHERE key = ?", (taken.digest, taken.key))

    def failed(self, taken: Taken, note: str, now: float) -> None:
        """A study cannot be completed as it is; more objects of it open it again."""
        with self._change() as db:
            self._end(db, taken, FAILED, note, now)

    @staticmethod
    def _end(db: sqlite3.Connection, taken: Taken, state: str, note: str, now: float) -> None:
        """End the work on a study; if more came meanwhile, it is open again."""
        db.execute(
            f"UPDATE studies SET state = CASE WHEN changes > taken THEN '{RECEIVING}' ELSE ? END, note = ?, ended = ? "
            "WHERE key = ?",
            (state, note, now, taken.key),
        )

    def postpone(self, taken: Taken, note: str, not_before: float) -> None:
        """The machine could not do it now: try again."""
        with self._change() as db:
            db.execute(
                "UPDATE studies SET state = ?, attempts = attempts + 1, not_before = ?, note = ? WHERE key = ?",
                (RECEIVING, not_before, note, taken.key),
            )

    def attempts(self, key: str) -> int:
        """How often a study was postponed."""
        with self._change() as db:
            return int(db.execute("SELECT attempts FROM studies WHERE key = ?", (key,)).fetchone()[0])

    def knows(self, file: str) -> bool:
        """Whether a received file is noted: one that is not was never answered for."""
        with self._change() as db:
            return db.execute("SELECT 1 FROM objects WHERE file = ?", (file,)).fetchone() is not None

    def recover(self) -> None:
        """After a start: what was being worked on when the node ended is to be done again."""
        with self._change() as db:
            db.execute("UPDATE studies SET state = ? WHERE state = ?", (RECEIVING, WORKING))

    def due(self, now: float, most: int = 500) -> list[tuple[str, int]]:
        """Results to send now, of one study: (file, attempts so far)."""
        with self._change() as db:
            first = db.execute(
                "SELECT study FROM deliveries WHERE sent IS NULL AND not_before <= ? ORDER BY not_before, file LIMIT 1",
                (now,),
            ).fetchone()
            if first is None:
                return []
            query = (
                "SELECT file, attempts FROM deliveries WHERE study = ? AND sent IS NULL AND not_before <= ? "
                "ORDER BY file LIMIT ?"
            )
            return db.execute(query, (first[0], now, most)).fetchall()

    def sent(self, files: list[str], now: float) -> None:
        """The PACS has them."""
        with self._change() as db:
            db.executemany("UPDATE deliveries SET sent = ?, note = '' WHERE file = ?", [(now, file) for file in files])

    def unsent(self, files: list[str], note: str, not_before: float) -> None:
        """The PACS did not take them; they are offered again."""
        with self._change() as db:
            db.executemany(
                "UPDATE deliveries SET attempts = attempts + 1, not_before = ?, note = ? WHERE file = ?",
                [(not_before, note, file) for file in files],
            )

    def forget(self, before: float) -> list[tuple[str, list[str]]]:
        """Drop studies that ended before a time and have nothing left to deliver; returns (key, files received)."""
        with self._change() as db:
            query = (
                f"SELECT key FROM studies WHERE state IN ('{DONE}', '{FAILED}') AND ended < ? AND NOT EXISTS "
                "(SELECT 1 FROM deliveries WHERE study = key AND (sent IS NULL OR sent >= ?))"
            )
            dropped = []
            for (key,) in db.execute(query, (before, before)).fetchall():
                files = [row[0] for row in db.execute("SELECT file FROM objects WHERE study = ?", (key,))]
                for table, column in (("objects", "study"), ("deliveries", "study"), ("studies", "key")):
                    db.execute(f"DELETE FROM {table} WHERE {column} = ?", (key,))
                dropped.append((key, files))
            return dropped

    def summary(self) -> dict[str, object]:
        """How many studies stand where, what is still to be delivered, and what went wrong; nothing of a patient."""
        with self._change() as db:
            states = dict(db.execute("SELECT state, COUNT(*) FROM studies GROUP BY state").fetchall())
            waiting, delivered = db.execute("SELECT COUNT(*) - COUNT(sent), COUNT(sent) FROM deliveries").fetchone()
            notes = db.execute("SELECT key, state, note FROM studies WHERE note != '' ORDER BY heard").fetchall()
            last = db.execute("SELECT note FROM deliveries WHERE sent IS NULL AND note != '' LIMIT 1").fetchone()
            return {
                "studies": {state: states.get(state, 0) for state in (RECEIVING, WORKING, DONE, FAILED)},
                "objects": db.execute("SELECT COUNT(*) FROM objects").fetchone()[0],
                "delivered": delivered,
                "to_deliver": waiting,
                "delivery_problem": last[0] if last else "",
                "notes": [{"study": key, "state": state, "note": note} for key, state, note in notes],
            }
