"""`medk2n synth`: some of a patient's scans in, the missing ones out; a thin layer over `Synthesizer`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.cohort import Job, Settings, complete
from medk2n.cli.common import (
    DeviceOption,
    ManifestOption,
    ModelOption,
    OverwriteOption,
    SeedOption,
    SetOption,
)

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig
    from medk2n.config.control import FusionRule
    from medk2n.data.subject import Subject


def synth(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for images, sidecars and report.html.")],
    study: Annotated[
        Path | None, typer.Argument(help="A study's folder (modalities told by file names), or a folder of studies.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="[MODALITY=]FILE", help="One scan; repeatable. Instead of STUDY."),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", metavar="MODALITY", help="Repeatable. Left out: all that is missing."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="MODALITY", help="Input whose grid is used (the first).")
    ] = None,
    model: ModelOption = "default",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Make the missing scans of a patient from those that are there.

    Example: medk2n synth -i t1n=A.nii.gz -i t2w=B.nii.gz -t t1c -t t2f -o OUT

    The content decides which input counts how much for a target. To decide yourself: --set fusion.t2f.key=t1n,
    --set fusion.t2f.leave_out=\\[t1c], --set fusion.t2f.weights.t2w.at_most=0.3 (or .fixed), and .where=MASK.nii.gz.
    """
    from medk2n.checkpoint import find_model, read_config
    from medk2n.cli.common import end_with, modality_names, resolve_device, run_manifest
    from medk2n.config.control import load_control
    from medk2n.io.atomic import check_writable

    options = {"study": study, "input": inputs, "target": targets, "reference": reference, "out": out}
    options |= {"model": model, "device": device, "seed": seed, "set": overrides, "overwrite": overwrite}
    with run_manifest(manifest, "synth", options, overwrite=overwrite) as run:
        control = load_control(overrides or [])
        folder = find_model(model)
        config = read_config(folder)
        wanted = modality_names(targets, "--target")
        _refuse_unknown(wanted, config, "--target")
        failed: dict[str, Any] = {}
        jobs = _with_rules(_jobs(study, inputs or [], wanted, config, out, failed), control)
        check_writable(out)
        run.device = resolve_device(device)
        run.facts["model"] = {"folder": str(folder), "sha256": config.sha256}
        several = len(jobs) + len(failed) > 1
        data = study if several else None
        settings = Settings(data, folder, config.sha256, run.device, reference, seed, overwrite=overwrite)
        complete(jobs, settings, run, failed)
        if several:
            from medk2n.report.group import write_group

            page = write_group(out, sorted(failed))
            typer.echo(f"Look at {page} first: all studies, the least sure ones on top")
        end_with(failed)


def _refuse_unknown(names: list[str], config: "ModelConfig", option: str) -> None:
    from medk2n.errors import UnknownNameError

    if unknown := [name for name in names if name not in config.modalities]:
        raise UnknownNameError(
            f"{option} {', '.join(unknown)}: the model does not know it; it knows {', '.join(config.modalities)}"
        )


def _jobs(
    study: Path | None, inputs: list[str], wanted: list[str], config: "ModelConfig", out: Path, failed: dict[str, Any]
) -> list[Job]:
    """What is to be done; id -> complaint of the studies that cannot be used goes into `failed`."""
    from medk2n.errors import UsageError
    from medk2n.io.names import study_id
    from medk2n.preparation.study import folder_name
    from medk2n.report.places import StudyFolder

    if (study is None) == (not inputs):
        raise UsageError("give either a STUDY folder or -i [MODALITY=]FILE, one of the two; see 'medk2n synth --help'")
    if inputs:
        files = named_inputs(inputs)
        _refuse_unknown(list(files), config, "--input")
        targets = wanted or _missing(list(files), config)
        return [Job(files, targets, StudyFolder(out, study_id(list(files.values())), out))]
    subjects = studies_in(study, failed)
    several = len(subjects) + len(failed) > 1
    plans = [(s, wanted or _missing(s.modalities, config, several=several)) for s in subjects]
    places = [StudyFolder(out / folder_name(s.id) if several else out, s.id, out) for s in subjects]
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


def studies_in(folder: Path, faulty: dict[str, Any]) -> "list[Subject]":
    """The one study that a folder (or file) is, or all studies in it; `faulty` gets what is wrong with the rest."""
    from medk2n.data.datasets.studies import study_files
    from medk2n.data.discover import discover, discover_study
    from medk2n.io.names import recognise

    if folder.is_file() or (folder.is_dir() and any(recognise(path) for path in study_files(folder))):
        return [discover_study(folder)]
    return discover(folder, faulty=faulty.__setitem__)


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
