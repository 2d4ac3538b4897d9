"""What a synthesis leaves on disk: images, sidecars, error maps and the report; all of them or none."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medk2n
from medk2n.io.atomic import write_json, write_text
from medk2n.io.nifti import write_volume
from medk2n.io.outputs import OutputFolder, output_folder
from medk2n.report.places import Place, deviation_of, planned_names, series_of, sidecar_of
from medk2n.vocabulary import MODALITIES

if TYPE_CHECKING:
    from medk2n.dicom import DicomStudy
    from medk2n.inference.synthesizer import Synthesis

_SOURCE_LABELS = ("source", "source code", "repository", "code", "homepage")
DATASET, _IGNORED = "dataset_description.json", ".bidsignore"


@contextmanager
def study_folder(place: Place, targets: Iterable[str], *, overwrite: bool = False) -> Iterator[OutputFolder]:
    """Hold the place of one study; raises as `output_folder`. Results never go among the scans of somebody else."""
    shared = (DATASET, _IGNORED, _name(place, place.record))
    names = planned_names(place, targets)
    with output_folder(place.dataset, names, shared=shared, part=place.part, overwrite=overwrite) as folder:
        yield folder


def write_synthesis(
    synthesis: "Synthesis",
    place: Place,
    folder: OutputFolder,
    *,
    dicom: "DicomStudy | None" = None,
    request: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write everything of one study, whole or not at all; returns the files, images first, the report last.

    Args:
        folder: `study_folder` of that place.
        dicom: the study that derived series join, where the place has such.
        request: what decides about the result; with it a record is kept, so that a cohort can go on.

    Raises:
        OutputExistsError, OutputPermissionError, SystemLimitError.
    """
    from medk2n.report.record import write_record

    planned = planned_names(place, synthesis.volumes)
    with folder.whole(last=planned[0], planned=planned) as new:
        made = make_synthesis(synthesis, place, new, dicom)
        if request is not None:
            write_record(synthesis, place, request, made, new / _name(place, place.record))
    return sorted(made, key=lambda path: (path == place.report, "synthstd" in str(path), ".json" in path.name))


def make_synthesis(
    synthesis: "Synthesis", place: Place, root: Path, dicom: "DicomStudy | None" = None
) -> dict[Path, Path]:
    """Make all files of one study below `root`, which they are to leave for the data set of `place`.

    Args:
        dicom: as `write_synthesis`.

    Returns:
        The place of each file -> where it lies now; without those that describe the data set.
    """
    from medk2n.report.synthesis import render_report

    made: dict[Path, Path] = {}

    def new(path: Path) -> Path:
        made[path] = root / _name(place, path)
        made[path].parent.mkdir(parents=True, exist_ok=True)
        return made[path]

    for target in synthesis.volumes:
        image = place.image(target)
        _write_image(synthesis, target, place, new, dicom)
        write_json(new(sidecar_of(image)), image_sidecar(synthesis, target, place))
        if target in synthesis.deviations:
            deviation = deviation_of(image)
            _write_image(synthesis, target, place, new, dicom, error=True)
            write_json(new(sidecar_of(deviation)), _deviation_sidecar(synthesis, target, place))
    write_text(new(place.report), render_report(synthesis, place.study))
    if place.form.nifti:
        _describe_dataset(place, root)
    return made


def _name(place: Place, path: Path) -> str:
    return path.relative_to(place.dataset).as_posix()


def _write_image(
    synthesis: "Synthesis",
    target: str,
    place: Place,
    new: Callable[[Path], Path],
    dicom: "DicomStudy | None",
    *,
    error: bool = False,
) -> None:
    """One synthetic image, or its predicted error, in every form asked for; `new` gives a file its place for now."""
    form, volume = place.form, (synthesis.deviations if error else synthesis.volumes)[target]
    image = deviation_of(place.image(target)) if error else place.image(target)
    if form.nifti:
        from medk2n.dicom.burn import burn_in_volume

        description = "predicted standard error of a SYNTHETIC image" if error else "SYNTHETIC image, not acquired"
        write_volume(burn_in_volume(volume) if form.burn_in else volume, new(image), description=description)
    if form.dicom and dicom:
        from medk2n.dicom import Maker, write_series

        record = synthesis.record
        settings = json.dumps({key: record[key] for key in ("seed", "control")}, sort_keys=True)
        write_series(
            volume,
            dicom,
            lambda name: new(series_of(image) / name),
            reference=synthesis.reference,
            sources=_seen(synthesis, target),
            maker=Maker(record["model"], record["model_sha256"], medk2n.__version__, settings),
            error=error,
            burnt=form.burn_in is not False,
        )


def _describe_dataset(place: Place, root: Path) -> None:
    """What makes a folder of outputs a BIDS derivative; the same for all of its studies."""
    description = {
        "Name": "Synthetic images made by medk2n",
        "BIDSVersion": "1.11.0",
        "DatasetType": "derivative",
        "GeneratedBy": [generated_by()],
    }
    write_json(root / DATASET, description | place.described())
    if ignored := place.ignored():
        write_text(root / _IGNORED, "\n".join(ignored) + "\n")


def generated_by() -> dict[str, str]:
    """GeneratedBy of BIDS; with a CodeURL where the package, as installed, names one."""
    facts = {"Name": "medk2n", "Version": medk2n.__version__, "Description": "SYNTHETIC images; research use only"}
    return facts | ({"CodeURL": url} if (url := _code_url()) else {})


def _code_url() -> str:
    """The project URL of the package's metadata that leads to its source; empty without one, never a guess."""
    try:
        rows = metadata.metadata("medk2n").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    urls = {label.strip().casefold(): url.strip() for label, _, url in (row.partition(",") for row in rows)}
    return next((urls[label] for label in _SOURCE_LABELS if label in urls), "")


def image_sidecar(synthesis: "Synthesis", target: str, place: Place) -> dict[str, Any]:
    """Everything that a reader of one synthetic image should be able to find out without this package."""
    explanation = synthesis.explanations[target]
    seen = _seen(synthesis, target)
    reference = sources(synthesis, [synthesis.reference])[0]["path"]
    return {
        "Description": f"SYNTHETIC {MODALITIES[target].label} image, predicted from "
        f"{', '.join(seen)} by medk2n; not acquired; research use only",
        "Synthetic": True,
        "Modality": target,
        "Sources": [place.source(source["path"], source["modality"]) for source in sources(synthesis, seen)],
        "SourceDetails": [
            row | {"path": row["path"] and place.source(row["path"], "")} for row in sources(synthesis, seen)
        ],
        "SkullStripped": synthesis.record["skull_stripped"],
        "SpatialReference": place.source(reference, "") if reference else "orig",
        "Units": _unit(synthesis, target),
        "Scaling": scaling_facts(synthesis, target),
        "KeyFrame": explanation.key,
        "Contribution": {
            "method": explanation.contribution_method,
            "db": dict(explanation.contribution_db),
            "meaning": "expected: shares of PredictedQuality, not measured",
        },
        "Steps": [
            asdict(step) | {"predicted_psnr_db": stage.predicted_psnr_db}
            for step, stage in zip(explanation.steps, explanation.progression.stages, strict=True)
        ],
        "OrderDependence": {
            "orders": explanation.progression.orders,
            "deviation": explanation.progression.order_deviation,
            "unit": "scaled to [0, 1]",
        },
        "PredictedQuality": {
            "psnr_db": explanation.predicted_psnr_db,
            "region": "foreground",
            "meaning": "expected, not measured",
        },
        "Identity": identity_facts(synthesis, target),
        "GeneratedBy": [generated_by()],
        "Run": run_facts(synthesis),
    }


def identity_facts(synthesis: "Synthesis", target: str) -> dict[str, Any] | None:
    """What the model's judge recognises an image as; None where it has none, or never learned this modality."""
    pooled = synthesis.record.get("identity", {}).get(target)
    if not pooled:
        return None
    named = max(pooled, key=pooled.__getitem__)
    return {
        "score": round(pooled[target], 4),
        "recognised_as": named,
        "meaning": "probability that it is the modality it claims, by a network that no loss of the model has used",
    }


def _seen(synthesis: "Synthesis", target: str) -> list[str]:
    """The inputs that a target was made from, in the order given."""
    steps = {step.source for step in synthesis.explanations[target].steps}
    return [name for name in synthesis.inputs if name in steps]


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
    return {**scaling.to_json(), "unit": _unit(synthesis, target), "origin": origin, "undo": undo}


def _unit(synthesis: "Synthesis", target: str) -> str:
    """The modality's, unless the target is a remake of an input that was in another."""
    row, scaling = MODALITIES[target], synthesis.scalings[target]
    return row.unit if row.scaling == scaling.kind else "arbitrary"


def run_facts(synthesis: "Synthesis") -> dict[str, Any]:
    """The record of a run without the inputs, which stand beside it."""
    return {key: value for key, value in synthesis.record.items() if key != "sources"}


def _deviation_sidecar(synthesis: "Synthesis", target: str, place: Place) -> dict[str, Any]:
    image = place.image(target)
    return {
        "Description": f"Predicted standard error of every voxel of {image.name}, in the unit of that image",
        "Synthetic": True,
        "Modality": target,
        "Sources": [place.own(image)],
        "SkullStripped": synthesis.record["skull_stripped"],
        "Units": _unit(synthesis, target),
        "GeneratedBy": [generated_by()],
    }
