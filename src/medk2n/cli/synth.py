"""`medk2n synth`: some of a patient's scans in, the missing ones out; a thin layer over `Synthesizer`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.cohort import Job, Settings, complete
from medk2n.cli.common import (
    AlignOption,
    DeviceOption,
    ForceOption,
    ManifestOption,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    PreferOption,
    ReferenceOption,
    SeedOption,
    SetOption,
    TargetsOption,
    ThreadsOption,
)
from medk2n.cli.complaints import say
from medk2n.cli.dicom import Format, dicom_studies, form_of, holds_nifti
from medk2n.config.align import Align

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig
    from medk2n.config.control import FusionRule
    from medk2n.data.subject import Subject
    from medk2n.dicom import DicomStudy, Outline


def synth(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for images, sidecars and report.html.")],
    study: Annotated[
        Path | None,
        typer.Argument(
            help="A study's folder (DICOM, or NIfTI with modalities told by file names), a .zip of DICOM, "
            "or a folder of studies."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="[MODALITY=]FILE", help="One scan; repeatable. Instead of STUDY."),
    ] = None,
    targets: TargetsOption = None,
    reference: ReferenceOption = None,
    series: Annotated[
        list[str] | None,
        typer.Option("--series", metavar="MODALITY=UID", help="DICOM: which series is a modality. Repeatable."),
    ] = None,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="Of the images. Left out: what came in.", show_default=False)
    ] = None,
    burn_in: Annotated[
        bool | None,
        typer.Option("--burn-in/--no-burn-in", help="Write SYNTHETIC into the pixels. Left out: in DICOM alone."),
    ] = None,
    model: ModelOption = "default",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = None,
    align: AlignOption = Align.warn,
    force: ForceOption = False,
    seed: SeedOption = 0,
    prefer: PreferOption = None,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Make the missing scans of a patient from those that are there.

    Examples: medk2n synth -i t1n=A.nii.gz -i t2w=B.nii.gz -t t1c -t t2f -o OUT

    medk2n synth DICOM_FOLDER -o OUT

    The content decides which input counts how much for a target. To decide yourself: --set fusion.t2f.key=t1n,
    --set fusion.t2f.leave_out=\\[t1c], --set fusion.t2f.weights.t2w.at_most=0.3 (or .fixed), and .where=MASK.nii.gz.
    """
    from medk2n.checkpoint import find_model, read_config
    from medk2n.cli.common import end_with, modality_names, resolve_device, run_manifest, split_names, threads_of_torch
    from medk2n.config.control import load_control
    from medk2n.report.group import group_page, write_group

    options = {"study": study, "input": inputs, "target": targets, "reference": reference, "out": out}
    options |= {
        "model": model,
        "device": device,
        "precision": precision,
        "threads": threads,
        "align": align.value,
        "force": force,
        "seed": seed,
        "set": overrides,
        "overwrite": overwrite,
    }
    options |= {"series": series, "format": file_format, "burn_in": burn_in, "prefer": prefer}
    with run_manifest(manifest, "synth", options, overwrite=overwrite) as run:
        control = load_control(overrides or [])
        folder = find_model(model)
        config = read_config(folder)
        wanted = modality_names(targets, "--target")
        _refuse_unknown(wanted, config, "--target")
        failed: dict[str, Any] = {}
        dicom = dicom_studies(study, inputs or [], series or [], config, run, failed)
        form = form_of(file_format, is_dicom=bool(dicom), burn_in=burn_in)
        if dicom:
            jobs = _dicom_jobs(dicom, wanted, config, out, several=len(dicom) + len(failed) > 1)
        else:
            jobs = _jobs(study, inputs or [], wanted, config, out, failed, split_names(prefer))
        jobs = [replace(job, place=replace(job.place, form=form)) for job in _with_rules(jobs, control)]
        several = len(jobs) + len(failed) > 1
        if not several:
            _read_headers(jobs[0], reference, config.spacing_mm)
        run.device = resolve_device(device)
        run.facts["model"] = {"folder": str(folder), "sha256": config.sha256}
        data = study if several else None
        held = {"overwrite": overwrite, "precision": precision, "align": align.value, "force": force}
        settings = Settings(data, folder, config.sha256, run.device, reference, seed, **held)
        if several:
            with group_page(out):
                pass  # somebody else's would be told now
        with threads_of_torch(threads):
            complete(jobs, settings, run, failed)
        if several:
            page = write_group(out, sorted(failed))
            say(f"Look at {page} first: all studies, the least sure ones on top")
        end_with(failed)


def _read_headers(job: Job, reference: str | None, spacing_mm: float) -> None:
    """Refuse what its header shows to be unusable before a model is loaded, which takes seconds."""
    from medk2n.cli.common import modality_names
    from medk2n.data.subject import Subject
    from medk2n.geometry.resample import working_grid
    from medk2n.io.nifti import read_header

    first = modality_names([reference], "--reference")[0] if reference else job.given[0]
    if not isinstance(job.study, Subject | Mapping):
        return  # DICOM, which is read already
    for name in job.given:
        header = job.study.header(name) if isinstance(job.study, Subject) else read_header(job.study[name])
        if name == first and header.spacing_known:
            working_grid(header.grid, spacing_mm, header.slice_axis)


def _refuse_unknown(names: list[str], config: "ModelConfig", option: str) -> None:
    from medk2n.errors import UnknownNameError

    if unknown := [name for name in names if name not in config.modalities]:
        raise UnknownNameError(
            f"{option} {', '.join(unknown)}: the model does not know it; it knows {', '.join(config.modalities)}"
        )


def _dicom_jobs(
    studies: "Sequence[DicomStudy | Outline]", wanted: list[str], config: "ModelConfig", out: Path, *, several: bool
) -> list[Job]:
    """What is to be done of studies of DICOM, as `_jobs` has it."""
    from medk2n.errors import UsageError
    from medk2n.report.places import StudyFolder

    jobs = []
    for study in studies:
        if targets := wanted or _missing(study.modalities, config, several=several):
            jobs.append(Job(study, targets, StudyFolder(out / study.id if several else out, study.id, out)))
    if not jobs:
        raise UsageError(f"all {len(studies)} studies have everything the model knows; name a target with -t")
    return jobs


def _jobs(
    study: Path | None,
    inputs: list[str],
    wanted: list[str],
    config: "ModelConfig",
    out: Path,
    failed: dict[str, Any],
    prefer: Sequence[str],
) -> list[Job]:
    """What is to be done; id -> complaint of the studies that cannot be used goes into `failed`."""
    from medk2n.errors import UsageError
    from medk2n.io.names import folder_names, study_id
    from medk2n.report.group import GROUP
    from medk2n.report.outputs import DATASET
    from medk2n.report.places import StudyFolder

    if (study is None) == (not inputs):
        raise UsageError("give either a STUDY folder or -i [MODALITY=]FILE, one of the two; see 'medk2n synth --help'")
    if inputs:
        files = named_inputs(inputs)
        _refuse_unknown(list(files), config, "--input")
        targets = wanted or _missing(list(files), config)
        return [Job(files, targets, StudyFolder(out, study_id(list(files.values())), out))]
    subjects = studies_in(study, failed, prefer)
    several = len(subjects) + len(failed) > 1
    plans = [(s, wanted or _missing(s.modalities, config, several=several)) for s in subjects]
    folders = folder_names([s.id for s in subjects], but=(GROUP, DATASET))
    places = [StudyFolder(out / folders[s.id] if several else out, s.id, out) for s in subjects]
    jobs = [Job(s, targets, place) for (s, targets), place in zip(plans, places, strict=True) if targets]
    if not jobs:
        raise UsageError(f"{study}: all {len(subjects)} studies have everything the model knows; name a target with -t")
    return jobs


def _with_rules(jobs: list[Job], control: "Mapping[str, FusionRule]") -> list[Job]:
    """Give every study the rules of its targets; of several studies, one may lack an input that a rule keeps out."""
    from medk2n.errors import UsageError

    wanted = {target for job in jobs for target in job.targets}
    if idle := sorted(set(control) - wanted):
        raise UsageError(f"--set fusion.{idle[0]}: no study wants {idle[0]}; wanted are: {', '.join(sorted(wanted))}")
    if len(jobs) > 1 and any(weight.where for rule in control.values() for weight in rule.weights.values()):
        raise UsageError("--set fusion...where: a mask belongs to one patient; complete the studies one by one")
    ruled = []
    for job in jobs:
        rules = {target: rule for target, rule in control.items() if target in job.targets}
        if len(jobs) > 1:
            rules = {
                target: rule.model_copy(
                    update={
                        "leave_out": tuple(name for name in rule.leave_out if name in job.given),
                        "weights": {name: weight for name, weight in rule.weights.items() if name in job.given},
                    }
                )
                for target, rule in rules.items()
            }
        ruled.append(replace(job, control=rules))
    return ruled


def named_inputs(values: list[str]) -> dict[str, Path]:
    """`t1n=A.nii.gz` or a file whose name tells its modality; modality -> file in the order given.

    Raises:
        UnknownNameError, UsageError: unknown, unrecognisable or doubled.
    """
    from medk2n.errors import UsageError
    from medk2n.io.names import read_name
    from medk2n.vocabulary import modality

    files: dict[str, Path] = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if separator and "/" not in name and not Path(value).exists():
            short, path = modality(name).name, Path(rest)
        else:
            read = read_name(value)
            if read.modality is None:
                raise UsageError(f"-i {value}: {read.why}; if it is an image to use, write -i MODALITY={value}")
            short, path = read.modality, Path(value)
        if not str(path) or str(path) == ".":
            raise UsageError(f"-i {value}: expected MODALITY=FILE")
        if short in files:
            raise UsageError(f"{short} is given twice ({files[short]} and {path}); give each modality once")
        files[short] = path
    return files


def studies_in(folder: Path, faulty: dict[str, Any], prefer: Sequence[str] = ()) -> "list[Subject]":
    """The one study that a folder (or file) is, or all studies in it; `faulty` gets what is wrong with the rest."""
    from medk2n.cli.common import LeftOutFiles
    from medk2n.data.discover import discover, discover_study

    if folder.is_file() or holds_nifti(folder):
        return [discover_study(folder, prefer=prefer)]
    files = LeftOutFiles()
    found = discover(folder, prefer=prefer, faulty=faulty.__setitem__, left_out=files.add)
    for subject in found:  # what lies beside these is told when they are completed
        files.of.pop(subject.id, None)
    files.tell()
    return found


def _missing(
    given: "Mapping[str, Any] | tuple[str, ...] | list[str]", config: "ModelConfig", *, several: bool = False
) -> list[str]:
    """What the model knows and the study lacks; of several studies a complete one is passed over."""
    from medk2n.errors import UsageError

    missing = [name for name in config.modalities if name not in given]
    if not missing and not several:
        raise UsageError(
            f"the study has all that the model knows ({', '.join(config.modalities)}); name one with -t to re-make it"
        )
    return missing
