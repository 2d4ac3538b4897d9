"""What a run may write where: every verb asks here, before its work starts.

A verb plans its outputs. What lies at their places must be of earlier runs of this package, byte for byte as the
folder's record says, and is replaced if that was asked for. Everything else is somebody's, and the run is refused.

    OUT/.medk2n/outputs.json    the record: file -> SHA-256, and the places that a run writes to which has not ended
    OUT/.medk2n/lock            held by the run at work; the system lets go of it however the process ends
    OUT/.medk2n/new-*           what is being made; of a run that is dead, it is removed by the next
    OUT/.medk2n/whole           a whole set on its way to its place; of a run that is dead, the next one finishes it
    OUT/.medk2n/parts/NAME/     the same for a part of the outputs that is made by itself, such as one of many studies
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from medk2n.errors import InternalError, Medk2nError, OutputExistsError, OutputPermissionError
from medk2n.io.atomic import explaining, flush, is_left_over, remove_left_over, sha256_file, write_json
from medk2n.io.door import kept_json

HOME = ".medk2n"
_RECORD, _LOCK, _NEW, _WHOLE = "outputs.json", "lock", "new-", "whole"
_FILES, _STEPS, _PARTS = "files", "steps.json", "parts"
_PATIENCE_S = 2.0  # for the processes of a run that has just died
_LONGEST = 255  # bytes of a name, where the file system does not say
_named: set[Path] = set()  # single files that this process holds a place for: no set of files may have it too


@contextmanager
def output_folder(
    out: Path | str,
    planned: Collection[str],
    *,
    shared: Collection[str] = (),
    part: str = "",
    overwrite: bool = False,
    goes_on: bool = False,
) -> "Iterator[OutputFolder]":
    """Make `out` and hold it, or a part of its outputs, for one run. Left empty, it is taken away again.

    Args:
        planned: what the run may write, relative to `out`: names, or patterns such as `samples/*.png`. The folder that
            a pattern begins with is the run's alone: nothing else may lie in it.
        shared: further places, of what is no loss if it is replaced: ours may be there already.
        overwrite: replace what earlier runs left at these places.
        part: what else of `out` is made meanwhile, by this run or another, is in other parts.
        goes_on: add to what an earlier run left.

    Raises:
        OutputExistsError: another run is writing here, something is there already, or it is not ours.
        OutputPermissionError: the folder cannot be made or written to, or a name is too long.
        SystemLimitError: the disk is full.
    """
    out = Path(out)
    home = out / HOME / _PARTS / part if part else out / HOME
    absent = [place for place in (home, *home.parents) if not os.path.lexists(place)]
    try:
        with explaining(out):
            home.mkdir(parents=True, exist_ok=True)
        if link := next((place for place in (home, *home.parents[: 2 if part else 0]) if place.is_symlink()), None):
            raise OutputExistsError(f"{link} is a link; expected a folder of medk2n's own; choose another --out")
        with _locked(home / _LOCK, out):
            folder = OutputFolder(out, home, tuple(planned), tuple(shared))
            try:
                folder.settle()
                if not goes_on:
                    folder.check(overwrite=overwrite)
                yield folder
            finally:
                folder.tidy()
                if not (home / _RECORD).exists():
                    (home / _LOCK).unlink(missing_ok=True)
    finally:
        _remove_empty(absent)


@contextmanager
def output_file(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Hold the place of one file that a caller names until it is written (whole, see `io/atomic.py`).

    Raises:
        OutputExistsError: it is there and `overwrite` is off, it is a folder, or another run is writing it.
        OutputPermissionError, SystemLimitError: as `output_folder`.
    """
    path = Path(path)
    lock = path.with_name(f".tmp-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-lock")
    absent = [place for place in path.parents if not os.path.lexists(place)]
    try:
        with explaining(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_length(path.parent, path.name)
        if path.is_dir():
            raise OutputExistsError(f"{path} is a folder; expected the name of a file to write")
        if os.path.lexists(path) and not overwrite:
            raise _exists(path)
        with _locked(lock, path):
            place = path.parent.resolve() / path.name
            _named.add(place)
            try:
                remove_left_over(path.parent, [path.name])
                yield path
            finally:
                _named.discard(place)
                lock.unlink(missing_ok=True)
    finally:
        _remove_empty(absent)


class OutputFolder:
    """A folder held for one run; made by `output_folder`."""

    def __init__(self, path: Path, home: Path, planned: tuple[str, ...], shared: tuple[str, ...]) -> None:
        self.path, self._home = path, home
        self._planned, self._shared = (*planned, *shared), shared
        self._records: dict[Path, _Record] = {}

    @contextmanager
    def whole(self, last: str, planned: Collection[str] | None = None) -> Iterator[Path]:
        """A folder to fill: what is in it afterwards appears at its place together, or not at all.

        Args:
            last: file that appears when all others are there: whoever sees it sees the whole set.
            planned: places of this set alone, if a run makes several. What earlier runs left there and this one does
                not make is taken away.

        Raises:
            OutputExistsError: something of somebody else's has appeared there meanwhile.
        """
        with self.scratch() as new:
            files = new / _FILES
            files.mkdir()
            yield files
            with explaining(self.path):
                self._commit(new, last, self._planned if planned is None else tuple(planned))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder that is gone afterwards, on the same disk as the outputs."""
        new = self._home / f"{_NEW}{secrets.token_hex(4)}"
        with explaining(self.path):
            new.mkdir(mode=0o700)
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the run write to all planned places itself, each file whole, as long as it takes.

        What it leaves is known as ours, also if it is killed.
        """
        record = self._record(self._home)
        record.open_to = self._planned
        record.keep(self._home)
        try:
            yield
        finally:
            names = [name for name in self._there(self._planned) if _fits(name, self._planned)]
            record.files |= {name: sha256_file(self.path / name) for name in names}
            record.open_to = ()
            record.keep(self._home)

    def clear(self, *, but: Collection[str] = ()) -> None:
        """Take away what earlier runs left at planned places, but for files that this run has written already."""
        for name in [name for name in self._there(self._planned) if name not in but and self._is_ours(name)]:
            self._remove(name)

    def check(self, *, overwrite: bool, planned: Collection[str] | None = None) -> None:
        """Refuse what is in the way, or would be lost, at some of the planned places or all.

        Raises:
            OutputExistsError: naming it.
            OutputPermissionError: a planned name is too long for a file.
        """
        planned = self._planned if planned is None else planned
        for name in planned:
            _check_length(self.path, name)
            if self.path.resolve() / name in _named:
                raise OutputExistsError(f"{self.path / name} was named for two files of this run; rename one")
        for name in self._there(planned):
            if not self._is_ours(name):
                raise _foreign(self.path / name)
            if not overwrite and not _fits(name, self._shared):
                raise _exists(self.path / name)

    def settle(self) -> None:
        """Finish what a dead run had made whole, and remove what it had not."""
        self.tidy()
        with explaining(self.path):
            if (self._home / _WHOLE).exists():
                self._move()
            for folder in {str(Path(name).parent) for name in self._planned}:
                for place in [self.path] if folder == "." else self.path.glob(folder):
                    remove_left_over(place, [Path(name).name for name in self._planned])

    def tidy(self) -> None:
        """Remove what was not made whole."""
        for new in self._home.glob(f"{_NEW}*"):
            shutil.rmtree(new, ignore_errors=True)

    def _commit(self, new: Path, last: str, planned: tuple[str, ...]) -> None:
        made = [str(path.relative_to(new / _FILES)) for path in sorted((new / _FILES).rglob("*")) if path.is_file()]
        if last not in made or not all(_fits(name, (*planned, *self._shared)) for name in made):
            raise InternalError(f"{self.path}: made {', '.join(made)}, expected {last} and what was planned")
        self.check(overwrite=True, planned=planned)  # looked at again: hours may have passed
        there = list(self._there(planned))
        record = self._record(self._home)
        gone = [name for name in there if name not in made and not _fits(name, self._shared)]
        kept = {name: digest for name, digest in record.files.items() if name not in gone}
        _Record(kept | {name: sha256_file(new / _FILES / name, flushed=True) for name in made}).keep(new)
        write_json(new / _STEPS, {"gone": [*gone, last], "last": last})
        new.replace(self._home / _WHOLE)
        flush(self._home)
        try:
            self._move()
        except KeyboardInterrupt:
            self._move()
            raise

    def _move(self) -> None:
        """Bring a whole set to its place; begun anew after any interruption, it ends alike."""
        whole = self._home / _WHOLE
        gone, name_of_last = _steps(whole)
        last = whole / _FILES / name_of_last
        if name_of_last and last.is_file():
            for name in filter(self._is_ours, gone):
                self._remove(name)
            for path in sorted((whole / _FILES).rglob("*")):
                if path.is_file() and path != last:
                    self._put(path, str(path.relative_to(whole / _FILES)))
            if (whole / _RECORD).is_file():
                (whole / _RECORD).replace(self._home / _RECORD)
                self._records.clear()
            self._put(last, name_of_last)
            flush(self.path)
        done = whole.replace(self._home / f"{_NEW}{secrets.token_hex(4)}")
        shutil.rmtree(done, ignore_errors=True)

    def _put(self, source: Path, name: str) -> None:
        target = self.path / name
        if not is_inside(name):
            raise InternalError(f"{source}: is to go to {name}, expected a place inside {self.path}")
        if os.path.lexists(target) and not self._is_ours(name):
            raise _foreign(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)

    def _remove(self, name: str) -> None:
        """One of our files, and the folders that it leaves empty."""
        place = self.path / name
        place.unlink(missing_ok=True)
        while (place := place.parent) != self.path and place.is_dir():
            if {path.name for path in place.iterdir()} - {HOME}:
                return
            shutil.rmtree(place / HOME, ignore_errors=True)
            place.rmdir()

    def _there(self, planned: Collection[str]) -> Iterator[str]:
        """What lies at planned places or stands in their way; of a pattern, everything in the folder it begins with."""
        for name in dict.fromkeys(planned):
            fixed = _fixed_part(name)
            above = [part for part in (fixed, *fixed.parents)[::-1] if part.parts]
            if in_the_way := [part for part in above if _is_no_folder(self.path / part)]:
                yield str(in_the_way[0])
            elif fixed != PurePosixPath(name):
                yield from self._files_below(self.path / fixed)
            elif (self.path / name).is_dir():
                yield name

    def _files_below(self, folder: Path) -> Iterator[str]:
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if name != HOME)
            links = [name for name in folders if Path(place, name).is_symlink()]
            found = [name for name in sorted([*files, *links]) if not is_left_over(name)]
            yield from (str(Path(place, name).relative_to(self.path)) for name in found)

    def _is_ours(self, name: str) -> bool:
        """Whether a file is as the record of its folder, or of one above, says."""
        path = self.path / name
        if not is_inside(name):
            return False
        if HOME in PurePosixPath(name).parts:
            return True
        above = [self.path / part for part in PurePosixPath(name).parents]
        if path.is_symlink() or not path.is_file() or any(place.is_symlink() for place in above if place != self.path):
            return False
        if self._record(self._home).knows(path, name):
            return True
        parts = ((self.path, home) for home in (self.path / HOME / _PARTS).glob("*"))
        records = (*((place, place / HOME) for place in above), *parts)
        return any(self._record(home).knows(path, str(path.relative_to(place))) for place, home in records)

    def _record(self, home: Path) -> "_Record":
        if home not in self._records:
            self._records[home] = _Record.of(home)
        return self._records[home]


@dataclass
class _Record:
    """What earlier runs wrote to a folder: file -> SHA-256, and the places that one writes to which has not ended."""

    files: dict[str, str] = field(default_factory=dict)
    open_to: tuple[str, ...] = ()

    @classmethod
    def of(cls, home: Path) -> "_Record":
        """Empty where there is none, or none that can be read: then nothing there is ours."""
        kept = kept_json(home / _RECORD)
        try:
            files, open_to = dict(kept["files"]), tuple(kept["open_to"])
        except (ValueError, LookupError, TypeError):
            return cls()
        sound = all(isinstance(text, str) for text in (*files, *files.values(), *open_to))
        return cls(files, open_to) if sound else cls()

    def keep(self, home: Path) -> None:
        write_json(home / _RECORD, {"files": self.files, "open_to": list(self.open_to)})

    def knows(self, path: Path, name: str) -> bool:
        return _fits(name, self.open_to) or (name in self.files and self.files[name] == sha256_file(path))


def record_folder(folder: Path) -> None:
    """Leave a record of all files in a folder that is about to be renamed to its place."""
    files = {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    _Record(files).keep(folder / HOME)


def _steps(whole: Path) -> tuple[list[str], str]:
    """Which files a whole set takes the place of, and which of its own comes last; nothing of what is no such set."""
    told = kept_json(whole / _STEPS)
    try:
        gone, last = [str(name) for name in told["gone"]], str(told["last"])
    except (LookupError, TypeError):
        return [], ""
    planted = whole.is_symlink() or (whole / _FILES).is_symlink() or not is_inside(last)
    return ([], "") if planted else (gone, last)


def is_inside(name: str) -> bool:
    """Whether a relative name, with / between its parts, leads out of no folder."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _fits(name: str, planned: Collection[str]) -> bool:
    return any(name == place or ("*" in place and fnmatchcase(name, place)) for place in planned)


def _fixed_part(name: str) -> PurePosixPath:
    """Of a pattern the folders before its first wildcard, of a name all of it."""
    parts = PurePosixPath(name).parts
    wild = next((k for k, part in enumerate(parts) if "*" in part), len(parts))
    return PurePosixPath(*parts[:wild])


def _is_no_folder(path: Path) -> bool:
    return path.is_symlink() or (path.exists() and not path.is_dir())


def _is_no_file(path: Path) -> bool:
    return path.is_symlink() or (path.exists() and not path.is_file())


def _check_length(folder: Path, name: str) -> None:
    longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else _LONGEST
    for part in PurePosixPath(name).parts:
        if len(os.fsencode(part)) > longest:
            raise OutputPermissionError(
                f"{folder / name}: a file's name may have {longest} bytes here, expected a shorter one"
            )


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError(f"{path} exists already: add --overwrite to replace it, or choose another --out")


def _foreign(path: Path) -> OutputExistsError:
    return OutputExistsError(
        f"{path} is there, is not as medk2n left it and would be lost; move it away, or choose another --out"
    )


@contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    held = FileLock(lock)
    if _is_no_file(lock):
        raise OutputExistsError(f"{lock} is no file of medk2n's; remove it, or choose another --out")
    try:
        with explaining(what):
            held.acquire(timeout=_PATIENCE_S, poll_interval=0.05)
    except Timeout as error:
        raise OutputExistsError(
            f"{what}: another run of medk2n is writing there; wait until it has ended, or choose another --out"
        ) from error
    except Medk2nError:
        raise
    except (OSError, NotImplementedError) as error:  # of file systems without locks
        raise OutputPermissionError(f"{what}: no file can be locked there ({error}); choose another --out") from error
    try:
        yield
    finally:
        held.release()


def _remove_empty(folders: Collection[Path]) -> None:
    """The deepest first; one that holds something stays."""
    for place in folders:
        with suppress(OSError):
            place.rmdir()
