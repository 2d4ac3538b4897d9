"""`medk2n index`: what is in a data set and what looks wrong with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medk2n.cli.common import DATA_HELP, ManifestOption, OverwriteOption, SeedOption
from medk2n.cli.complaints import SOME_FAILED, one_line

if TYPE_CHECKING:
    from medk2n.data.inventory import Inventory
    from medk2n.data.subject import Subject
    from medk2n.errors import Medk2nError

_MOST_LINES = 20


def index(
    data: Annotated[Path, typer.Argument(help=DATA_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables and the figure.")],
    subjects: Annotated[list[str] | None, typer.Option("--subjects", help="Ids to keep: a comma list.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Ids to leave out: a comma list.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="VAL,TEST",
            help="Part the patients: shares to watch and to test on (0.1,0.2), into split.json for train and evaluate.",
        ),
    ] = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """See what a data set holds before you use it: subjects, modalities, grids, missing patterns, suspicious cases.

    Every image is read: unreadable or constant ones, the same voxels under two names, and images displaced against
    the others of their subject by more than a voxel are told. Nothing is changed. A split keeps a patient's sessions,
    and subjects that share an image, together, and is alike in every site and pattern of missing modalities.
    """
    from medk2n.cli.common import run_manifest, split_names
    from medk2n.data.discover import discover
    from medk2n.data.split import FILE, count_parts, draw_split
    from medk2n.io.atomic import write_json
    from medk2n.io.outputs import output_folder
    from medk2n.report.inventory import FILES, PAGE, write_inventory

    options = {"data": data, "out": out, "subjects": subjects, "exclude": exclude, "overwrite": overwrite}
    options |= {"split": split, "seed": seed}
    with run_manifest(manifest, "index", options, overwrite=overwrite) as run:
        shares = _shares(split) if split else None
        faults: dict[str, Medk2nError] = {}
        kept = split_names(subjects) or None
        found = discover(data, subjects=kept, exclude=split_names(exclude), faulty=faults.__setitem__)
        names = [*FILES, *([FILE] if shares else [])]
        with output_folder(out, names, overwrite=overwrite) as place:
            inventory = _read(found, faults)
            drawn = draw_split(found, inventory, validation=shares[0], test=shares[1], seed=seed) if shares else None
            with place.whole(last=PAGE) as new:
                write_inventory(inventory, str(data), new)
                if drawn:
                    write_json(new / FILE, drawn.model_dump())
        run.outputs += [out / name for name in names]
        run.facts["images"] = len(inventory.images)
        run.facts["complaints"] = len(inventory.complaints)
        _tell(inventory, out)
        if drawn:
            typer.echo(f"Split: {count_parts(drawn)}: {out / FILE}")
        if any(complaint.kind == "unreadable" for complaint in inventory.complaints):
            raise typer.Exit(SOME_FAILED)


def _shares(text: str) -> tuple[float, float]:
    from medk2n.errors import UsageError

    try:
        validation, test = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(f"--split {text}: expected two shares, to watch and to test on, such as 0.1,0.2") from error
    return validation, test


def _read(subjects: "list[Subject]", faults: "dict[str, Medk2nError]") -> "Inventory":
    from medk2n.cli.common import progress_bar
    from medk2n.data.inventory import take_inventory

    with progress_bar() as bar:
        line = bar.add_task("reading", total=len(subjects))
        return take_inventory(
            subjects, lambda done, total: bar.update(line, completed=done, total=total), faulty=faults
        )


def _tell(inventory: "Inventory", out: Path) -> None:
    patterns = inventory.patterns()
    typer.echo(f"{sum(map(len, patterns.values()))} subjects, {len(inventory.images)} images")
    for names, having in patterns.items():
        typer.echo(f"  {len(having):5d}  {' '.join(names)}")
    for complaint in inventory.complaints[:_MOST_LINES]:
        whose = f"{complaint.subject} {complaint.modality}".strip()
        typer.echo(one_line(f"{complaint.kind}: {whose}: {complaint.what}"))
    if len(inventory.complaints) > _MOST_LINES:
        typer.echo(f"and {len(inventory.complaints) - _MOST_LINES} more")
    typer.echo(f"Tables and figure: {out}; look at index.png first, then index.md")
