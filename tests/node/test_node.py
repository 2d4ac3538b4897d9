"""The node's door, memory and courier: nothing lost, nothing doubled, whatever is killed, slow, down or hostile."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason='the extra "dicom" is not installed')

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification

from medk2n.errors import DoubtfulScanError, SystemLimitError, UsageError
from medk2n.node import run
from medk2n.node.deliver import StorePeer, backoff_s, deliver, destination
from medk2n.node.ledger import DONE, FAILED, RECEIVING, Arrival, Ledger, study_key
from medk2n.node.receive import INCOMING, Door, Receiver, look_into
from medk2n.node.run import LEDGER, Pace, serve
from medk2n.node.work import work

from .objects import MR, Derive, mr, study_of
from .orthanc import Orthanc, free_port

# pynetdicom leaves the socket of a failed connection to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    (tmp_path / INCOMING).mkdir()
    ledger = Ledger(tmp_path / LEDGER)
    yield ledger
    ledger.close()


@contextmanager
def calling(port: int, aet: str = "SCANNER", called: str = "MEDK2N", contexts=((MR, ExplicitVRLittleEndian),)):
    entity = AE(ae_title=aet)
    entity.dimse_timeout = entity.network_timeout = entity.acse_timeout = 20
    entity.add_requested_context(Verification)
    for sop_class, syntax in contexts:
        entity.add_requested_context(sop_class, syntax)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def store(port: int, objects) -> list[int]:
    """The answer to each object. A sender of pynetdicom may miss one (its threads race for it); then it asks again."""
    answers: list[int] = []
    for _ in range(3):
        with calling(port) as association:
            assert association.is_established
            for data in objects[len(answers) :]:
                if (status := association.send_c_store(data).get("Status")) is None:
                    break
                answers.append(status)
        if len(answers) == len(objects):
            return answers
    raise AssertionError(f"{len(objects) - len(answers)} objects were not answered for")


def arrival(number: int, study: str = "1.2", sha: str = "a", **changes) -> Arrival:
    facts = {"study": study, "series": "1.3", "sop": f"1.4.{number}", "number": number, "expected": None}
    return Arrival(**facts | {"sha256": sha} | changes)


# The door


def test_echo_and_store(tmp_path, ledger):
    objects = study_of(5)
    with Receiver(Door(port=0), tmp_path, ledger, print) as receiver:
        with calling(receiver.port) as association:
            assert association.send_c_echo().Status == 0
        assert store(receiver.port, objects) == [0] * 5
        assert store(receiver.port, objects) == [0] * 5  # the same again: nothing doubled
    assert ledger.summary()["objects"] == 5
    files = list((tmp_path / INCOMING).iterdir())
    assert len(files) == 5
    assert all(len(file.stem) == 32 and file.read_bytes()[:128] == bytes(128) for file in files)


@pytest.mark.parametrize(
    ("door", "aet", "called"),
    [
        (Door(port=0, callers=("PACS",)), "SCANNER", "MEDK2N"),
        (Door(port=0), "SCANNER", "OTHER"),
        (Door(port=0, addresses=("10.1.0.0/16",)), "SCANNER", "MEDK2N"),
    ],
    ids=["title not on the list", "another title called", "address not on the list"],
)
def test_strangers_do_not_get_in(tmp_path, ledger, door, aet, called):
    with Receiver(door, tmp_path, ledger, print) as receiver, calling(receiver.port, aet, called) as association:
        assert not association.is_established


def test_those_on_the_lists_get_in(tmp_path, ledger):
    door = Door(port=0, callers=("SCANNER",), addresses=("127.0.0.0/8",))
    with Receiver(door, tmp_path, ledger, print) as receiver, calling(receiver.port) as association:
        assert association.send_c_echo().Status == 0


HOSTILE = ["../../etc/passwd", "/etc/cron.d/x", "1.2\\1.3", "", "9" * 300]


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_never_become_paths(tmp_path, ledger, name, value):
    data = mr("1.2.3", "1.2.4", 1)
    data[name]._value = value
    with Receiver(Door(port=0), tmp_path, ledger, print) as receiver:
        assert store(receiver.port, [data]) == [0xC000]
    assert [path.name for path in tmp_path.rglob("*") if LEDGER not in path.name] == [INCOMING]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_object_under_a_hostile_or_another_uid_is_refused(value):
    data = mr("1.2.3", "1.2.4", 1)
    data["SOPInstanceUID"]._value = value
    sent = encode(data, False, True)
    with pytest.raises(ValueError, match="UID is missing or none"):
        look_into(sent, ExplicitVRLittleEndian, value)
    whole = encode(mr("1.2.3", "1.2.4", 1), False, True)
    with pytest.raises(ValueError, match="another object"):
        look_into(whole, ExplicitVRLittleEndian, "1.2.3.4")


@pytest.mark.parametrize("depth", [300, 5000])
@pytest.mark.parametrize("closed", [True, False])
def test_sequences_nested_deep_are_seen_through_or_refused_at_once(depth, closed):
    """Of undefined length, as a stranger may send them; the door reads what it needs or says that it cannot."""
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    data = mr("1.2.3", "1.2.4", 1)
    sent = opened * depth + (end * depth if closed else b"") + encode(data, False, True)
    started = time.monotonic()
    with suppress(Exception):
        look_into(sent, ExplicitVRLittleEndian, data.SOPInstanceUID)
    assert time.monotonic() - started < 5


def test_our_own_results_do_not_come_back_as_inputs(tmp_path, ledger):
    with Receiver(Door(port=0), tmp_path, ledger, print) as receiver:
        assert store(receiver.port, study_of(2, SyntheticData="YES")) == [0, 0]
    assert ledger.summary()["objects"] == 0


def test_a_full_disk_is_told_to_the_sender(tmp_path, ledger, monkeypatch):
    told: list[str] = []
    with Receiver(Door(port=0), tmp_path, ledger, told.append) as receiver:
        monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert store(receiver.port, study_of(1)) == [0xA700]
        monkeypatch.undo()
    assert ledger.summary()["objects"] == 0
    assert list((tmp_path / INCOMING).iterdir()) == []
    assert "No space left" in told[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "--allow-aet and --allow-address"),
        ({"host": "0.0.0.0", "callers": ("A",)}, "--allow-address"),
        ({"addresses": ("here",)}, "10.0.0.0/24"),
        ({"aet": "A" * 17}, "1 to 16"),
        ({"callers": ("",)}, "1 to 16"),
    ],
)
def test_doors_that_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Door(**settings)


def test_a_port_that_is_taken(tmp_path, ledger):
    with (
        Receiver(Door(port=0), tmp_path, ledger, print) as first,
        pytest.raises(UsageError, match="cannot listen on"),
        Receiver(Door(port=first.port), tmp_path, ledger, print),
    ):
        pass


# The memory


def test_a_study_is_taken_when_it_is_quiet(ledger):
    ledger.received(arrival(1), "a", now=100)
    assert ledger.take(130, quiet_s=60, patience_s=600) is None
    ledger.received(arrival(2), "b", now=150)
    assert ledger.take(170, quiet_s=60, patience_s=600) is None
    taken = ledger.take(211, quiet_s=60, patience_s=600)
    assert (taken.key, taken.files) == (study_key("1.2"), ("a", "b"))
    assert ledger.take(999, quiet_s=60, patience_s=600) is None  # it is being worked on


@pytest.mark.parametrize(
    "missing",
    [[arrival(1), arrival(3)], [arrival(1, expected=3), arrival(2, expected=3)]],
    ids=["a gap", "fewer than announced"],
)
def test_a_series_that_lacks_images_is_waited_for(ledger, missing):
    for one in missing:
        ledger.received(one, one.sop, now=0)
    assert ledger.take(100, quiet_s=60, patience_s=600) is None
    assert ledger.take(601, quiet_s=60, patience_s=600) is not None  # the reader decides


def test_a_clock_that_was_set_back(ledger):
    ledger.received(arrival(1), "a", now=10_000)
    assert ledger.take(100, quiet_s=60, patience_s=600) is None
    assert ledger.take(161, quiet_s=60, patience_s=600) is not None


def test_what_comes_while_a_study_is_worked_on_opens_it_again(ledger):
    ledger.received(arrival(1), "a", now=0)
    taken = ledger.take(100, quiet_s=60, patience_s=600)
    ledger.received(arrival(2), "b", now=110)
    ledger.completed(taken, ["r/1.dcm"], now=120)
    assert ledger.take(130, quiet_s=60, patience_s=600) is None
    assert ledger.take(171, quiet_s=60, patience_s=600).files == ("a", "b")


def test_the_same_study_again_gives_nothing_new(ledger):
    ledger.received(arrival(1), "a", now=0)
    ledger.completed(ledger.take(100, quiet_s=60, patience_s=600), ["r/1.dcm"], now=120)
    assert ledger.received(arrival(1), "again", now=130) == "again"
    assert ledger.take(999, quiet_s=60, patience_s=600) is None
    assert ledger.received(arrival(1, sha="other"), "changed", now=1000) == "a"
    assert ledger.received(arrival(1), "back", now=1001) == "changed"  # changed back before it was taken
    assert ledger.take(2000, quiet_s=60, patience_s=600) is None
    assert ledger.summary()["studies"][DONE] == 1


def test_results_that_were_overtaken_are_not_delivered(ledger):
    ledger.received(arrival(1), "a", now=0)
    ledger.completed(ledger.take(100, quiet_s=60, patience_s=600), ["old/1.dcm"], now=120)
    ledger.received(arrival(2), "b", now=130)
    ledger.completed(ledger.take(300, quiet_s=60, patience_s=600), ["new/1.dcm"], now=310)
    assert ledger.due(320) == [("new/1.dcm", 0)]


def test_a_study_is_forgotten_only_when_all_of_it_is_delivered(ledger):
    ledger.received(arrival(1), "a", now=0)
    ledger.completed(ledger.take(100, quiet_s=60, patience_s=600), ["r/1.dcm"], now=120)
    assert ledger.forget(1_000) == []
    ledger.sent(["r/1.dcm"], now=500)
    assert ledger.forget(400) == []
    assert ledger.forget(1_000) == [(study_key("1.2"), ["a"])]
    assert ledger.summary()["objects"] == 0


def test_a_ledger_of_another_version_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / LEDGER)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match="another version of medk2n"):
        Ledger(tmp_path / LEDGER)


# The worker


def put(ledger: Ledger, folder: Path, objects, now: float = 0) -> None:
    for data in objects:
        file = f"{INCOMING}/{data.SOPInstanceUID}.dcm"
        data.save_as(folder / file, enforce_file_format=True)
        number = int(data.InstanceNumber)
        ledger.received(Arrival(data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID, number, None, "x"),
                        file, now)  # fmt: skip


PACE = {"quiet_s": 10, "patience_s": 20}


def test_a_damaged_study_fails_and_the_next_goes_on(tmp_path, ledger):
    put(ledger, tmp_path, study_of(2))
    put(ledger, tmp_path, study_of(3), now=1)
    told: list[str] = []

    def complete(source: Path, out: Path) -> dict[str, list[str]]:
        if len(list(source.iterdir())) == 2:
            raise DoubtfulScanError("nothing in it")
        return Derive()(source, out) | {"warnings": ["t2w lies 9.0 mm off t1n"]}

    for now in (50, 51):
        assert work(ledger, tmp_path, complete, told.append, now=lambda now=now: now, **PACE)
    assert not work(ledger, tmp_path, complete, told.append, now=lambda: 60, **PACE)
    summary = ledger.summary()
    assert (summary["studies"][DONE], summary["studies"][FAILED], summary["to_deliver"]) == (1, 1, 3)
    assert summary["notes"][0]["note"] == "nothing in it"
    assert not any((tmp_path / "work").iterdir())
    failed, _, warned = (line.split(" ", 2)[2] for line in told)
    assert (failed, warned) == ("failed: nothing in it", "warning: t2w lies 9.0 mm off t1n")


def test_a_full_disk_is_no_failure_of_the_study(tmp_path, ledger):
    put(ledger, tmp_path, study_of(2))

    def full(source: Path, out: Path) -> None:
        raise SystemLimitError("disk full")

    assert work(ledger, tmp_path, full, print, now=lambda: 50, **PACE)
    assert ledger.summary()["studies"][RECEIVING] == 1
    derive = Derive()
    assert not work(ledger, tmp_path, derive, print, now=lambda: 51, **PACE)
    assert work(ledger, tmp_path, derive, print, now=lambda: 70, **PACE)
    assert ledger.summary()["to_deliver"] == 2


# The courier


class Pacs:
    """A PACS that can refuse, break off, or be slow; keeps what it took."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.bodies: list[bytes] = []
        self.answer: Callable[[int], int] = lambda number: 0
        self.asked = 0

    def store(self, event: evt.Event) -> int:
        self.asked += 1
        status = self.answer(self.asked)
        if status == 0:
            self.taken.append(event.request.AffectedSOPInstanceUID)
            self.bodies.append(event.encoded_dataset())
        return status

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[int]:
        entity = AE(ae_title="PACS")
        entity.add_supported_context(MR)
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self.store)])
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@pytest.fixture
def results(tmp_path, ledger) -> list[str]:
    """Five results that wait; their SOP UIDs."""
    put(ledger, tmp_path, study_of(5))
    work(ledger, tmp_path, Derive(), print, now=lambda: 50, **PACE)
    from pydicom import dcmread

    return [dcmread(file).SOPInstanceUID for file in sorted((tmp_path / "results").rglob("*.dcm"))]


def test_what_a_pacs_refuses_is_offered_again_and_only_that(tmp_path, ledger, results):
    pacs, told = Pacs(), []
    pacs.answer = lambda number: 0xA700 if number == 3 else 0
    with pacs.listening() as port:
        to = StorePeer("PACS", "127.0.0.1", port, "MEDK2N", 10)
        assert deliver(ledger, tmp_path, to, lambda: 100, told.append)
        assert pacs.taken == results[:2]
        assert "answered 0xA700" in told[0]
        assert not deliver(ledger, tmp_path, to, lambda: 101, told.append)  # it waits
        assert deliver(ledger, tmp_path, to, lambda: 110, told.append)
    assert pacs.taken == results
    assert ledger.summary()["to_deliver"] == 0


@pytest.mark.parametrize(
    "to", ["PACS@127.0.0.1:{port}", "http://127.0.0.1:{port}/dicom-web"], ids=["C-STORE", "STOW-RS"]
)
def test_a_pacs_that_is_down(tmp_path, ledger, results, to):
    told: list[str] = []
    peer = destination(to.format(port=free_port()), own_aet="MEDK2N", timeout_s=5)
    now = 100.0
    for _ in range(4):
        assert deliver(ledger, tmp_path, peer, lambda now=now: now, told.append)
        now += 60
    assert ledger.summary()["to_deliver"] == 5
    assert "does not answer" in told[-1]


def test_a_pacs_that_is_slow_is_left_in_time(tmp_path, ledger, results):
    pacs, told = Pacs(), []
    pacs.answer = lambda number: time.sleep(3) or 0
    with pacs.listening() as port:
        started = time.monotonic()
        deliver(ledger, tmp_path, StorePeer("PACS", "127.0.0.1", port, "MEDK2N", 1), lambda: 100, told.append)
        assert time.monotonic() - started < 3
    assert "broke off" in told[0]
    assert ledger.summary()["to_deliver"] == 5


def test_waits_grow_to_an_hour_and_are_not_alike():
    waits = [[backoff_s(n) for _ in range(20)] for n in range(15)]
    assert all(2.5 <= wait <= 5 for wait in waits[0])
    assert all(1800 <= wait <= 3600 for wait in waits[14])
    assert len({round(wait, 3) for wait in waits[5]}) > 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PACS", "expected AET@HOST:PORT"),
        ("PACS@host:0", "expected AET@HOST:PORT"),
        ("PACS@host:99999", "expected AET@HOST:PORT"),
        ("A\\B@host:104", "expected AET@HOST:PORT"),
        ("https://me:secret@host/dicom-web", "netrc"),
    ],
)
def test_destinations_that_are_refused(text, message):
    with pytest.raises(UsageError, match=message) as refused:
        destination(text, own_aet="MEDK2N")
    assert "secret" not in str(refused.value)


# All of it


@contextmanager
def node(folder: Path, complete, to=None, pace: Pace | None = None, port: int | None = None) -> Iterator[int]:
    port, stop, told = port or free_port(), threading.Event(), []
    pace = pace or Pace(quiet_s=1.0, patience_s=30.0)
    thread = threading.Thread(target=serve, args=(folder, Door(port=port), pace, complete, to, told.append, stop))
    thread.start()
    try:
        wait_for(lambda: any("listens" in line for line in told))
        yield port
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(true: Callable[[], object], seconds: float = 40) -> None:
    for _ in range(int(seconds * 10)):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def test_a_full_disk_does_not_end_a_node(tmp_path, monkeypatch):
    """Neither the worker's nor the courier's turn: both go on when there is room again."""
    pacs, failures = Pacs(), {"work": 2, "deliver": 2}

    def sometimes(name: str):
        whole = getattr(run, name)

        def turn(*arguments, **settings):
            if failures[name]:
                failures[name] -= 1
                raise sqlite3.OperationalError("database or disk is full")
            return whole(*arguments, **settings)

        return turn

    monkeypatch.setattr(run, "_REST_S", 0.1)
    for name in failures:
        monkeypatch.setattr(run, name, sometimes(name))
    with pacs.listening() as pacs_port:
        to = StorePeer("PACS", "127.0.0.1", pacs_port, "MEDK2N", 10)
        with node(tmp_path, Derive(), to) as port:
            assert store(port, study_of(3)) == [0] * 3
            wait_for(lambda: len(set(pacs.taken)) == 3)
    assert failures == {"work": 0, "deliver": 0}


def test_interleaved_studies_give_one_result_each_and_a_lost_folder_is_told(tmp_path):
    first, second = study_of(4), study_of(5)
    derive = Derive()
    mixed = [data for pair in zip(first, second, strict=False) for data in pair] + second[4:]
    with node(tmp_path, derive) as port:
        assert store(port, mixed) == [0] * 9
        wait_for(lambda: len(derive.studies) == 2)
        assert store(port, mixed[::-1]) == [0] * 9
        (tmp_path / INCOMING).rename(tmp_path / "away")
        assert store(port, study_of(1)) == [0xA700]
        (tmp_path / "away").rename(tmp_path / INCOMING)
        time.sleep(2)
    assert sorted(derive.studies) == [4, 5]


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_a_study_goes_from_orthanc_to_the_node_and_its_results_back(tmp_path, way):
    """Down when the results are ready, back later; the same study sent twice; one result under the same study UID."""
    objects, port, derive = study_of(6), free_port(), Derive()
    with Orthanc(tmp_path / "orthanc", port) as orthanc:
        to = f"ORTHANC@127.0.0.1:{orthanc.dicom_port}" if way == "C-STORE" else orthanc.web
        for number, data in enumerate(objects):
            data.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
            orthanc.upload(tmp_path / f"{number}.dcm")
        peer = destination(to, own_aet="MEDK2N", timeout_s=10)
        with node(tmp_path / "node", derive, peer, port=port):
            orthanc.send_all()
            wait_for(lambda: len(orthanc.found(objects[0].StudyInstanceUID)) == 12)
            orthanc.send_all()  # everything: the study again, and our own results
            time.sleep(3)
        assert derive.studies == [6]
        found = orthanc.found(objects[0].StudyInstanceUID)
        assert len({one["00080018"]["Value"][0] for one in found}) == 12


def test_a_pacs_that_comes_back_gets_its_results(tmp_path):
    objects = study_of(4)
    pacs, pacs_port = Pacs(), free_port()
    peer = StorePeer("PACS", "127.0.0.1", pacs_port, "MEDK2N", 5)
    with node(tmp_path, Derive(), peer) as port:
        assert store(port, objects) == [0] * 4
        ledger = Ledger(tmp_path / LEDGER)
        wait_for(lambda: ledger.summary()["delivery_problem"])
        with pacs.listening(pacs_port):
            wait_for(lambda: len(pacs.taken) == 4)
        ledger.close()


KILLED = """
import sys, threading
from pathlib import Path
from medk2n.node.receive import Door
from medk2n.node.run import Pace, serve
from medk2n.node.deliver import StorePeer
sys.path.insert(0, sys.argv[4])
from tests.node.objects import Derive
import time
class Slow(Derive):
    def __call__(self, source, out):
        told = super().__call__(source, out)
        time.sleep(0.3)
        return told
peer = StorePeer("PACS", "127.0.0.1", int(sys.argv[3]), "MEDK2N", 5)
serve(Path(sys.argv[1]), Door(port=int(sys.argv[2])), Pace(0.3, 1.0), Slow(), peer, print, threading.Event())
"""


@pytest.mark.slow
def test_a_node_that_is_killed_goes_on_where_it_stood(tmp_path):
    """Killed -9 six times while six studies come in, are worked on and go out: every result once."""
    port, pacs, root = free_port(), Pacs(), Path(__file__).parents[2]
    studies = [study_of(5) for _ in range(6)]
    left = [data for study in studies for data in study]

    def start(pacs_port: int) -> subprocess.Popen:
        words = [sys.executable, "-c", KILLED, tmp_path / "node", port, pacs_port, root]
        return subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with pacs.listening() as pacs_port:
        for turn in range(7):
            process = start(pacs_port)
            try:
                wait_for(lambda: answers(port))
                if left:
                    with calling(port) as association:  # what is answered for is not sent again
                        done = [d for d in left[: 5 + turn] if association.send_c_store(d).get("Status") == 0]
                    left = [data for data in left if data not in done]
                if turn < 6:
                    time.sleep(0.15 * turn % 0.7)
                else:
                    wait_for(lambda: len(set(pacs.taken)) >= 30)
            finally:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
    assert not left
    assert len(set(pacs.taken)) >= 30
    ledger = Ledger(tmp_path / "node" / LEDGER)
    summary = ledger.summary()
    ledger.close()
    assert summary["objects"] == 30
    assert summary["studies"][FAILED] == 0
    assert list((tmp_path / "node" / INCOMING).glob(".tmp-*")) == []


def answers(port: int) -> bool:
    with calling(port) as association:
        return association.is_established


@pytest.mark.slow
def test_throughput_recipe_loses_and_doubles_nothing():
    """recipes/node_throughput.py at a tenth of a minute; its full size is a slow run of its own."""
    if shutil.which("storescu") is None:
        pytest.skip("storescu is not installed (apt-get install dcmtk)")
    recipe = Path(__file__).parents[2] / "recipes" / "node_throughput.py"
    words = [sys.executable, recipe, "--objects", "40", "--associations", "2", "--port", str(free_port())]
    said = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True).stdout
    row = [cell.strip() for cell in said.splitlines()[-1].strip("|").split("|")]
    assert row[:4] == ["2", "40", "0", "0"]
