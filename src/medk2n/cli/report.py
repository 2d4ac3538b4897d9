"""`medk2n report`: a page about a training run."""

from pathlib import Path
from typing import Annotated

import typer

from medk2n.cli.common import ManifestOption, OverwriteOption
from medk2n.cli.complaints import say

_NAME = "report.html"


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that train --out wrote; may still be at work.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=f"HTML file to write; {_NAME} in the run where left out.")
    ] = None,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Draw how a training run went: validation, losses, a watched slice as it came along, costs and settings.

    One HTML file that opens from disk. The run is only read, so it may go on meanwhile.
    """
    from medk2n.cli.common import run_manifest
    from medk2n.errors import UsageError
    from medk2n.io.atomic import write_text
    from medk2n.io.outputs import output_file
    from medk2n.report.training import render_training

    path = out or run / _NAME
    if path.suffix != ".html":
        raise UsageError(f"--out {path}: expected the name of a .html file")
    options = {"run": run, "out": path, "overwrite": overwrite}
    with (
        run_manifest(manifest, "report", options, overwrite=overwrite) as it,
        output_file(path, overwrite=overwrite),
    ):
        write_text(path, render_training(run))
        it.outputs.append(path)
    say(f"Report: {path}")
