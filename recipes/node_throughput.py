"""How fast a node takes objects, and whether each arrives once: N MR objects of 513 kB over 1, 2 and 4 associations.

    python recipes/node_throughput.py [--objects 3000] [--associations 1,2,4]

The node runs as people run it, in a process of its own, and syncs every object and its line in the ledger to the disk
before it answers. The senders are dcmtk's storescu (Debian: dcmtk), one a share of the objects; all send them twice.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

_MR = "1.2.840.10008.5.1.4.1.1.4"
_SIDE = 506


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=3000)
    parser.add_argument("--associations", default="1,2,4")
    parser.add_argument("--port", type=int, default=11119)
    args = parser.parse_args()
    if shutil.which("storescu") is None:
        raise SystemExit("storescu is not installed (apt-get install dcmtk)")
    print("| associations | objects | lost | doubled | objects/s | the second time, objects/s |")
    print("|---|---|---|---|---|---|", flush=True)
    for associations in map(int, args.associations.split(",")):
        row = measure(args.objects, associations, args.port)
        print("| " + " | ".join(str(cell) for cell in (associations, args.objects, *row)) + " |", flush=True)


def measure(objects: int, associations: int, port: int) -> tuple[int, int, str, str]:
    """Objects lost, files too many, and objects a second, the first and the second time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, shares = Path(temporary, "node"), [Path(temporary, str(k)) for k in range(associations)]
        for number in range(objects):
            share = shares[number % associations]
            share.mkdir(exist_ok=True)
            _object(number).save_as(share / f"{number}.dcm", enforce_file_format=True)
        command = [sys.executable, "-m", "medk2n", "node", folder, "--port", port, "--quiet", 3600, "--patience", 3600]
        node = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        try:
            _wait_for_echo(port)
            first, second = _send(shares, port), _send(shares, port)
            told = subprocess.run([*map(str, command[:5]), "--status"], capture_output=True, check=True).stdout
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait()
        known, files = json.loads(told)["objects"], len(list((folder / "incoming").iterdir()))
        return objects - known, files - known, f"{objects / first:.0f}", f"{objects / second:.0f}"


def _send(shares: list[Path], port: int) -> float:
    """Seconds until every share was answered for."""
    begun = time.perf_counter()
    words = ["storescu", "-aec", "MEDK2N", "-aet", "SCANNER", "--scan-directories", "127.0.0.1", str(port)]
    senders = [subprocess.Popen([*words, str(share)]) for share in shares]
    if any(sender.wait() for sender in senders):
        raise SystemExit("a sender says that an object was refused")
    return time.perf_counter() - begun


def _wait_for_echo(port: int) -> None:
    for _ in range(300):
        words = ["echoscu", "-aec", "MEDK2N", "127.0.0.1", str(port)]
        if subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.1)
    raise SystemExit("the node does not answer")


def _object(number: int) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = _MR
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = "1.2.3", "1.2.3.4", number + 1
    data.Modality, data.PatientID, data.PatientName = "MR", "", ""
    data.Rows = data.Columns = _SIDE
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = np.full((_SIDE, _SIDE), number % 4096, np.uint16).tobytes()
    return data


if __name__ == "__main__":
    main()
