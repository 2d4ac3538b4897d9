"""What a synthesis leaves on disk: images, sidecars, error maps and the report; all of them or none."""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medk2n
from medk2n.io.atomic import check_writable, refuse_existing, write_json, write_text
from medk2n.io.names import synth_name
from medk2n.io.nifti import write_volume
from medk2n.vocabulary import MODALITIES

if TYPE_CHECKING:
    from medk2n.inference.synthesizer import Synthesis

REPORT = "report.html"
DATASET = "dataset_description.json"


def planned_outputs(out: Path, study_id: str, targets: Iterable[str]) -> list[Path]:
    """Every file that `write_synthesis` will make for these targets, known before anything is computed."""
    names = [REPORT]
    for target in targets:
        image, deviation = image_name(study_id, target), deviation_name(study_id, target)
        names += [image, _sidecar(image), deviation, _sidecar(deviation)]
    return [out / name for name in names]


def image_name(study_id: str, target: str) -> str:
    """`<study>_desc-synth_T2w.nii.gz`."""
    return synth_name(study_id, target)


def deviation_name(study_id: str, target: str) -> str:
    """`<study>_desc-synthstd_T2w.nii.gz`: predicted standard error of every voxel."""
    return synth_name(study_id, target).replace("_desc-synth_", "_desc-synthstd_")


def write_synthesis(
    synthesis: "Synthesis", out: Path, study_id: str, *, overwrite: bool = False, dataset: Path | None = None
) -> list[Path]:
    """Write everything of one study to `out`; returns the files, images first, the report last.

    The files are made in a temporary folder inside `out` and moved when all of them are there.

    Args:
        dataset: where `dataset_description.json` belongs if `out` is one study's folder of several.

    Raises:
        OutputExistsError, OutputPermissionError, SystemLimitError.
    """
    from medk2n.report.synthesis import render_report

    targets = list(synthesis.volumes)
    refuse_existing(planned_outputs(out, study_id, targets), overwrite)
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out) as folder:
        made = Path(folder)
        for target in targets:
            image, deviation = image_name(study_id, target), deviation_name(study_id, target)
            write_volume(synthesis.volumes[target], made / image)
            write_json(made / _sidecar(image), image_sidecar(synthesis, target))
            if target in synthesis.deviations:
                description = "predicted standard error of a SYNTHETIC image"
                write_volume(synthesis.deviations[target], made / deviation, description=description)
                write_json(made / _sidecar(deviation), _deviation_sidecar(synthesis, target, image))
        write_text(made / REPORT, render_report(synthesis, study_id))
        write_dataset_description(dataset or out)
        names = [path.name for path in planned_outputs(made, study_id, targets) if path.exists()]
        for name in names:
            shutil.move(made / name, out / name)
    return [
        out / name for name in sorted(names, key=lambda name: (name == REPORT, "synthstd" in name, ".json" in name))
    ]


def write_dataset_description(folder: Path) -> None:
    """What makes a folder of outputs a BIDS derivative; written anew each time, since it is always the same."""
    check_writable(folder)
    write_json(
        folder / DATASET,
        {
            "Name": "Synthetic images made by medk2n",
            "BIDSVersion": "1.11.0",
            "DatasetType": "derivative",
            "GeneratedBy": [generated_by()],
        },
    )


def generated_by() -> dict[str, str]:
    return {"Name": "medk2n", "Version": medk2n.__version__, "Description": "SYNTHETIC images; research use only"}


def image_sidecar(synthesis: "Synthesis", target: str) -> dict[str, Any]:
    """Everything that a reader of one synthetic image should be able to find out without this package."""
    explanation = synthesis.explanations[target]
    steps = {step.source for step in explanation.steps}
    seen = [name for name in synthesis.inputs if name in steps]
    return {
        "Description": f"SYNTHETIC {MODALITIES[target].label} image, predicted from "
        f"{', '.join(seen)} by medk2n; not acquired; research use only",
        "Synthetic": True,
        "Modality": target,
        "Sources": [str(source["path"] or f"{source['modality']} in memory") for source in sources(synthesis, seen)],
        "SourceDetails": sources(synthesis, seen),
        "SkullStripped": synthesis.record["skull_stripped"],
        "SpatialReference": sources(synthesis, [synthesis.reference])[0]["path"] or "orig",
        "Units": MODALITIES[target].unit,
        "Scaling": scaling_facts(synthesis, target),
        "KeyFrame": explanation.key,
        "Contribution": {"method": explanation.contribution_method, "db": dict(explanation.contribution_db)},
        "Steps": [
            asdict(step) | {"predicted_psnr_db": stage.predicted_psnr_db}
            for step, stage in zip(explanation.steps, explanation.progression.stages, strict=True)
        ],
        "OrderDependence": {
            "orders": explanation.progression.orders,
            "deviation": explanation.progression.order_deviation,
            "unit": "scaled to [0, 1]",
        },
        "PredictedQuality": {"psnr_db": explanation.predicted_psnr_db, "region": "foreground"},
        "GeneratedBy": [generated_by()],
        "Run": run_facts(synthesis),
    }


def sources(synthesis: "Synthesis", names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """modality, path, sha256 and stored type of every input; path is None for one given in memory."""
    rows = []
    for name in names or synthesis.inputs:
        provenance = synthesis.inputs[name].provenance
        rows.append({"modality": name} | {key: provenance.get(key) for key in ("path", "sha256", "dtype", "note")})
    return rows


def scaling_facts(synthesis: "Synthesis", target: str) -> dict[str, Any]:
    """The unit of a target's values, where it is from, and how to undo it."""
    scaling = synthesis.scalings[target]
    if scaling.kind == "fixed":
        origin = "fixed for this modality"
    elif target in synthesis.inputs:
        origin = "that of the input of the same modality"
    else:
        origin = "typical of the training subjects"
    shift = f"{'-' if scaling.low >= 0 else '+'} {abs(scaling.low):.6g}"
    undo = f"scaled = (value {shift}) / {scaling.high - scaling.low:.6g}"
    return {**scaling.to_json(), "unit": MODALITIES[target].unit, "origin": origin, "undo": undo}


def run_facts(synthesis: "Synthesis") -> dict[str, Any]:
    """The record of a run without the inputs, which stand beside it."""
    return {key: value for key, value in synthesis.record.items() if key != "sources"}


def _deviation_sidecar(synthesis: "Synthesis", target: str, image: str) -> dict[str, Any]:
    return {
        "Description": f"Predicted standard error of every voxel of {image}, in the unit of that image",
        "Synthetic": True,
        "Modality": target,
        "Sources": [image],
        "SkullStripped": synthesis.record["skull_stripped"],
        "Units": MODALITIES[target].unit,
        "GeneratedBy": [generated_by()],
    }


def _sidecar(name: str) -> str:
    return name.removesuffix(".nii.gz") + ".json"
