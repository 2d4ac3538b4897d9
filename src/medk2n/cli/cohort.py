"""Completes studies one after the other with one load of the model; `medk2n synth` and `medk2n bids` share it.

What is complete already stays, a study that fails is named and the others go on, so a cohort that was stopped goes on
where it was when the same command is given again.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medk2n
from medk2n.cli.common import Manifest, progress_bar
from medk2n.cli.complaints import one_line, say
from medk2n.cli.dicom import content_digest, tell_study

if TYPE_CHECKING:
    from medk2n.config.control import FusionRule
    from medk2n.data.subject import Subject
    from medk2n.dicom import DicomStudy, Outline
    from medk2n.inference.predictor import Progress
    from medk2n.inference.synthesizer import Synthesizer
    from medk2n.io.outputs import OutputFolder
    from medk2n.report.places import Place


@dataclass(frozen=True)
class Job:
    """One study to complete: its images, what is wanted, where it goes."""

    study: "Subject | Mapping[str, Path] | DicomStudy | Outline"
    targets: list[str]
    place: "Place"
    control: "Mapping[str, FusionRule]" = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What the study is called."""
        return self.place.study

    @property
    def given(self) -> list[str]:
        """Modalities of the study."""
        return list(self.study if isinstance(self.study, Mapping) else self.study.modalities)


@dataclass(frozen=True)
class Settings:
    """What is alike for all studies of a run.

    Attributes:
        data: the data set that the studies lie in; what is complete in `out` stays. None for one study alone, which is
            refused where its outputs are there.
    """

    data: Path | None
    model: Path
    model_sha256: str
    device: str
    reference: str | None
    seed: int
    overwrite: bool
    precision: str = "fp32"
    align: str = "warn"
    force: bool = False


def complete(jobs: Sequence[Job], settings: Settings, run: Manifest, failed: dict[str, Any]) -> None:
    """Complete every study that is not; those that fail join `failed` (id -> complaint), one alone fails loudly.

    Raises:
        OutputExistsError: before anything is computed, if outputs are there that are not this very request's.
        SystemLimitError: disk full; the studies that are done stay.
    """
    alone = len(jobs) + len(failed) == 1
    left = [job for job in jobs if not _is_done(job, settings)]
    run.facts["complete_before"] = [job.id for job in jobs if job not in left]
    if len(left) < len(jobs):
        say(f"{len(jobs) - len(left)} of {len(jobs)} studies are complete already, from the same files")
    run.facts["studies"] = {name: {"error": str(complaint)} for name, complaint in failed.items()}
    if left:
        _complete(left, settings, run, failed, alone=alone)


def _complete(left: Sequence[Job], settings: Settings, run: Manifest, failed: dict[str, Any], *, alone: bool) -> None:
    from medk2n.errors import contained
    from medk2n.inference.synthesizer import Synthesizer

    synthesizer = Synthesizer.from_pretrained(settings.model, device=settings.device, precision=settings.precision)
    say(one_line(f"model {synthesizer.name} ({synthesizer.config.licence})"))
    studies, done = run.facts["studies"], 0
    started = time.perf_counter()
    with _bars(len(left)) as bars:
        for number, job in enumerate(left, 1):
            try:
                studies[job.id] = _one(synthesizer, job, settings, run, bars)
                done += 1
            except Exception as error:
                if alone:
                    raise
                failed[job.id] = str(contained(error))
                studies[job.id] = {"error": failed[job.id]}
                say(f"{one_line(job.id)}: failed")
            elapsed = time.perf_counter() - started
            run.facts["studies_per_hour"] = round(done * 3600 / elapsed, 1)
            if number < len(left):
                say(f"  {number} of {len(left)}, about {_words(elapsed / number * (len(left) - number))} left")


def _is_done(job: Job, settings: Settings) -> bool:
    from medk2n.report.record import is_complete

    with _held(job, settings):
        if settings.data is None or settings.overwrite:
            return False
        return is_complete(job.place, partial(_request, job, settings, settings.data), job.targets)


def _held(job: Job, settings: Settings) -> "AbstractContextManager[OutputFolder]":
    """The place of a study; of a data set, what is there of it was looked at when the run began."""
    from medk2n.report.outputs import study_folder

    return study_folder(job.place, job.targets, overwrite=settings.overwrite or settings.data is not None)


def _request(job: Job, settings: Settings, data: Path) -> dict[str, Any]:
    """What decides about the result of one study of a data set."""
    form = job.place.form
    return {
        "inputs": _hashes(job.study, data),
        "model": settings.model_sha256,
        "targets": job.targets,
        "reference": settings.reference,
        "seed": settings.seed,
        "align": settings.align,
        "force": settings.force,
        "rules": {name: rule.model_dump(mode="json", exclude_defaults=True) for name, rule in job.control.items()},
        "burn_in": bool(form.burn_in),
        "medk2n": medk2n.__version__,
        **({"dicom": {"nifti": form.nifti, "burn_in": form.burn_in}} if form.dicom else {}),
    }


def _hashes(study: Any, data: Path) -> dict[str, str]:
    """Of what a study is made from: of DICOM one of all files, whose names may be a patient's."""
    from medk2n.dicom import Outline
    from medk2n.preparation.study import hashes

    return {"dicom": content_digest(study.source)} if isinstance(study, Outline) else hashes(study, data)


def _one(synthesizer: "Synthesizer", job: Job, settings: Settings, run: Manifest, bars: "_Bars") -> dict[str, Any]:
    """Complete one study; returns what the manifest says of it."""
    from medk2n.dicom import DicomStudy, Outline
    from medk2n.report.outputs import write_synthesis

    facts: dict[str, Any] = {}
    request = None if settings.data is None else _request(job, settings, settings.data)
    with _held(job, settings) as folder:
        study = job.study
        if isinstance(study, Outline):
            facts, study = {"source": study.source}, study.read(known=synthesizer.config.modalities)
            facts |= {"dicom": tell_study(study)}
        dicom = study if isinstance(study, DicomStudy) else None
        with bars.study(job.id) as progress:
            synthesis = synthesizer.synth(
                dicom.volumes if dicom else study,
                job.targets,
                reference=settings.reference,
                seed=settings.seed,
                control=job.control,
                align=settings.align,
                force=settings.force,
                progress=progress,
            )
        written = write_synthesis(synthesis, job.place, folder, dicom=dicom, request=request)
    masks = {Path(path): digest for path, digest in synthesis.record["control_masks"].items()}
    run.read |= masks
    run.inputs += list(masks)
    read = [volume.provenance for volume in synthesis.inputs.values() if volume.provenance.get("path")]
    run.read |= {Path(facts["path"]): facts["sha256"] for facts in read if "sha256" in facts}
    run.inputs += [Path(facts["path"]) for facts in read]
    run.outputs += written
    for line in synthesis.record["warnings"]:
        say(f"medk2n: warning: {one_line(f'{job.id}: {line}')}", err=True)
    if synthesis.record["placed"]:
        say(one_line(f"{job.id}: {synthesis.record['placed']}"))
    done = f"{', '.join(synthesis.inputs)} -> {', '.join(job.targets)}"
    say(one_line(f"{job.id}: {done}; look at {written[-1]} first"))
    facts |= {"inputs": list(synthesis.inputs), "targets": job.targets}
    return facts | {"elapsed_s": synthesis.record["elapsed_s"]}


class _Bars:
    """A bar for the cohort and one for the slices of the study at hand."""

    def __init__(self, bar: Any, studies: int) -> None:
        self._bar = bar
        self._studies = bar.add_task("studies", total=studies) if studies > 1 else None

    @contextmanager
    def study(self, name: str) -> "Iterator[Progress]":
        """Shows one study; the function that it gives moves its bar."""
        from rich.markup import escape

        line = self._bar.add_task(escape(one_line(name)), total=None)
        try:
            yield lambda done, total: self._bar.update(line, completed=done, total=total)
        finally:
            self._bar.remove_task(line)
            if self._studies is not None:
                self._bar.advance(self._studies)


@contextmanager
def _bars(studies: int) -> Iterator[_Bars]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with progress_bar(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()) as bar:
        yield _Bars(bar, studies)


def _words(seconds: float) -> str:
    """A duration as people say it."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
