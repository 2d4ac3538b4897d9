"""`medk2n node` with a model: a study out of a real Orthanc and back into it, and one folder in, one out."""

import json
import signal
import subprocess
import sys
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pynetdicom", reason='the extra "dicom" is not installed')

import requests
from pydicom import dcmread
from tests.dicom.conftest import AFFINE, scan
from tests.dicom.planted import OF_A_SERIES, OF_THE_PATIENT, found, plant_study
from tests.dicom.sources import CONTRASTS, Patient, classic

from medk2n.cli.main import main
from medk2n.dicom.attributes import KEPT
from medk2n.errors import UsageError
from medk2n.node.run import alone_in

from .orthanc import Orthanc, free_port
from .test_node import Pacs, calling, wait_for

TOKEN = "UNMISTAKABLE"


@pytest.fixture
def source(tmp_path) -> Path:
    """A folder with T1 and T2 of a patient whose name is not to be met again in what we say."""
    patient = Patient(f"{TOKEN}^ANON", f"{TOKEN}1")
    classic(tmp_path / "source", scan(0), AFFINE, patient, number=2, **CONTRASTS["t1n"])
    classic(tmp_path / "source", scan(1), AFFINE, patient, number=3, **CONTRASTS["t2w"])
    return tmp_path / "source"


def once(model: Path, source: Path, out: Path, *arguments: object) -> int:
    options = ["--model", str(model), "--device", "cpu", *map(str, arguments)]
    return main(["node", "--once", str(source), "--out", str(out), *options])


def test_one_folder_in_one_out(model, source, tmp_path, capsys):
    out = tmp_path / "out"
    assert once(model, source, out, "-t", "t2f") == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["exit_code"], result["error"]) == (0, None)
    assert set(result["series"]) == {"t1n", "t2w"}
    assert set(result["targets"]) == {"t2f"}
    made = [Path(one["path"]) for one in result["outputs"] if one["path"].endswith(".dcm")]
    assert len(made) == 2 * scan().shape[2]  # the image and its error
    uid = dcmread(next(source.iterdir())).StudyInstanceUID
    assert {(dcmread(file).StudyInstanceUID, dcmread(file).SyntheticData) for file in made} == {(uid, "YES")}
    assert all(sha256(Path(one["path"]).read_bytes()).hexdigest() == one["sha256"] for one in result["outputs"])
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err + (out / "result.json").read_text() + (out / "report.html").read_text()
    before = (out / "result.json").read_bytes()
    assert once(model, source, out, "-t", "t2f") == 2
    assert (out / "result.json").read_bytes() == before


def test_a_folder_that_cannot_be_used_leaves_a_result_that_says_so(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert once(model, tmp_path / "in", tmp_path / "out") == 2
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["exit_code"] == 2
    assert result["error"] in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]


def test_what_the_gatekeeper_refuses_and_doubts_is_in_the_result(model, source, tmp_path, capsys):
    noise = np.abs(np.random.default_rng(0).normal(300, 100, scan().shape)).astype(np.int16)
    one = dcmread(next(source.iterdir()))
    patient = Patient(f"{TOKEN}^ANON", f"{TOKEN}1")
    patient.study, patient.frame_of_reference = one.StudyInstanceUID, one.FrameOfReferenceUID
    patient.attributes |= {"StudyInstanceUID": patient.study, "FrameOfReferenceUID": patient.frame_of_reference}
    classic(source, noise, AFFINE, patient, number=4, **CONTRASTS["t1c"])
    assert once(model, source, tmp_path / "refused", "-t", "t2f") == 2
    error = json.loads((tmp_path / "refused" / "result.json").read_text())["error"]
    assert "named t1c looks like noise" in error
    assert error in capsys.readouterr().err
    assert once(model, source, tmp_path / "forced", "-t", "t2f", "--force", "--align", "off") == 0
    result = json.loads((tmp_path / "forced" / "result.json").read_text())
    assert (result["checks"]["forced"], result["checks"]["align"], result["checks"]["alignment"]) == (True, "off", {})
    assert result["warnings"][0].startswith("t1c looks like noise")
    assert result["warnings"][0] in capsys.readouterr().err
    assert (result["options"]["force"], result["options"]["align"]) == (True, "off")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.filterwarnings("ignore:The value length")
def test_no_word_of_the_patient_is_in_a_result_of_one_folder(model, tmp_path, capsys):
    words, out = plant_study(tmp_path / "in"), tmp_path / "out"
    assert once(model, tmp_path / "in", out, "-t", "t2f") == 0
    (tmp_path / "in" / "a" / "cut").write_bytes(next((tmp_path / "in" / "a").glob("I*")).read_bytes()[:900])
    assert once(model, tmp_path / "in", tmp_path / "failed", "-t", "t2f") == 2
    told = capsys.readouterr()
    assert found(told.out + told.err, words) == set()
    _only_kept_words([out, tmp_path / "failed"], words)


def _only_kept_words(folders: list[Path], words: dict[str, str]) -> None:
    """No word in a file or its name, but in DICOM those of the attributes that are kept."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".html", ".dcm"}
    for path in files:
        assert found(str(path.relative_to(folders[0].parent)), words) == set()
        assert found(path.read_bytes(), words) <= (set(KEPT) if path.suffix == ".dcm" else set()), path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.filterwarnings("ignore:The value length")
def test_no_word_of_the_patient_stays_in_a_node_or_leaves_it(model, tmp_path):
    """One study is completed, another fails; what came lies in `incoming` until it is forgotten, and nowhere else."""
    sources = [tmp_path / "one", tmp_path / "two"]
    words = plant_study(sources[0]) | plant_study(sources[1])
    assert len(words) >= 200
    slices = sorted((sources[1] / "a").iterdir(), key=lambda path: dcmread(path).InstanceNumber)
    for path in slices[6:8]:
        path.unlink()
    port, folder, pacs, log = free_port(), tmp_path / "node", Pacs(), tmp_path / "log"
    with pacs.listening() as pacs_port:
        to = f"PACS@127.0.0.1:{pacs_port}"
        command = ["node", folder, "--port", port, "--quiet", "2", "--patience", "2", "--send-to", to]
        command += ["--model", model, "--device", "cpu", "-t", "t2f"]
        with log.open("w") as out:
            process = subprocess.Popen([sys.executable, "-m", "medk2n", *map(str, command)], stdout=out, stderr=out)
        try:
            wait_for(lambda: "listens on" in log.read_text())
            with calling(port) as association:
                for file in (path for source in sources for path in sorted(source.rglob("I*"))):
                    assert association.send_c_store(file).Status == 0
            wait_for(lambda: len(pacs.taken) == 2 * scan().shape[2] and "failed" in log.read_text(), 120)
            told = json.dumps(status(folder))
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    assert "slices are missing" in told
    assert found(told + log.read_text(), words) == set()
    ours = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "node.sqlite" for path in ours)
    for path in ours:
        assert found(str(path.relative_to(folder)), words) == set()
        if path.suffix != ".dcm":
            assert found(path.read_bytes(), words) == set(), path
    assert found(b"".join(pacs.bodies), words) <= set(KEPT)
    assert "PatientName" in found(b"".join(pacs.bodies), words)
    tags = {element.keyword for raw in pacs.bodies for element in dcmread(BytesIO(raw))}
    assert not tags & (set(OF_THE_PATIENT + OF_A_SERIES) - set(KEPT)) - {
        "SeriesDescription", "ImageComments", "DerivationDescription", "ManufacturerModelName", "SoftwareVersions",
    }  # fmt: skip  # those are ours


@pytest.mark.slow
def test_a_study_out_of_orthanc_comes_back_completed(model, source, tmp_path):
    """Found under its own study UID, voxel by voxel what the node made; the second sending changes nothing."""
    port, folder = free_port(), tmp_path / "node"
    with Orthanc(tmp_path / "orthanc", port) as orthanc:
        for file in source.iterdir():
            orthanc.upload(file)
        uid = dcmread(next(source.iterdir())).StudyInstanceUID
        words = ["node", folder, "--send-to", f"ORTHANC@127.0.0.1:{orthanc.dicom_port}", "--port", port, "--quiet", "4"]
        words += ["--allow-aet", "ORTHANC", "--model", model, "--device", "cpu", "-t", "t2f"]
        with (tmp_path / "log").open("w") as log:
            command = [sys.executable, "-m", "medk2n", *map(str, words)]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: "listens on" in (tmp_path / "log").read_text())
            slices = scan().shape[2]
            orthanc.send_all()
            wait_for(lambda: len(orthanc.found(uid)) == 4 * slices, 120)
            orthanc.send_all()
            wait_for(lambda: status(folder)["to_deliver"] == 0)
            assert len(orthanc.found(uid)) == 4 * slices
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        results = {dcmread(file).SOPInstanceUID: file for file in (folder / "results").rglob("*.dcm")}
        assert len(results) == 2 * slices
        for instance in orthanc.get("instances"):
            stored = requests.get(f"{orthanc.url}/instances/{instance}/file", timeout=20).content
            data = dcmread(BytesIO(stored))
            if data.SOPInstanceUID in results:
                assert data.PixelData == dcmread(results[data.SOPInstanceUID]).PixelData
    assert TOKEN not in (tmp_path / "log").read_text()
    assert {path.stat().st_mode & 0o77 for path in (folder,)} == {0}


def status(folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "medk2n", "node", str(folder), "--status"], capture_output=True, check=True
    )
    return json.loads(done.stdout)


def test_two_nodes_never_share_a_folder(tmp_path):
    with (
        alone_in(tmp_path / "node"),
        pytest.raises(UsageError, match="another node works in it"),
        alone_in(tmp_path / "node"),
    ):
        pass
    with alone_in(tmp_path / "node"):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is no node's folder"), alone_in(tmp_path / "mine"):
        pass


BAD = {
    "nothing": ([], "FOLDER or --once"),
    "both": (["NODE", "--once", "IN", "-o", "OUT"], "FOLDER or --once"),
    "once without out": (["--once", "IN"], "belong together"),
    "out of a node": (["NODE", "-o", "OUT"], "belong together"),
    "no status": (["NODE", "--status"], "no node was started in it"),
    "open to all": (["NODE", "--host", "0.0.0.0"], "--allow-aet"),
    "a destination": (["NODE", "--send-to", "PACS"], "AET@HOST:PORT"),
    "a target": (["NODE", "-t", "pet"], "does not know it"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_requests(model, tmp_path, capsys, arguments, message):
    places = {name: str(tmp_path / name) for name in ("NODE", "IN", "OUT")}
    words = [places.get(word, word) for word in arguments]
    assert main(["node", "--model", str(model), "--device", "cpu", *words]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
