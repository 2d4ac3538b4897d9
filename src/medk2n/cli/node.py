"""`medk2n node`: a DICOM node for a PACS, or one folder in and one out for a pipeline."""

import json
import logging
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.common import (
    AlignOption,
    DeviceOption,
    ForceOption,
    ModelOption,
    OverwriteOption,
    SeedOption,
    TargetsOption,
)
from medk2n.cli.complaints import one_line, say
from medk2n.config.align import Align

if TYPE_CHECKING:
    from medk2n.node.complete import Completer

RESULT = "result.json"


def node(
    folder: Annotated[Path | None, typer.Argument(help="Folder of the node: what came, what is on its way.")] = None,
    once: Annotated[
        Path | None, typer.Option("--once", metavar="FOLDER", help="No node: complete the study in this folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --once: folder for the series and result.json.")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Tell what stands where in the node's folder (JSON).")
    ] = False,
    send_to: Annotated[
        str | None,
        typer.Option("--send-to", metavar="AET@HOST:PORT|URL", help="Results go there, by C-STORE or STOW-RS."),
    ] = None,
    aet: Annotated[str, typer.Option("--aet", help="The node's own AE title.")] = "MEDK2N",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 11112,
    callers: Annotated[
        list[str] | None, typer.Option("--allow-aet", metavar="AET", help="AE title that may call; repeatable.")
    ] = None,
    addresses: Annotated[
        list[str] | None,
        typer.Option("--allow-address", metavar="ADDRESS", help="Address or network (10.0.0.0/24) that may call."),
    ] = None,
    quiet: Annotated[
        float, typer.Option("--quiet", min=0.1, help="Seconds without a new image before a study is taken up.")
    ] = 60.0,
    patience: Annotated[
        float, typer.Option("--patience", min=0.1, help="The same while a series seems to lack images.")
    ] = 600.0,
    keep: Annotated[
        float, typer.Option("--keep-hours", min=0, help="How long images and results stay once all is delivered.")
    ] = 24.0,
    targets: TargetsOption = None,
    burn_in: Annotated[bool, typer.Option("--burn-in/--no-burn-in", help="Write SYNTHETIC into the pixels.")] = True,
    model: ModelOption = "default",
    device: DeviceOption = "auto",
    align: AlignOption = Align.warn,
    force: ForceOption = False,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Complete the studies that a PACS sends, and send the series made back to it.

    Examples: medk2n node NODE --send-to PACS@10.0.0.5:104 --host 0.0.0.0 --allow-aet PACS --allow-address 10.0.0.5

    medk2n node --once FOLDER -o OUT

    A node that was stopped or killed goes on where it stood. What the PACS does not take is offered again.
    """
    from medk2n.cli.common import modality_names
    from medk2n.errors import UsageError

    if (folder is None) == (once is None):
        raise UsageError("give either the node's FOLDER or --once FOLDER, one of the two; see 'medk2n node --help'")
    if (once is None) != (out is None):
        raise UsageError("--once FOLDER and --out OUT belong together; a node keeps its results in its own folder")
    if status:
        say(*json.dumps(_status(folder or Path()), indent=2).splitlines())
        return
    _require_extra()
    wanted = modality_names(targets, "--target")
    how: dict[str, Any] = {"seed": seed, "burn_in": burn_in, "align": align.value, "force": force}
    if once and out:
        _once(once, out, model, device, wanted, how, overwrite=overwrite)
        return
    from medk2n.node.deliver import destination
    from medk2n.node.receive import Door
    from medk2n.node.run import Pace, alone_in, serve

    door = Door(aet, host, port, tuple(callers or ()), tuple(addresses or ()))
    to = destination(send_to, own_aet=aet) if send_to else None
    completer = _completer(model, device, wanted, how)
    _say_nothing_of_patients()
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with alone_in(folder or Path()) as own:
            serve(own, door, Pace(quiet, max(quiet, patience), keep * 3600), completer, to, _log, stop)
    finally:
        signal.signal(signal.SIGTERM, before)


def _once(
    source: Path, out: Path, model: str, device: str, targets: list[str], how: dict[str, Any], *, overwrite: bool
) -> None:
    from medk2n.cli.common import run_manifest

    options = {"once": source, "out": out, "model": model, "device": device, "target": targets}
    options |= {**how, "overwrite": overwrite}
    with run_manifest(out / RESULT, "node --once", options, overwrite=overwrite) as run:
        completer = _completer(model, device, targets, how)
        facts = completer(source, out, overwrite=overwrite)
        run.outputs += facts.pop("files")
        run.facts |= facts
    for line in facts["warnings"]:
        say(f"medk2n: warning: {one_line(line)}", err=True)
    say(f"{facts['study']}: {', '.join(facts['targets']) or 'lacks nothing'}; {out / RESULT}")


def _completer(model: str, device: str, targets: list[str], how: dict[str, Any]) -> "Completer":
    from medk2n.checkpoint import find_model, read_config
    from medk2n.cli.common import resolve_device
    from medk2n.errors import UnknownNameError
    from medk2n.node.complete import Completer

    folder = find_model(model)
    known = read_config(folder).modalities
    if unknown := [name for name in targets if name not in known]:
        raise UnknownNameError(
            f"--target {', '.join(unknown)}: the model does not know it; it knows {', '.join(known)}"
        )
    return Completer(folder, device=resolve_device(device), targets=targets, **how)


def _status(folder: Path) -> dict[str, object]:
    from medk2n.errors import UsageError
    from medk2n.node.ledger import Ledger
    from medk2n.node.run import LEDGER

    if not (folder / LEDGER).is_file():
        raise UsageError(f"{folder}: no node was started in it; expected the folder that `medk2n node` was given")
    ledger = Ledger(folder / LEDGER)
    try:
        return ledger.summary()
    finally:
        ledger.close()


def _require_extra() -> None:
    from importlib.util import find_spec

    from medk2n.errors import UsageError

    if any(find_spec(name) is None for name in ("pynetdicom", "dicomweb_client", "highdicom")):
        raise UsageError('a node needs the extra "dicom": pip install "medk2n[dicom]"')


def _say_nothing_of_patients() -> None:
    """The DICOM libraries quote values of data sets when something is odd about them; a node's output never does."""
    warnings.filterwarnings("ignore", module="pydicom")
    logger = logging.getLogger("pynetdicom")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def _log(line: str) -> None:
    say(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {one_line(line)}")


def _end(*_: object) -> None:
    raise SystemExit(0)  # no Exception: it is not a study that failed
