"""`medk2n synth`: some of a patient's scans in, the missing ones out; a thin layer over `Synthesizer`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.common import (
    DeviceOption,
    Manifest,
    ManifestOption,
    ModelOption,
    OverwriteOption,
    SeedOption,
    SetOption,
)
from medk2n.cli.complaints import one_line

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig
    from medk2n.config.control import FusionRule
    from medk2n.data.subject import Subject
    from medk2n.inference.predictor import Progress
    from medk2n.inference.synthesizer import Synthesizer


@dataclass(frozen=True)
class _Job:
    """One study to complete: where its images are, what is wanted, where it goes."""

    id: str
    study: "Subject | Mapping[str, Path]"
    targets: list[str]
    out: Path
    control: "Mapping[str, FusionRule]" = field(default_factory=dict)

    @property
    def given(self) -> list[str]:
        """Modalities of the study."""
        return list(self.study if isinstance(self.study, Mapping) else self.study.modalities)


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
    from medk2n.io.atomic import check_writable, refuse_existing
    from medk2n.report.outputs import planned_outputs

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
        refuse_existing([path for job in jobs for path in planned_outputs(job.out, job.id, job.targets)], overwrite)
        check_writable(out)
        run.device = resolve_device(device)
        run.facts["model"] = {"folder": str(folder), "sha256": config.sha256}

        from medk2n.inference.synthesizer import Synthesizer

        synthesizer = Synthesizer.from_pretrained(folder, device=run.device)
        how = {"reference": reference, "seed": seed}
        _run(synthesizer, jobs, run, how, out, failed, overwrite=overwrite)
        end_with(failed)


def _refuse_unknown(names: list[str], config: "ModelConfig", option: str) -> None:
    from medk2n.errors import UnknownNameError

    if unknown := [name for name in names if name not in config.modalities]:
        raise UnknownNameError(
            f"{option} {', '.join(unknown)}: the model does not know it; it knows {', '.join(config.modalities)}"
        )


def _jobs(
    study: Path | None, inputs: list[str], wanted: list[str], config: "ModelConfig", out: Path, failed: dict[str, Any]
) -> list[_Job]:
    """What is to be done; id -> complaint of the studies that cannot be used goes into `failed`."""
    from medk2n.errors import UsageError
    from medk2n.io.names import study_id

    if (study is None) == (not inputs):
        raise UsageError("give either a STUDY folder or -i [MODALITY=]FILE, one of the two; see 'medk2n synth --help'")
    if inputs:
        files = named_inputs(inputs)
        _refuse_unknown(list(files), config, "--input")
        targets = wanted or _missing(list(files), config)
        return [_Job(study_id(list(files.values())), files, targets, out)]
    subjects = studies_in(study, failed)
    several = len(subjects) + len(failed) > 1
    plans = [(s, wanted or _missing(s.modalities, config, several=several)) for s in subjects]
    jobs = [_Job(s.id, s, targets, out / _folder_name(s.id) if several else out) for s, targets in plans if targets]
    if not jobs:
        raise UsageError(f"{study}: all {len(subjects)} studies have everything the model knows; name a target with -t")
    return jobs


def _with_rules(jobs: list[_Job], control: "Mapping[str, FusionRule]") -> list[_Job]:
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


def _folder_name(study_id: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in study_id).strip(".") or "study"


def _run(
    synthesizer: "Synthesizer",
    jobs: list[_Job],
    run: Manifest,
    how: dict[str, Any],
    out: Path,
    failed: dict[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Complete every study; those that fail join `failed` (id -> complaint), one that is alone fails loudly."""
    from medk2n.errors import contained
    from medk2n.report.outputs import write_synthesis

    alone = len(jobs) + len(failed) == 1
    studies = run.facts["studies"] = {}
    for job in jobs:
        try:
            with _progress(job.id) as progress:
                synthesis = synthesizer.synth(job.study, job.targets, control=job.control, progress=progress, **how)
            written = write_synthesis(synthesis, job.out, job.id, overwrite=overwrite, dataset=out)
        except Exception as error:
            if alone:
                raise
            failed[job.id] = str(contained(error))
            studies[job.id] = {"error": failed[job.id]}
            continue
        run.inputs += [Path(path) for path in synthesis.record["control_masks"]]
        run.inputs += [Path(v.provenance["path"]) for v in synthesis.inputs.values() if v.provenance.get("path")]
        run.outputs += written
        studies[job.id] = {
            "inputs": list(synthesis.inputs),
            "targets": job.targets,
            "elapsed_s": synthesis.record["elapsed_s"],
        }
        for line in synthesis.record["warnings"]:
            typer.echo(f"medk2n: warning: {one_line(f'{job.id}: {line}')}", err=True)
        typer.echo(f"{job.id}: {', '.join(synthesis.inputs)} -> {', '.join(job.targets)}; look at {written[-1]} first")


@contextmanager
def _progress(study_id: str) -> "Iterator[Progress]":
    from rich.markup import escape

    from medk2n.cli.common import progress_bar

    with progress_bar() as bar:
        line = bar.add_task(escape(study_id), total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)
