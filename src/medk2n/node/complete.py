"""A DICOM study in one folder completed into another, with one load of the model for all studies of a process."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medk2n.checkpoint import read_config
from medk2n.config.align import Align
from medk2n.dicom import read_study
from medk2n.report.outputs import study_folder, write_synthesis
from medk2n.report.places import Form, StudyFolder

if TYPE_CHECKING:
    from medk2n.inference.synthesizer import Synthesizer


class Completer:
    """Called with a folder of DICOM files, and one for the derived series, their sidecars and the report."""

    def __init__(
        self,
        model: Path,
        *,
        device: str,
        targets: Sequence[str] = (),
        seed: int = 0,
        burn_in: bool = True,
        align: Align | str = Align.warn,
        force: bool = False,
    ) -> None:
        """Choose the model, and the targets; none are all that a study lacks. The others: see `Synthesizer.synth`."""
        self._model, self._device = model, device
        self._targets, self._burn_in = list(targets), burn_in
        self._how: dict[str, Any] = {"seed": seed, "align": align, "force": force}
        self._known = read_config(model).modalities

    @cached_property
    def _synthesizer(self) -> "Synthesizer":
        from medk2n.inference.synthesizer import Synthesizer

        return Synthesizer.from_pretrained(self._model, device=self._device)

    def __call__(self, source: Path, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
        """Complete one study; a study that lacks nothing leaves an empty folder.

        Returns:
            What was taken for what, what was made and how good it is expected to be, what the gatekeeper found
            ("checks") and told ("warnings"); nothing of the patient.

        Raises:
            DicomError: the study cannot be used.
            DoubtfulScanError: a scan is almost certainly not what it is said to be.
            OutputExistsError, OutputPermissionError, SystemLimitError: the results cannot be written.
        """
        study = read_study(source, known=self._known)
        targets = self._targets or [name for name in self._known if name not in study.series]
        facts: dict[str, Any] = {
            "study": study.id,
            "series": {name: {"images": len(one.instances), "evidence": one.evidence}
                       for name, one in study.series.items()},
            "left_out": [{"images": row.images, "reason": row.reason} for row in study.left_out],
            "notes": list(study.notes),
            "targets": {},
            "warnings": [],
            "files": [],
        }  # fmt: skip
        if not targets:
            out.mkdir(parents=True, exist_ok=True)
            return facts
        place = StudyFolder(out, study.id, out, Form(nifti=False, dicom=True, burn_in=self._burn_in))
        with study_folder(place, targets, overwrite=overwrite) as folder:
            synthesis = self._synthesizer.synth(study.volumes, targets, **self._how)
            facts["files"] = write_synthesis(synthesis, place, folder, dicom=study)
        facts |= {key: synthesis.record[key] for key in ("warnings", "checks")}
        facts["targets"] = {
            name: {"predicted_psnr_db": explanation.predicted_psnr_db}
            for name, explanation in synthesis.explanations.items()
        }
        return facts
