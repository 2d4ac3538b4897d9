"""`medk2n index`: what is in a data set and what looks wrong with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.common import DATA_HELP, ManifestOption, ModelOption, OverwriteOption, PreferOption, SeedOption
from medk2n.cli.complaints import SOME_FAILED, one_line, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medk2n.data.inventory import Found, Inventory
    from medk2n.data.subject import LeftOut, Subject
    from medk2n.errors import Medk2nError
    from medk2n.gatekeeper import Gatekeeper
    from medk2n.io.volume import Volume

_MOST_LINES = 20


def index(
    data: Annotated[Path, typer.Argument(help=DATA_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables and the figure.")],
    subjects: Annotated[list[str] | None, typer.Option("--subjects", help="Ids to keep: a comma list.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Ids to leave out: a comma list.")] = None,
    prefer: PreferOption = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="VAL,TEST",
            help="Part the patients: shares to watch and to test on (0.1,0.2), into split.json for train and evaluate.",
        ),
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option("--patients", metavar="TABLE", help="Columns subject, patient: which subjects are one patient."),
    ] = None,
    model: ModelOption = "default",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """See what a data set holds before you use it: subjects, modalities, grids, missing patterns, suspicious cases.

    Every image is read: unreadable or constant ones, the same voxels under two names, images displaced against
    the first of their subject by 2 mm or more, mirrored or another patient's, and what is no scan or not what its
    name says (as far as V of --model knows) are told. Nothing is changed. A split keeps a patient's sessions,
    and subjects that share an image, together, and is alike in every site and pattern of missing modalities.
    """
    from medk2n.cli.common import LeftOutFiles, gatekeeper, run_manifest, split_names
    from medk2n.data.discover import discover
    from medk2n.data.split import FILE, count_parts, draw_split, patients_of, read_patients
    from medk2n.io.atomic import write_json
    from medk2n.io.outputs import output_folder
    from medk2n.report.inventory import FILES, PAGE, write_inventory

    options = {"data": data, "out": out, "subjects": subjects, "exclude": exclude, "prefer": prefer}
    options |= {"split": split, "patients": patients, "model": model, "seed": seed, "overwrite": overwrite}
    with run_manifest(manifest, "index", options, overwrite=overwrite) as run:
        shares = _shares(split) if split else None
        faults: dict[str, Medk2nError] = {}
        kept, files = split_names(subjects) or None, LeftOutFiles()
        told: dict[str, Any] = {"faulty": faults.__setitem__, "left_out": files.add}
        found = discover(data, subjects=kept, exclude=split_names(exclude), prefer=split_names(prefer), **told)
        whose = patients_of(found, read_patients(patients, [s.id for s in found]) if patients else None)
        how = {"seed": seed, "patients": whose}
        names = [*FILES, *([FILE] if shares else [])]
        with output_folder(out, names, overwrite=overwrite) as place:
            inventory = _read(found, faults, files.of, gatekeeper(model))
            drawn = draw_split(found, inventory, validation=shares[0], test=shares[1], **how) if shares else None
            with place.whole(last=PAGE) as new:
                write_inventory(inventory, str(data), new)
                if drawn:
                    write_json(new / FILE, drawn.model_dump())
        run.outputs += [out / name for name in names]
        run.facts["images"] = len(inventory.images)
        run.facts["complaints"] = len(inventory.complaints)
        _tell(inventory, out)
        if drawn:
            say(f"Split: {count_parts(drawn)}: {out / FILE}")
            _tell_patients(found, whose)
        if any(complaint.kind == "unreadable" for complaint in inventory.complaints):
            raise typer.Exit(SOME_FAILED)


def _shares(text: str) -> tuple[float, float]:
    from medk2n.errors import UsageError

    try:
        validation, test = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(f"--split {text}: expected two shares, to watch and to test on, such as 0.1,0.2") from error
    return validation, test


def _read(
    subjects: "list[Subject]",
    faults: "dict[str, Medk2nError]",
    left_out: "dict[str, list[LeftOut]]",
    keeper: "Gatekeeper",
) -> "Inventory":
    from medk2n.cli.common import progress_bar
    from medk2n.data.inventory import take_inventory

    with progress_bar() as bar:
        line = bar.add_task("reading", total=len(subjects))

        def progress(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        def examine(volumes: "Mapping[str, Volume]", first: str) -> "Found":
            examined = keeper.examine(volumes, first)
            return examined.doubts, examined.pairs

        return take_inventory(subjects, progress, faulty=faults, left_out=left_out, examine=examine)


def _tell_patients(found: "list[Subject]", whose: "dict[str, str]") -> None:
    """Names alone rarely tell that two subjects are one patient: then a person must know that nobody looked."""
    alone = sum(not subject.patient and whose[subject.id] == subject.id for subject in found)
    say(f"{len(whose)} subjects are taken for {len(set(whose.values()))} patients")
    if alone:
        say(f"Neither layout nor name tells a patient behind {alone} of them: if some are of one, say so (--patients)")


def _tell(inventory: "Inventory", out: Path) -> None:
    patterns = inventory.patterns()
    say(f"{sum(map(len, patterns.values()))} subjects, {len(inventory.images)} images")
    for names, having in patterns.items():
        say(f"  {len(having):5d}  {' '.join(names)}")
    for complaint in inventory.complaints[:_MOST_LINES]:
        whose = f"{complaint.subject} {complaint.modality}".strip()
        say(one_line(f"{complaint.kind}: {whose}: {complaint.what}"))
    if len(inventory.complaints) > _MOST_LINES:
        say(f"and {len(inventory.complaints) - _MOST_LINES} more")
    say(f"Tables and figure: {out}; look at index.png first, then index.md")
