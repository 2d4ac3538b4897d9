"""`medk2n phantom`: a cohort of digital subjects, made by physics."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medk2n.cli.common import ManifestOption, OverwriteOption, SeedOption
from medk2n.cli.complaints import say


class Protocols(StrEnum):
    """One acquisition of each modality, or a second one beside it."""

    FIXED = "fixed"
    RANDOM = "random"


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to make: a BIDS data set.")],
    subjects: Annotated[int, typer.Option("--subjects", min=1, help="How many digital subjects.")] = 4,
    seed: SeedOption = 0,
    spacing: Annotated[float, typer.Option("--spacing", min=0.5, max=8.0, help="Voxel edge in mm.")] = 1.0,
    protocols: Annotated[
        Protocols, typer.Option("--protocols", help="random: a second acquisition of each MR contrast, for training.")
    ] = Protocols.FIXED,
    anatomy: Annotated[
        Path | None, typer.Option("--anatomy", help="T1-weighted NIfTI of a real head, used instead of ICBM152.")
    ] = None,
    stripped: Annotated[bool, typer.Option("--stripped", help="Brain only: 0 around it, CT -1000.")] = False,
    slice_thickness: Annotated[
        float | None, typer.Option("--slice-thickness", min=0.5, help="Blur along z as slices this thick (mm) would.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes (2, or 1 on one core).")] = None,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Make digital subjects whose truth is known.

    Each has t1n t1c t2w t2f pd dwi adc ct, some a tumour, a stroke or white-matter lesions. Under
    derivatives/truth lie the noise-free images, tissue and lesion maps and the best attainable PSNR.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    from medk2n.cli.common import progress_bar, run_manifest
    from medk2n.phantom.cohort import make_cohort

    options = {"out": out, "subjects": subjects, "seed": seed, "spacing": spacing, "protocols": protocols.value}
    options |= {"anatomy": anatomy, "stripped": stripped, "slice_thickness": slice_thickness, "overwrite": overwrite}
    columns = (TextColumn("subjects"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        run_manifest(manifest, "phantom", options, overwrite=overwrite) as run,
        progress_bar(*columns) as bar,
    ):
        task = bar.add_task("subjects", total=subjects)
        make_cohort(
            out,
            subjects=subjects,
            seed=seed,
            spacing_mm=spacing,
            protocols=protocols.value,
            anatomy=anatomy,
            stripped=stripped,
            slice_thickness_mm=slice_thickness,
            workers=workers,
            overwrite=overwrite,
            progress=lambda done, _: bar.update(task, completed=done),
        )
        run.inputs += [anatomy] if anatomy else []
        run.outputs += [out / "dataset_description.json", out / "participants.tsv"]
    say(f"{subjects} digital subjects in {out}; truth and attainable PSNR in {out / 'derivatives' / 'truth'}")
