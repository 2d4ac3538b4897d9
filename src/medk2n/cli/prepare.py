"""`medk2n prepare`: from scans as they come to a data set on one grid a study, ready to train from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.common import ForceOption, ManifestOption, ModelOption, OverwriteOption, PreferOption
from medk2n.cli.complaints import one_line, say
from medk2n.workers import cores

if TYPE_CHECKING:
    from medk2n.errors import Medk2nError
    from medk2n.preparation.run import Result


def prepare(
    data: Annotated[
        Path, typer.Argument(help="BIDS, study or flat folders, nnU-Net raw, .npz arrays, slices with a table.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the prepared data set; one begun goes on.")],
    spacing: Annotated[
        float | None, typer.Option("--spacing", help="In-plane spacing in mm: that of training (1.5). Else as it is.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODALITY", help="Brings the others to its grid (first in name order)."),
    ] = None,
    register: Annotated[bool, typer.Option("--register", help="Rigidly register all scans to the reference.")] = False,
    ants: Annotated[
        bool, typer.Option("--ants", help="Register by ANTs, if pip install 'medk2n[ants]' was run.")
    ] = False,
    n4: Annotated[bool, typer.Option("--n4", help="Divide out the shading of MR coils (N4).")] = False,
    strip: Annotated[
        str | None, typer.Option("--strip", metavar="MASK", help="Cut off what is outside a mask: brain, head, ...")
    ] = None,
    strip_command: Annotated[
        str | None,
        typer.Option(
            "--strip-command",
            metavar="COMMAND",
            help="Strip by the mask that a program makes: 'PROGRAM {input} {mask}', both .nii.gz.",
        ),
    ] = None,
    subjects: Annotated[list[str] | None, typer.Option("--subjects", help="Ids to keep: a comma list.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Ids to leave out: a comma list.")] = None,
    prefer: PreferOption = None,
    model: ModelOption = "default",
    force: ForceOption = False,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes (one a core).")] = None,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Prepare a data set once: turned, resampled and scaled, ready for training to read from the disk.

    Every study becomes a folder with its scans (NIfTI, in their unit) and masks on one grid, a sidecar that says what
    was done and what seems wrong, a picture to check it by, and the slices that training maps into memory. What is
    surely no scan, or another one than its name says (as far as V of --model knows), fails unless --force is given.
    Registration, N4 and skull stripping are done if asked for. Stopped, it goes on where it was; what is prepared
    from the same files stays.
    """
    from medk2n.cli.common import LeftOutFiles, end_with, gatekeeper, modality_names, run_manifest, split_names
    from medk2n.data.discover import discover
    from medk2n.errors import UsageError
    from medk2n.geometry.limits import EDGES_MM
    from medk2n.preparation.ants import require_ants
    from medk2n.preparation.strip import words_of
    from medk2n.preparation.study import Plan

    if strip and strip_command:
        raise UsageError("--strip and --strip-command: expected one of them, a mask that is there or one to be made")
    if ants and not register:
        raise UsageError("--ants: says by what to register; expected --register with it")
    if ants:
        require_ants()
    if spacing is not None and not EDGES_MM[0] <= spacing <= EDGES_MM[1]:
        raise UsageError(f"--spacing {spacing:g}: expected from {EDGES_MM[0]:g} to {EDGES_MM[1]:g} mm")
    options = {"data": data, "out": out, "spacing": spacing, "reference": reference, "register": register, "ants": ants}
    options |= {"n4": n4, "strip": strip, "strip_command": strip_command}
    options |= {"subjects": subjects, "exclude": exclude, "prefer": prefer, "jobs": jobs}
    options |= {"model": model, "force": force}
    with run_manifest(manifest, "prepare", options | {"overwrite": overwrite}, overwrite=overwrite) as run:
        plan = Plan(
            spacing_mm=spacing,
            reference=modality_names([reference], "--reference")[0] if reference else None,
            register=register,
            ants=ants,
            n4=n4,
            strip=strip,
            strip_command=words_of(strip_command) if strip_command else None,
        )
        faults: dict[str, Medk2nError] = {}
        kept, files = split_names(subjects) or None, LeftOutFiles()
        told: dict[str, Any] = {"faulty": faults.__setitem__, "left_out": files.add}
        found = discover(data, subjects=kept, exclude=split_names(exclude), prefer=split_names(prefer), **told)
        files.tell()
        keeper = gatekeeper(model, force=force)
        result = _prepare(found, data, out, plan, keeper, jobs or cores(), overwrite=overwrite)
        result.failed |= {subject: str(fault) for subject, fault in faults.items()}
        run.inputs += [file for subject in found for file in subject.files]
        run.outputs += sorted(out.glob("*/study.json"))
        run.facts |= {"prepared": result.prepared, "there_before": result.there, "failed": result.failed}
        _tell(result, out)
        end_with(result.failed)


def _prepare(found, data: Path, out: Path, plan, keeper, jobs: int, *, overwrite: bool) -> "Result":
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from medk2n.cli.common import progress_bar
    from medk2n.preparation import run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with progress_bar(*columns) as bar:
        line = bar.add_task("prepare", total=len(found))

        def report(subject: str, done: int, total: int) -> None:
            bar.update(line, completed=done, total=total, description=f"prepare, done {escape(one_line(subject))}")

        return run.prepare(found, data, out, plan, keeper=keeper, jobs=jobs, overwrite=overwrite, report=report)


def _tell(result: "Result", out: Path) -> None:
    for subject, lines in result.warnings.items():
        for line in lines:
            say(f"medk2n: warning: {one_line(f'{subject}: {line}')}", err=True)
    before = f", {len(result.there)} were there before" if result.there else ""
    failed = f", {len(result.failed)} failed" if result.failed else ""
    say(f"{len(result.prepared)} subjects prepared{before}{failed}: {out}; look at a preview.png first")
