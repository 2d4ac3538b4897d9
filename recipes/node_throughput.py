"""How fast a node takes objects, and whether each arrives once: N MR objects of 513 kB over 1, 2 and 4 associations.

    python recipes/node_throughput.py [--objects 3000] [--associations 1,2,4]

The node runs as people run it, in a process of its own, and syncs every object and its line in the ledger to the disk
before it answers. Each association is a process that sends its share, all of it a second time, and whatever was not
answered for again, as senders do.
"""

import argparse
import json
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

_MR = "1.2.840.10008.5.1.4.1.1.4"
_SIDE = 506
_TRIES = 5


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=3000)
    parser.add_argument("--associations", default="1,2,4")
    parser.add_argument("--port", type=int, default=11119)
    args = parser.parse_args(arguments)
    print("| associations | objects | lost | doubled | objects/s | repeated | the second time, objects/s |")
    print("|---|---|---|---|---|---|---|")
    for associations in map(int, args.associations.split(",")):
        row = measure(args.objects, associations, args.port)
        print("| " + " | ".join(str(cell) for cell in (associations, args.objects, *row)) + " |", flush=True)


def measure(objects: int, associations: int, port: int) -> tuple[int, int, str, int, str]:
    """Lost, doubled, objects a second, sendings that had to be repeated, objects a second of the second time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "node"
        command = [sys.executable, "-m", "medk2n", "node", folder, "--port", port, "--quiet", 3600, "--patience", 3600]
        node = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        try:
            _wait_for_echo(port)
            uids = [generate_uid() for _ in range(objects)]
            first, repeated = _send(uids, associations, port)
            second, _ = _send(uids, associations, port)
            told = subprocess.run([*map(str, command[:5]), "--status"], capture_output=True, check=True).stdout
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait()
        files = len(list((folder / "incoming").iterdir()))
        known = json.loads(told)["objects"]
        return objects - known, files - known, f"{objects / first:.0f}", repeated, f"{objects / second:.0f}"


def _send(uids: list[str], associations: int, port: int) -> tuple[float, int]:
    shares = [(uids[k::associations], port) for k in range(associations)]
    with multiprocessing.get_context("spawn").Pool(associations) as pool:
        pool.map(_nothing, range(associations))  # they have started
        begun = time.perf_counter()
        repeated = pool.map(_send_share, shares)
        return time.perf_counter() - begun, sum(repeated)


def _nothing(_: int) -> None:
    return None


def _send_share(share: tuple[list[str], int]) -> int:
    left, port = share
    repeated = 0
    for _ in range(_TRIES):
        association = _entity().associate("127.0.0.1", port, ae_title="MEDK2N")
        unanswered = []
        for number, uid in enumerate(left):
            if not association.is_established:
                unanswered += left[number:]
                break
            if association.send_c_store(_object(uid, number)).get("Status") != 0:
                unanswered.append(uid)
        if association.is_established:
            association.release()
        left = unanswered
        repeated += len(left)
        if not left:
            return repeated
    raise SystemExit(f"{len(left)} objects were never answered for")


def _entity() -> AE:
    entity = AE(ae_title="SCANNER")
    entity.dimse_timeout = 10
    entity.add_requested_context(_MR, ExplicitVRLittleEndian)
    return entity


def _wait_for_echo(port: int) -> None:
    for _ in range(300):
        association = _entity().associate("127.0.0.1", port, ae_title="MEDK2N")
        if association.is_established:
            association.release()
            return
        time.sleep(0.1)
    raise SystemExit("the node does not answer")


def _object(uid: str, number: int) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = _MR, uid
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
