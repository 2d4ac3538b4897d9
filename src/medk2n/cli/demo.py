"""`medk2n demo`: the whole path on one digital patient, whose missing scans are known."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medk2n.cli.common import DeviceOption, ManifestOption, ModelOption, OverwriteOption, SeedOption
from medk2n.cli.complaints import say

if TYPE_CHECKING:
    import numpy as np

    from medk2n.inference.synthesizer import Synthesis
    from medk2n.io.volume import Volume
    from medk2n.report.comparison import Pair

INPUTS = ("t1n", "t2w")
TARGETS = ("t1c", "t2f", "ct")
_SPACING_MM = 2.0
_STUDY = "sub-001"
_PATIENT, _PICTURE = "patient", "demo.png"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("medk2n-demo"),
    model: ModelOption = "default",
    device: DeviceOption = "auto",
    seed: SeedOption = 7,
    overwrite: OverwriteOption = False,
    manifest: ManifestOption = None,
) -> None:
    """Make a digital patient, hide some scans, synthesise them and compare with the truth. About a minute."""
    from medk2n.checkpoint import find_model
    from medk2n.cli.common import resolve_device, run_manifest
    from medk2n.inference.synthesizer import Synthesizer
    from medk2n.io.outputs import output_folder
    from medk2n.phantom.cohort import make_cohort
    from medk2n.report.comparison import save_comparison
    from medk2n.report.outputs import DATASET, make_synthesis
    from medk2n.report.places import REPORT, StudyFolder, planned_names

    options = {"out": out, "model": model, "device": device, "seed": seed, "overwrite": overwrite}
    with run_manifest(manifest, "demo", options, overwrite=overwrite) as run:
        folder = find_model(model)
        place = StudyFolder(out, _STUDY, dataset=out)
        planned = [f"{_PATIENT}/*", _PICTURE, *planned_names(place, TARGETS)]
        with (
            output_folder(out, planned, shared=[DATASET], overwrite=overwrite) as held,
            held.whole(last=REPORT) as new,
        ):
            run.device = resolve_device(device)
            say("1/3 making a digital patient (physics, no person was scanned) ...")
            make_cohort(new / _PATIENT, subjects=1, seed=seed, spacing_mm=_SPACING_MM, workers=1)
            truth, lesion = _read(new / _PATIENT)
            synthesizer = Synthesizer.from_pretrained(folder, device=run.device)
            targets = [name for name in TARGETS if name in synthesizer.config.modalities]
            say(f"2/3 synthesising {', '.join(targets)} from {', '.join(INPUTS)} ...")
            synthesis = synthesizer.synth({name: truth[name] for name in INPUTS}, targets, seed=seed)
            say("3/3 comparing with the truth and writing the report ...")
            pairs = _compare(synthesis, truth)
            made = make_synthesis(synthesis, place, new)
            save_comparison(new / _PICTURE, list(synthesis.inputs.values()), pairs, focus=lesion)
        run.outputs += [*made, out / _PICTURE]
        run.facts["psnr_db"] = {pair.synthetic.modality: round(pair.psnr_db, 2) for pair in pairs}
    _tell(pairs, out, out / _PICTURE)


def _read(cohort: Path) -> "tuple[dict[str, Volume], np.ndarray]":
    """The patient's scans, and where the lesion is."""
    from medk2n.data.discover import discover

    (subject,) = discover(cohort)
    return {name: subject.readers[name]() for name in (*INPUTS, *TARGETS)}, subject.masks["lesion"]().array > 0


def _compare(synthesis: "Synthesis", truth: "dict[str, Volume]") -> "list[Pair]":
    """PSNR inside the foreground of the inputs, each image in its own scaled unit (that of a target is typical)."""
    import numpy as np

    from medk2n.data.working import scaled
    from medk2n.metrics.psnr import psnr
    from medk2n.report.comparison import Pair

    inside = np.any([scaled(volume, name)[1] for name, volume in synthesis.inputs.items()], axis=0)
    pairs = []
    for name, volume in synthesis.volumes.items():
        reference, _, _ = scaled(truth[name], name)
        predicted = synthesis.scalings[name].apply(volume.array).clip(0, 1)
        pairs.append(Pair(volume, truth[name], psnr(predicted, reference, inside, data_range=1.0)))
    return pairs


def _tell(pairs: "list[Pair]", out: Path, picture: Path) -> None:
    lines: list[Any] = ["", "PSNR against the truth, inside the patient (higher is better):"]
    lines += [f"  {pair.synthetic.modality:5}{pair.psnr_db:6.2f} dB" for pair in pairs]
    lines += ["", f"Results: {out.resolve()}", f"Look first at   {picture}", f"then at         {out / 'report.html'}"]
    lines.append("Your own scans: medk2n synth -i t1n=A.nii.gz -i t2w=B.nii.gz -o OUT")
    say(*lines)
