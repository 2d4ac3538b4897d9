"""`medk2n index`: what is in a data set and what looks wrong with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medk2n.cli.common import ManifestOption, OverwriteOption
from medk2n.cli.complaints import SOME_FAILED

if TYPE_CHECKING:
    from medk2n.data.inventory import Inventory
    from medk2n.data.subject import Subject

_MOST_LINES = 20


def index(
    data: Annotated[Path, typer.Argument(help="BIDS, study or flat folders, nnU-Net raw, .npz arrays.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables and the figure.")],
    subjects: Annotated[list[str] | None, typer.Option("--subjects", help="Ids to keep: a comma list.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Ids to leave out: a comma list.")] = None,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """See what a data set holds before you use it: subjects, modalities, grids, missing patterns, suspicious cases.

    Every image is read: unreadable or constant ones, the same voxels under two names, and images displaced against
    the others of their subject by more than a voxel are told. Nothing is changed.
    """
    from medk2n.cli.common import run_manifest, split_names
    from medk2n.data.discover import discover
    from medk2n.io.atomic import check_writable, refuse_existing
    from medk2n.report.inventory import FILES, write_inventory

    options = {"data": data, "out": out, "subjects": subjects, "exclude": exclude, "overwrite": overwrite}
    with run_manifest(manifest, "index", options, overwrite=overwrite) as run:
        found = discover(data, subjects=split_names(subjects) or None, exclude=split_names(exclude))
        refuse_existing([out / name for name in FILES], overwrite)
        check_writable(out)
        inventory = _read(found)
        run.outputs += write_inventory(inventory, str(data), out)
        run.facts["images"] = len(inventory.images)
        run.facts["complaints"] = len(inventory.complaints)
        _tell(inventory, out)
        if any(complaint.kind == "unreadable" for complaint in inventory.complaints):
            raise typer.Exit(SOME_FAILED)


def _read(subjects: "list[Subject]") -> "Inventory":
    from rich.console import Console
    from rich.progress import Progress

    from medk2n.data.inventory import take_inventory

    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("reading", total=len(subjects))
        return take_inventory(subjects, lambda done, total: bar.update(line, completed=done, total=total))


def _tell(inventory: "Inventory", out: Path) -> None:
    patterns = inventory.patterns()
    typer.echo(f"{sum(map(len, patterns.values()))} subjects, {len(inventory.images)} images")
    for names, having in patterns.items():
        typer.echo(f"  {len(having):5d}  {' '.join(names)}")
    for complaint in inventory.complaints[:_MOST_LINES]:
        typer.echo(f"{complaint.kind}: {complaint.subject} {complaint.modality}: {complaint.what}")
    if len(inventory.complaints) > _MOST_LINES:
        typer.echo(f"and {len(inventory.complaints) - _MOST_LINES} more")
    typer.echo(f"Tables and figure: {out}; look at index.png first, then index.md")
