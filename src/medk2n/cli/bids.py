"""`medk2n bids`: a BIDS App; every participant's missing scans, as a BIDS derivative."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from medk2n.cli.cohort import Job, Settings, complete
from medk2n.cli.common import (
    AlignOption,
    DeviceOption,
    ForceOption,
    ManifestOption,
    ModelOption,
    OverwriteOption,
    ReferenceOption,
    SeedOption,
    TargetsOption,
)
from medk2n.cli.complaints import say
from medk2n.config.align import Align

if TYPE_CHECKING:
    from medk2n.checkpoint import ModelConfig
    from medk2n.data.bids_filter import Filters
    from medk2n.report.places import BidsDerivative

_LABELS = ("--participant-label", "--participant_label", "--session-label", "--session_label")


class Level(StrEnum):
    """What a BIDS App is asked to do."""

    participant = "participant"
    group = "group"


class Command(TyperCommand):
    """Takes `--participant-label 01 02 03`, as BIDS Apps do, for `--participant-label 01,02,03`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:  # type: ignore[no-untyped-def]
        return super().parse_args(ctx, list(_joined(args)))


def _joined(arguments: Sequence[str]) -> Iterator[str]:
    """Words after an option of labels, up to the next option, become one comma list."""
    at = 0
    while at < len(arguments):
        word, at = arguments[at], at + 1
        yield word
        if word in _LABELS:
            start = at
            while at < len(arguments) and not arguments[at].startswith("-"):
                at += 1
            if at > start:
                yield ",".join(arguments[start:at])


def bids(
    bids_dir: Annotated[Path, typer.Argument(help="A BIDS data set; nothing in it is changed.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder of the derivative; one begun goes on.")],
    level: Annotated[Level, typer.Argument(metavar="participant|group", help="Complete, or make the page about all.")],
    participant_label: Annotated[
        list[str] | None,
        typer.Option("--participant-label", "--participant_label", help="With or without sub-; several after it."),
    ] = None,
    session_label: Annotated[
        list[str] | None,
        typer.Option("--session-label", "--session_label", help="With or without ses-; several after it."),
    ] = None,
    filters: Annotated[
        Path | None,
        typer.Option("--bids-filter-file", help='JSON that says which files count: {"t1w": {"run": 1}}.'),
    ] = None,
    skip_validation: Annotated[
        bool, typer.Option("--skip-bids-validation", "--skip_bids_validation", help="Also if it is no proper BIDS.")
    ] = False,
    cpus: Annotated[
        int | None, typer.Option("--n-cpus", "--n_cpus", "--nprocs", min=1, help="Most threads (all cores).")
    ] = None,
    memory_mb: Annotated[
        int | None, typer.Option("--mem-mb", "--mem_mb", min=1, help="Most memory; a study that needs more fails.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option("-w", "--work-dir", help="Taken and left alone: what is between stays in memory.")
    ] = None,
    targets: TargetsOption = None,
    reference: ReferenceOption = None,
    model: ModelOption = "default",
    device: DeviceOption = "auto",
    align: AlignOption = Align.warn,
    force: ForceOption = False,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Complete every session of a BIDS data set that lacks a scan; a BIDS App.

    Example: medk2n bids DATA DATA/derivatives/medk2n participant --participant-label 01 02

    `participant` writes images, sidecars and a page for each session, `group` one page about all of them. What is
    complete stays, so a run that was stopped goes on when it is given again.
    """
    from medk2n.cli.common import end_with, run_manifest
    from medk2n.data.bids_filter import read_filters
    from medk2n.report.group import write_group

    options = {"bids_dir": bids_dir, "output_dir": output_dir, "level": str(level), "model": model, "device": device}
    options |= {"participant_label": participant_label, "session_label": session_label, "bids_filter_file": filters}
    options |= {"n_cpus": cpus, "mem_mb": memory_mb, "target": targets, "reference": reference}
    options |= {"align": align.value, "force": force}
    options |= {"seed": seed, "overwrite": overwrite, "skip_bids_validation": skip_validation}
    with run_manifest(manifest, "bids", options, overwrite=overwrite) as run:
        _check_folders(bids_dir, output_dir, validate=not skip_validation)
        places = _sessions(bids_dir, output_dir, _labels(participant_label), _labels(session_label))
        if level == Level.group:
            page = write_group(output_dir, [place.study for place in places if not place.report.is_file()])
            run.outputs.append(page)
            say(f"Look at {page}: all studies, the least sure ones on top")
            return
        from medk2n.checkpoint import find_model, read_config
        from medk2n.cli.common import modality_names, resolve_device

        folder = find_model(model)
        config = read_config(folder)
        run.device = resolve_device(device)
        run.facts["model"] = {"folder": str(folder), "sha256": config.sha256}
        wanted = modality_names(targets, "--target")
        jobs, failed = _jobs(places, wanted, config, read_filters(filters) if filters else {})
        held = {"overwrite": overwrite, "align": align.value, "force": force}
        settings = Settings(bids_dir, folder, config.sha256, run.device, reference, seed, **held)
        with _limits(cpus, memory_mb):
            complete(jobs, settings, run, failed)
        end_with(failed)


def _labels(values: Sequence[str] | None) -> set[str]:
    from medk2n.cli.common import split_names

    return {label.removeprefix("sub-").removeprefix("ses-") for label in split_names(values)}


def _check_folders(raw: Path, out: Path, *, validate: bool) -> None:
    from medk2n.errors import DatasetError, UsageError
    from medk2n.io.door import kept_json

    if not raw.is_dir():
        raise DatasetError(f"{raw}: no such folder; expected a BIDS data set; check the path")
    inside = out.resolve().relative_to(raw.resolve()).parts if out.resolve().is_relative_to(raw.resolve()) else None
    if inside is not None and (not inside or inside[0].startswith("sub-")):
        raise UsageError(f"{out}: results never go among acquired images; expected another OUTPUT_DIR")
    if not validate:
        return
    described = raw / "dataset_description.json"
    found = kept_json(described)
    if not (isinstance(found, dict) and {"Name", "BIDSVersion"} <= set(found)):
        raise DatasetError(
            f"{described}: expected JSON with Name and BIDSVersion, as every BIDS data set has; write it, or add "
            "--skip-bids-validation"
        )


def _sessions(raw: Path, out: Path, participants: set[str], sessions: set[str]) -> "list[BidsDerivative]":
    """Every session asked for, whether or not it holds anything."""
    from medk2n.data.datasets.bids import session_folders, subject_folders
    from medk2n.errors import DatasetError, UnknownNameError
    from medk2n.report.places import BidsDerivative

    subjects = {folder.name.removeprefix("sub-"): folder for folder in subject_folders(raw)}
    if not subjects:
        raise DatasetError(f"{raw}: no sub-* folder; expected a BIDS data set; check the path")
    if unknown := sorted(participants - set(subjects)):
        raise UnknownNameError(f"--participant-label {', '.join(unknown)}: not in {raw}; it has {_some(subjects)}")
    found = []
    for label, folder in subjects.items():
        for place in session_folders(folder) if not participants or label in participants else ():
            session = place.name.removeprefix("ses-") if place != folder else None
            if not sessions or session in sessions:
                found.append(BidsDerivative(out, label, session, raw))
    if not found:
        raise UnknownNameError(f"--session-label {', '.join(sorted(sessions))}: no such session in {raw}")
    return found


def _some(names: "Sequence[str] | dict[str, Path]") -> str:
    first = list(names)[:5]
    return ", ".join(first) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _jobs(
    places: "list[BidsDerivative]", wanted: list[str], config: "ModelConfig", filters: "Filters"
) -> tuple[list[Job], dict[str, str]]:
    """What is to be completed, and id -> complaint of sessions whose files contradict each other."""
    from medk2n.data.bids_filter import wanted_files
    from medk2n.data.datasets._files import subject_of
    from medk2n.data.datasets.bids import session_files

    jobs, failed = [], {}
    for place in places:
        folder = place.raw.joinpath(*place.study.split("_"))
        subject = subject_of(place.study, wanted_files(session_files(folder), filters))
        if subject.fault:
            failed[place.study] = f"{subject.fault}; here by --bids-filter-file"
            continue
        missing = wanted or [name for name in config.modalities if name not in subject.readers]
        if subject.readers and missing:
            jobs.append(Job(subject, missing, place))
        else:
            say(f"{place.study}: {'lacks nothing' if subject.readers else 'holds no scan'}, passed over")
    return jobs, failed


@contextmanager
def _limits(cpus: int | None, memory_mb: int | None) -> Iterator[None]:
    """Hold this process to so many threads and so much memory, until the work is done."""
    from medk2n.cli.common import threads_of_torch
    from medk2n.errors import UsageError

    limits = None
    if memory_mb:
        try:
            import resource
        except ImportError:
            raise UsageError("--mem-mb: this system cannot limit a process; leave it out") from None
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * 2**20, limits[1]))
    try:
        with threads_of_torch(cpus):
            yield
    finally:
        if limits:
            resource.setrlimit(resource.RLIMIT_DATA, limits)
