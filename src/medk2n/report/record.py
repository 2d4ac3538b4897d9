"""What a finished study says of itself, so that a cohort that was stopped goes on where it was.

A record is written when all files of a study are made and before the first is moved to its place. So whatever is found
there later either has the hash that the record names, or is somebody else's.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, ValidationError

from medk2n.data.patient import patient
from medk2n.errors import OutputExistsError
from medk2n.io.atomic import refuse_existing, sha256_file, write_json
from medk2n.io.door import kept_json
from medk2n.io.outputs import is_inside
from medk2n.report.figures import View, display_range, thumbnail_png
from medk2n.report.places import RECORDS, Place, planned_outputs

if TYPE_CHECKING:
    from medk2n.inference.synthesizer import Synthesis

FORMAT = 1


def _inside(name: str) -> str:
    if not is_inside(name):
        raise ValueError("leads out of the data set")
    return name


_Inside = Annotated[str, AfterValidator(_inside)]


class _Target(BaseModel):
    predicted_psnr_db: FiniteFloat
    thumbnail: str


class _Record(BaseModel):
    """What is relied on; it may have been cut off or changed."""

    format: Literal[1]
    study: str
    request: dict[str, Any]
    report: _Inside
    outputs: dict[_Inside, str]
    inputs: list[str]
    targets: dict[str, _Target] = Field(min_length=1)
    warnings: list[str]
    elapsed_s: float | None


def is_complete(place: Place, request: Callable[[], Mapping[str, Any]], targets: Iterable[str]) -> bool:
    """Whether all files of a study are there, unaltered, and answer this very request.

    Args:
        request: tells what decides about the result: hashes of the inputs, the model's hash, targets, settings; asked
            only if there is something to compare it with.

    Raises:
        OutputExistsError: files are there that answer another request, were altered, or are not ours.
    """
    planned = planned_outputs(place, targets)
    record = read_record(place.record)
    if record is None:
        refuse_existing(planned, overwrite=False)
        return False
    hashes = {place.dataset / name: digest for name, digest in record["outputs"].items()}
    there = {file for path in {*planned, *hashes} for file in _files(path)}
    if there and (before := record["request"]) != (now := request()):
        changed = ", ".join(sorted(k for k in {*before, *now} if before.get(k) != now.get(k)))
        raise OutputExistsError(
            f"{place.report}: {place.study} was made with other {changed}; add --overwrite to make it again, or choose "
            "another --out"
        )
    for path in sorted(there):
        if not path.is_file() or sha256_file(path) != hashes.get(path):
            raise OutputExistsError(f"{path} is not as it was written; move it away, or add --overwrite to replace it")
    return set(hashes) <= there and set(planned) <= {*there, *(file.parent for file in there)}


def _files(path: Path) -> list[Path]:
    """A file that is there, or all of a series' folder."""
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    return [path] if path.exists() else []


def read_record(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none that this version understands."""
    record = kept_json(path)
    try:
        _Record.model_validate(record)
    except ValidationError:
        return None
    return dict(record)


def records(dataset: Path) -> list[dict[str, Any]]:
    """All records of a data set whose report is there, in name order."""
    found = [read_record(path) for path in sorted((dataset / RECORDS).glob("*.json"))]
    return [record for record in found if record and (dataset / record["report"]).is_file()]


def write_record(
    synthesis: "Synthesis", place: Place, request: Mapping[str, Any], made: Mapping[Path, Path], at: Path
) -> None:
    """Write the record of a study whose files are made.

    Args:
        made: final place of each file -> where it lies now.
        at: where the record is to be written for now.
    """
    reference = synthesis.inputs[synthesis.reference]
    inside = patient(reference)
    view = View.around(reference, inside=inside)
    limits = {name: display_range(volume, inside) for name, volume in synthesis.volumes.items()}
    write_json(
        at,
        {
            "format": FORMAT,
            "study": place.study,
            "request": dict(request),
            "report": place.report.relative_to(place.dataset).as_posix(),
            "outputs": {path.relative_to(place.dataset).as_posix(): sha256_file(now) for path, now in made.items()},
            "inputs": list(synthesis.inputs),
            "targets": {
                name: {
                    "predicted_psnr_db": explanation.predicted_psnr_db,
                    "thumbnail": thumbnail_png(synthesis.volumes[name], view, limits[name]),
                }
                for name, explanation in synthesis.explanations.items()
            },
            "warnings": synthesis.record.get("warnings", []),
            "elapsed_s": synthesis.record.get("elapsed_s"),
        },
    )
