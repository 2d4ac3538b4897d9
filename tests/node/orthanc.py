"""A real PACS on the loopback address: Debian's Orthanc with its DICOMweb plug-in, started and ended by the tests."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest
import requests

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING = "Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Orthanc:
    """One server with its own storage; it can be ended and started again."""

    def __init__(self, folder: Path, node_port: int = 0) -> None:
        self.program = shutil.which("Orthanc")
        if self.program is None or not PLUGIN.is_file():
            pytest.skip(MISSING)
        self.folder = folder
        self.dicom_port, http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{http_port}"
        self.web = f"{self.url}/dicom-web"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "orthanc.json").write_text(json.dumps({
            "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "DicomAet": "ORTHANC", "DicomPort": self.dicom_port, "HttpPort": http_port,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, "DicomCheckCalledAet": True,
            "DicomModalities": {"node": ["MEDK2N", "127.0.0.1", node_port]}, "DicomScuTimeout": 20,
        }))  # fmt: skip
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Orthanc":
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([self.program, self.folder / "orthanc.json"], stdout=log, stderr=log)
        for _ in range(200):
            try:
                self.get("system")
            except requests.ConnectionError:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.1)
            else:
                return self
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(30)

    def get(self, path: str):
        return requests.get(f"{self.url}/{path}", timeout=20).json()

    def upload(self, file: Path) -> None:
        requests.post(f"{self.url}/instances", data=file.read_bytes(), timeout=20).raise_for_status()

    def send_all(self) -> None:
        """Send every study to the node, by C-STORE."""
        for study in self.get("studies"):
            answer = requests.post(f"{self.url}/modalities/node/store", data=study, timeout=300)
            answer.raise_for_status()

    def found(self, study_uid: str) -> list[dict]:
        """Its instances, as QIDO-RS tells them."""
        answer = requests.get(f"{self.web}/studies/{study_uid}/instances", timeout=20)
        return answer.json() if answer.ok and answer.content else []
