"""What may be written where: nothing of a user's is replaced, removed or written through, and sets appear whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medk2n.errors import OutputExistsError, OutputPermissionError
from medk2n.io.atomic import write_text
from medk2n.io.outputs import HOME, output_file, output_folder

Killer = Callable[[Callable[[], object], int, Path], int]
PLANNED = ("a.txt", "deep/b.txt", "last.txt")


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written, so there is no need to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def fill(out: Path, text: str = "new", *, overwrite: bool = False, planned: tuple[str, ...] = PLANNED) -> None:
    with output_folder(out, planned, overwrite=overwrite) as place, place.whole(last="last.txt") as new:
        for name in PLANNED:
            write_text(new / name, text)


def seen(out: Path) -> dict[str, str]:
    """What a person sees in a folder."""
    files = (path for path in out.rglob("*") if path.is_file() and HOME not in path.parts)
    return {str(path.relative_to(out)): path.read_text() for path in files}


def test_a_set_appears_and_is_replaced_only_if_asked(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    fill(out)
    assert seen(out) == dict.fromkeys(PLANNED, "new")
    with pytest.raises(OutputExistsError, match=r"a\.txt exists already: add --overwrite"):
        fill(out)
    (out / "notes.txt").write_text("mine")
    fill(out, "newer", overwrite=True)
    assert seen(out) == dict.fromkeys(PLANNED, "newer") | {"notes.txt": "mine"}


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_refused_even_with_overwrite(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=f"{name} is there, is not as medk2n left it"):
        fill(tmp_path, overwrite=overwrite)
    assert seen(tmp_path) == {name: "mine"}
    assert not (tmp_path / HOME).exists()


def test_one_of_ours_that_was_changed_since_is_the_users(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "deep" / "b.txt").write_text("corrected by hand")
    with pytest.raises(OutputExistsError, match=r"b\.txt is there, is not as medk2n left it"):
        fill(tmp_path, overwrite=True)
    assert seen(tmp_path)["deep/b.txt"] == "corrected by hand"


@pytest.mark.parametrize("link", ["a.txt", "deep", "deep/b.txt", "last.txt", HOME])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_links_are_never_written_through(tmp_path: Path, link: str, kind: str) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    if kind == "file":
        victim.write_text("mine")
    elif kind == "folder":
        victim.mkdir()
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(victim)
    with pytest.raises((OutputExistsError, OutputPermissionError), match="choose another --out"):
        fill(out, overwrite=True)
    assert victim.exists() == (kind != "nothing")
    assert kind != "folder" or not list(victim.iterdir())
    assert kind != "file" or victim.read_text() == "mine"


def test_the_folder_of_a_pattern_is_the_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "scan.nii").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=r"scan\.nii is there, is not as medk2n left it"):
            fill(tmp_path, overwrite=overwrite, planned=(*PLANNED, "samples/*.png"))
    assert seen(tmp_path) == {"samples/scan.nii": "mine"}


def test_what_is_not_made_anew_goes_with_the_set_it_belonged_to(tmp_path: Path) -> None:
    planned = (*PLANNED, "more/c.txt")
    with output_folder(tmp_path, planned) as place, place.whole(last="last.txt") as new:
        for name in planned:
            write_text(new / name, "old")
    fill(tmp_path, overwrite=True, planned=planned)
    assert seen(tmp_path) == dict.fromkeys(PLANNED, "new")
    assert not (tmp_path / "more").exists()


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="stop"),
        output_folder(out, PLANNED) as place,
        place.whole(last="last.txt") as new,
    ):
        write_text(new / "a.txt", "half")
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())
    fill(out)
    with pytest.raises(RuntimeError, match="stop"), output_folder(out, PLANNED, overwrite=True):
        raise RuntimeError("stop")
    assert seen(out) == dict.fromkeys(PLANNED, "new")


def test_the_second_of_two_runs_refuses(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out", PLANNED), output_file(tmp_path / "a.html"):
        with pytest.raises(OutputExistsError, match="another run of medk2n is writing there"):
            fill(tmp_path / "out")
        with (
            pytest.raises(OutputExistsError, match="another run of medk2n is writing there"),
            output_file(tmp_path / "a.html"),
        ):
            pass
    fill(tmp_path / "out")


def test_names_that_no_file_can_have_are_refused_before_the_work(tmp_path: Path) -> None:
    for refused in ("x" * 256, "deep/" + "é" * 128):
        with (
            pytest.raises(OutputPermissionError, match="may have 255 bytes"),
            output_folder(tmp_path / "out", [refused]),
        ):
            pass
        with pytest.raises(OutputPermissionError, match=r"255|too long"), output_file(tmp_path / refused):
            pass
    for kept in ("x" * 255, "é" * 127):
        with output_file(tmp_path / kept) as path:
            write_text(path, "fits")
        assert (tmp_path / kept).read_text() == "fits"


def test_a_folder_that_is_a_file_or_may_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputPermissionError, match="is not a folder but a file"), output_folder(out, PLANNED):
            pass
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    link = tmp_path / "nowhere"
    with pytest.raises(OutputPermissionError, match="choose another --out"), output_folder(link, PLANNED):
        pass
    assert not (tmp_path / "absent").exists()


def test_a_file_is_replaced_only_if_asked_and_links_are_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim.html"
    victim.write_text("mine")
    link = tmp_path / "report.html"
    link.symlink_to(victim)
    with pytest.raises(OutputExistsError, match="exists already"), output_file(link):
        pass
    with output_file(link, overwrite=True) as path:
        write_text(path, "new")
    assert (victim.read_text(), link.is_symlink()) == ("mine", False)
    with pytest.raises(OutputExistsError, match="is a folder"), output_file(tmp_path, overwrite=True):
        pass
    with pytest.raises(RuntimeError, match="stop"), output_file(tmp_path / "new" / "a.html"):
        raise RuntimeError("stop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "victim.html"]


# What a strange folder says of itself is not believed: it may come from anywhere.


def test_a_planted_link_is_not_emptied(tmp_path: Path) -> None:
    write_text(tmp_path / "victim" / "last.txt", "mine")
    out = tmp_path / "out"
    write_text(out / HOME / "whole" / "steps.json", json.dumps({"gone": [], "last": "last.txt"}))
    (out / HOME / "whole" / "files").symlink_to(tmp_path / "victim")
    with output_folder(out, ["b.txt"]):
        pass
    assert (tmp_path / "victim" / "last.txt").read_text() == "mine"


@pytest.mark.parametrize("steps", [
    {"gone": ["../victim.txt", "/tmp/x", "last.txt"], "last": "last.txt"},
    {"gone": ["mine.txt", "link/victim.txt"], "last": "last.txt"},
    {"gone": [], "last": "../planted.txt"},
    {"gone": 1}, [], None,
])  # fmt: skip
def test_a_planted_set_takes_nothing_away(tmp_path: Path, steps: dict) -> None:
    (tmp_path / "victim.txt").write_text("mine")
    out = tmp_path / "out"
    write_text(out / "mine.txt", "mine")
    (out / "link").symlink_to(tmp_path)
    write_text(out / HOME / "whole" / "files" / "last.txt", "planted")
    write_text(out / HOME / "whole" / "planted.txt", "planted")
    write_text(out / HOME / "whole" / "steps.json", json.dumps(steps))
    with output_folder(out, ["b.txt"]):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "victim.txt"]
    assert (tmp_path / "victim.txt").read_text() == "mine"
    assert not (out / HOME / "whole").exists()
    assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("name", ["outputs.json", "whole/steps.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "deep", "letters", "numbers"])
def test_a_record_that_is_none_says_nothing(tmp_path: Path, name: str, kind: str) -> None:
    place = tmp_path / HOME / name
    place.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        text = {"deep": "[" * 100_000, "letters": "\xff", "numbers": '{"files": {"a.txt": 1}, "open_to": [5]}'}[kind]
        place.write_bytes(text.encode("latin-1"))
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"a\.txt is there, is not as medk2n left it"):
        fill(tmp_path, overwrite=True)
    assert (tmp_path / "a.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_lock_that_is_none_is_named(tmp_path: Path, kind: str) -> None:
    victim, lock = tmp_path / "victim", tmp_path / "out" / HOME / "lock"
    victim.write_text("mine")
    lock.parent.mkdir(parents=True)
    lock.symlink_to(victim) if kind == "link" else lock.mkdir()
    with pytest.raises(OutputExistsError, match=r"lock is no file of medk2n's; remove it"):
        fill(tmp_path / "out")
    assert victim.read_text() == "mine"


def test_where_no_file_can_be_locked_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("medk2n.io.outputs.FileLock.acquire", no_locks)
    with pytest.raises(OutputPermissionError, match="no file can be locked there"):
        fill(tmp_path / "out")


def test_one_place_is_not_for_two_files(tmp_path: Path) -> None:
    with output_file(tmp_path / "out" / "a.txt"):
        with pytest.raises(OutputExistsError, match=r"a\.txt was named for two files"):
            fill(tmp_path / "out")
        fill(tmp_path / "other")
    fill(tmp_path / "out")


# Killed at every write.


@pytest.mark.parametrize("before", ["nothing", "an old set"])
def test_killed_at_any_write_a_set_is_whole_or_not_there_and_nothing_of_a_users_is_lost(
    tmp_path: Path, before: str, run_killed: Killer
) -> None:
    at, ended = 0, False
    while not ended:
        at += 1
        out = tmp_path / str(at)
        write_text(out / "deep" / "notes.txt", "mine")
        if before == "an old set":
            fill(out, "old")
        ended = run_killed(lambda out=out: fill(out, overwrite=True), at, out)
        now = seen(out)
        assert now.pop("deep/notes.txt") == "mine"
        if "last.txt" in now:
            assert now in (dict.fromkeys(PLANNED, "new"), dict.fromkeys(PLANNED, "old"))
        fill(out, "newest", overwrite=True)
        assert seen(out) == dict.fromkeys(PLANNED, "newest") | {"deep/notes.txt": "mine"}
        left = {path.name for path in (out / HOME).iterdir()}
        assert left == {"outputs.json", "lock"}, at
    assert at > 20


def test_what_a_dead_run_had_made_whole_is_finished_by_the_next(tmp_path: Path, run_killed: Killer) -> None:
    finished = 0
    for at in range(1, 60):
        out = tmp_path / str(at)
        fill(out, "old")
        run_killed(lambda out=out: fill(out, overwrite=True), at, out)
        whole = (out / HOME / "whole").is_dir()
        with output_folder(out, ["other.txt"]):
            pass
        assert seen(out) in (dict.fromkeys(PLANNED, "old"), dict.fromkeys(PLANNED, "new"))
        assert not whole or seen(out) == dict.fromkeys(PLANNED, "new")
        finished += whole
    assert finished > 5


def test_a_run_that_writes_in_place_is_known_after_any_kill(tmp_path: Path, run_killed: Killer) -> None:
    planned = ("model.bin", "samples/*.png")

    def work(out: Path) -> None:
        with output_folder(out, planned, overwrite=True) as place, place.in_place():
            place.clear()
            for k in range(2):
                write_text(out / "model.bin", str(k))
                write_text(out / "samples" / f"{k}.png", str(k))

    at, ended = 0, False
    while not ended:
        at += 1
        out = tmp_path / str(at)
        write_text(out / "notes.txt", "mine")
        ended = run_killed(lambda out=out: work(out), at, out)
        work(out)
        assert seen(out) == {"model.bin": "1", "samples/0.png": "0", "samples/1.png": "1", "notes.txt": "mine"}
        write_text(out / "samples" / "2.png", "drawn by hand")
        with pytest.raises(OutputExistsError, match=r"2\.png is there, is not as medk2n left it"):
            work(out)
    assert at > 10
