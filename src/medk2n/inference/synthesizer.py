"""The public face: some of a patient's scans in, the missing ones out, on the patient's own grid.

from medk2n import Synthesizer

synthesizer = Synthesizer.from_pretrained("default")
result = synthesizer.synth({"t1n": "T1.nii.gz", "t2w": "T2.nii.gz"}, targets=["t2f"])
result["t2f"].save("flair.nii.gz")
"""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

import medk2n
from medk2n.checkpoint import ModelConfig, find_model
from medk2n.config.align import Align
from medk2n.config.control import FusionRule, by_short_name
from medk2n.data.discover import discover_study
from medk2n.data.intensity import Scaling, unit_doubt
from medk2n.data.subject import Subject
from medk2n.data.working import Workspace, scaled_on, skull_stripped
from medk2n.data.working import align as on_one_grid
from medk2n.errors import UsageError, VolumeReadError
from medk2n.gatekeeper import Gatekeeper
from medk2n.geometry.grid import Grid
from medk2n.inference.contribution import contributions
from medk2n.inference.control import StudyControl
from medk2n.inference.predictor import Inference, Progress, SlicePredictor, load_predictor
from medk2n.inference.progression import Progression, progressions
from medk2n.io.nifti import from_nibabel, read_volume
from medk2n.io.volume import Volume
from medk2n.vocabulary import modality

Image = str | Path | Volume | nibabel.spatialimages.SpatialImage | tuple[np.ndarray, np.ndarray]
Study = str | Path | Subject | Mapping[str, Image]


@dataclass(frozen=True)
class Step:
    """One frame of a target's sequence, as the networks saw it.

    Attributes:
        source: modality of the frame.
        weight: W_ij, the gain in dB that it is predicted to bring (for the key frame: over no input at all); below 0 it
            is expected to do harm.
        threshold: tau_j in dB that the weight is held against; 0 for the key frame.
        gate: P_ij, the share of the answer that sees the frame: 1 in, 0 left out, in doubt between.
        effective_weight: the same within what the user laid down, as a mean over the patient.
    """

    source: str
    weight: float
    threshold: float
    gate: float
    effective_weight: float


@dataclass(frozen=True)
class Explanation:
    """Why a target looks as it does.

    Attributes:
        key: the key frame.
        steps: the frames in the order they were added, key frame first.
        contribution_db: source -> what it is expected to give: its share of the predicted PSNR, in dB.
        contribution_method: "shapley" (exact) or "leave-one-out" (more than four inputs).
        predicted_psnr_db: of the target inside the foreground, from the predicted error per voxel.
        progression: the target after each step, as a picture, and what forced orders would change.
    """

    key: str
    steps: tuple[Step, ...]
    contribution_db: dict[str, float]
    contribution_method: str
    predicted_psnr_db: float
    progression: Progression


@dataclass(frozen=True)
class Synthesis(Mapping[str, Volume]):
    """Target -> synthetic volume, float32 on the reference grid; and what goes with it.

    Attributes:
        volumes: the synthetic volumes.
        inputs: the inputs on the reference grid, in their own intensities.
        deviations: target -> predicted standard error per voxel, in the target volume's unit.
        explanations: target -> why.
        scalings: target -> the unit: value = low + scaled (high - low).
        reference: modality whose grid was used.
        record: what a sidecar needs: model, hashes, versions, seed, device, seconds.
    """

    volumes: dict[str, Volume]
    inputs: dict[str, Volume]
    deviations: dict[str, Volume]
    explanations: dict[str, Explanation]
    scalings: dict[str, Scaling]
    reference: str
    record: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, target: str) -> Volume:
        return self.volumes[target]

    def __iter__(self) -> Iterator[str]:
        return iter(self.volumes)

    def __len__(self) -> int:
        return len(self.volumes)


class Synthesizer:
    """A model, loaded once, that completes any number of studies."""

    def __init__(self, predictor: SlicePredictor, name: str, gatekeeper: Gatekeeper | None = None) -> None:
        self._predictor = predictor
        self._gatekeeper = gatekeeper or Gatekeeper()
        self.name = name

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path = "default", *, device: str = "cpu", precision: str = "fp32"
    ) -> "Synthesizer":
        """Load a bundled model ("default", "brain") or a folder written by `medk2n train`.

        Args:
            precision: of the network's passes, fp32 or bf16.

        Raises:
            UnknownNameError, CheckpointError: no such model, or altered weights.
            UsageError: a reference model (`unet`) that is only there to be compared with.
        """
        folder = find_model(name_or_folder)
        predictor = load_predictor(folder, device, precision=precision)
        if not predictor.decides:
            raise UsageError(f"{folder}: {predictor.name} is a reference for `medk2n evaluate`; it explains nothing")
        return cls(predictor, folder.name, Gatekeeper.of_model(folder, predictor.config.spacing_mm))

    @property
    def config(self) -> ModelConfig:
        """What the model knows."""
        return self._predictor.config

    def synth(
        self,
        study: Study,
        targets: Sequence[str] | None = None,
        *,
        reference: str | None = None,
        control: Mapping[str, FusionRule] | None = None,
        align: Align | str = Align.warn,
        force: bool = False,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Synthesis:
        """Synthesize `targets` of one study.

        Args:
            study: a folder, a `Subject`, or modality -> path, nibabel image, `Volume` or (array, affine).
            targets: modality names or aliases; None is everything the model knows and the study lacks.
            reference: the input whose grid the outputs have; None is the first.
            control: target -> what you lay down about its fusion: the key frame, inputs to leave out, bounds of
                weights. All that is left open the content decides.
            align: "warn" measures how the inputs lie to the reference and tells what seems displaced; "fix" registers
                them to it first (rigidly; each is still resampled once); "off" does neither.
            force: use inputs that are almost certainly not what they are said to be.
            seed: written into the record; nothing in a synthesis is random.
            progress: called with (slices done, slices in all).

        Raises:
            UsageError: unknown or doubled names, no inputs, nothing to do, rules that cannot be followed.
            DoubtfulScanError: an input that is almost certainly no scan, or another one than its name says.
            VolumeReadError, GeometryError: an input that cannot be used.
        """
        started = time.perf_counter()
        study = discover_study(study) if isinstance(study, str | Path) else study
        given = as_volumes(study)
        explicit = isinstance(study, Mapping)
        ignored = [name for name in given if name not in self.config.modalities and not explicit]
        inputs = {name: volume for name, volume in given.items() if name not in ignored}
        wanted = self._targets(targets, given)
        if given and not inputs:
            raise UsageError(
                f"the study has {', '.join(given)} alone; the model knows {', '.join(self.config.modalities)}"
            )
        self._predictor.indices(inputs)
        first = self._reference(reference, inputs)
        align = _align(align)
        inputs, registration = _registered(inputs, first) if align == Align.fix else (inputs, {})
        grid, space = inputs[first].grid, Workspace.around(inputs[first], self.config.spacing_mm)
        path = str(inputs[first].provenance.get("path", first))
        stacks, finer, patient, own = {}, {}, {}, {}
        for name, volume in inputs.items():
            values, patient[name], own[name] = scaled_on(volume, grid, path)
            stacks[name] = space.stack(values)
            finer[name] = values - space.unstack(stacks[name])
        keeper = replace(self._gatekeeper, force=force)
        examined = keeper.examine(inputs, first, pairs=align != Align.off, slices=stacks).admitted()
        rules = _rules(control or {})
        laid_down = StudyControl.of(rules, inputs, wanted, space)
        inference = self._predictor.infer(stacks, wanted, progress, control=laid_down)
        scalings = {name: own.get(name) or self._typical(name) for name in wanted}
        stripped = skull_stripped(inputs)
        inputs = on_one_grid(inputs, grid, path)
        record = {
            "model": self.name,
            "model_sha256": self.config.sha256,
            "model_licence": self.config.licence,
            "versions": {"medk2n": medk2n.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "seed": seed,
            "control": {name: rule.model_dump(mode="json", exclude_defaults=True) for name, rule in rules.items()},
            "control_masks": {str(path): digest for path, digest in laid_down.hashes.items()},
            "device": self._predictor.device,
            "precision": self._predictor.precision,
            "working_spacing_mm": self.config.spacing_mm,
            "skull_stripped": stripped,
            "ignored_inputs": ignored,
            "warnings": [*_left_out(study), *_warnings(inputs, own), *examined.lines()],
            "placed": examined.placed(),
            "checks": {"align": align.value, "registration": registration, **examined.to_json()},
            "sources": {name: dict(volume.provenance) for name, volume in inputs.items()},
        }
        volumes, deviations = {}, {}
        for name in wanted:
            scaling, air = scalings[name], modality(name).background
            inside = np.logical_or.reduce([patient[source] for source in laid_down.sources(name, inputs)])
            image = space.unstack(inference.means[name])
            for source, share in inference.shares[name].items():
                image += space.unstack(share) * finer[source]
            image = scaling.invert(np.clip(image, 0.0, 1.0))
            provenance = {"synthetic": True, "sources": record["sources"], "seed": seed}
            provenance |= {"model": self.name, "model_sha256": self.config.sha256}
            volumes[name] = Volume(np.where(inside, image, air).astype(np.float32), grid, name, provenance)
            width = scaling.high - scaling.low
            error = np.sqrt(np.maximum(space.unstack(inference.variances[name]), 0.0)) * width
            deviations[name] = Volume(np.where(inside, error, 0.0).astype(np.float32), grid, name, provenance)
        explanations = self._explain(stacks, wanted, inference)
        record["identity"] = self._recognised(stacks, inference)
        record["elapsed_s"] = round(time.perf_counter() - started, 2)
        return Synthesis(volumes, inputs, deviations, explanations, scalings, first, record)

    def _recognised(self, stacks: Mapping[str, np.ndarray], inference: Inference) -> dict[str, dict[str, float]]:
        """Target -> what the judge V' recognises its image as: name -> probability. Of those alone that it knows."""
        identity = self._gatekeeper.identity
        if identity is None:
            return {}
        inside = np.any([array > 0 for array in stacks.values()], axis=0)
        return {
            name: identity.probabilities(np.where(inside, image.clip(1 / 255, 1), 0), judge=True)
            for name, image in inference.means.items()
            if name in identity.names
        }

    def _targets(self, targets: Sequence[str] | None, given: Mapping[str, Volume]) -> list[str]:
        if targets is None:
            wanted = [name for name in self.config.modalities if name not in given]
            if not wanted:
                raise UsageError(
                    f"the study already has everything the model knows ({', '.join(self.config.modalities)}); "
                    "name a target to re-make it"
                )
            return wanted
        wanted = [modality(name).name for name in targets]
        doubled = sorted({name for name in wanted if wanted.count(name) > 1})
        if doubled:
            raise UsageError(f"target given twice: {', '.join(doubled)}; name each target once")
        if not wanted:
            raise UsageError("no target given; name at least one, or leave targets out for all that is missing")
        self._predictor.indices(wanted)
        return wanted

    @staticmethod
    def _reference(reference: str | None, inputs: Mapping[str, Volume]) -> str:
        if reference is None:
            return next(iter(inputs))
        name = modality(reference).name
        if name not in inputs:
            raise UsageError(f"reference {name} is not among the inputs ({', '.join(inputs)})")
        return name

    def _typical(self, name: str) -> Scaling:
        """A target that was never acquired has no unit of its own: the training subjects' median."""
        low, high = self.config.statistics.typical_scaling[name]
        return Scaling(low, high, kind=modality(name).scaling)

    def _explain(
        self, stacks: Mapping[str, np.ndarray], wanted: Sequence[str], inference: Inference
    ) -> dict[str, Explanation]:
        inside = np.any([array > 0 for array in stacks.values()], axis=0)
        shares = contributions(self._predictor, list(stacks), wanted, inference)
        grown = progressions(self._predictor, wanted, inference)
        names = self.config.modalities
        explanations = {}
        for target in wanted:
            plan = inference.plan[names.index(target)]
            steps = tuple(
                Step(
                    names[step.source],
                    step.weight,
                    step.threshold,
                    step.gate,
                    inference.effective[target][names[step.source]],
                )
                for step in plan
            )
            error = float(inference.variances[target][inside].mean())
            explanations[target] = Explanation(
                steps[0].source,
                steps,
                shares.decibels[target],
                shares.method,
                -10 * float(np.log10(error)),
                grown[target],
            )
        return explanations


def _left_out(study: Study) -> list[str]:
    """What lies beside the inputs and was not used, for people: a target may be there already."""
    return [f"left out: {file}" for file in study.left_out] if isinstance(study, Subject) else []


def _warnings(inputs: Mapping[str, Volume], scalings: Mapping[str, Scaling]) -> list[str]:
    """What was taken on trust about the inputs, for people."""
    told = {name: (volume.provenance.get("note"), unit_doubt(scalings[name], name)) for name, volume in inputs.items()}
    return [f"{name}: {line}" for name, lines in told.items() for line in lines if line]


def _align(wanted: str) -> Align:
    try:
        return Align(wanted)
    except ValueError as error:
        raise UsageError(f"align {wanted!r}: expected one of {', '.join(Align)}") from error


def _registered(inputs: Mapping[str, Volume], reference: str) -> tuple[dict[str, Volume], dict[str, Any]]:
    """The inputs where registration to the reference puts them, unresampled, and what was done to each."""
    from medk2n.preparation.draft import Draft
    from medk2n.preparation.register import Register  # ITK is not light

    ordered = {reference: inputs[reference], **inputs}
    outcome = Register().apply(Draft("the study", ordered, {}))
    return {name: outcome.draft.scans[name] for name in inputs}, dict(outcome.facts)


def _rules(control: Mapping[str, FusionRule]) -> dict[str, FusionRule]:
    try:
        return by_short_name(control)
    except ValueError as error:
        raise UsageError(f"control: {error}") from error


def as_volumes(study: Study) -> dict[str, Volume]:
    """Read a study in whatever form it comes: modality -> volume.

    Raises:
        UsageError: no image, or a modality given twice under two names.
    """
    if isinstance(study, Subject):
        return {name: study.readers[name]() for name in study.modalities}
    if isinstance(study, str | Path):
        return as_volumes(discover_study(study))
    volumes: dict[str, Volume] = {}
    for given, image in study.items():
        name = modality(given).name
        if name in volumes:
            raise UsageError(f"modality {name} given twice (again as {given!r}); give each input once")
        volumes[name] = _as_volume(image, name)
    if not volumes:
        raise UsageError("no input given; at least one image is needed")
    return volumes


def _as_volume(image: Image, name: str) -> Volume:
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | Path):
        return read_volume(Path(image), name)
    if isinstance(image, tuple) and len(image) == 2:
        return _from_array(*image, name)
    if isinstance(image, nibabel.spatialimages.SpatialImage):
        return from_nibabel(image, name)
    raise UsageError(
        f"{name}: expected a path, a nibabel image, a Volume or (array, affine), got {type(image).__name__}"
        + ("; an array alone does not say where its voxels are" if isinstance(image, np.ndarray) else "")
    )


def _from_array(array: object, affine: object, name: str) -> Volume:
    values = np.asarray(array)
    if values.dtype.kind not in "biuf" or values.ndim < 3:
        raise VolumeReadError(f"{name}: is {values.ndim}-D of {values.dtype}, expected a 3-D array of real numbers")
    grid = Grid(values.shape[:3], affine)  # looks at the affine before nibabel does
    volume = from_nibabel(nibabel.Nifti1Image(values.astype(np.float32), grid.affine), name)
    return Volume(volume.array, grid, name, {"sha256": volume.provenance["sha256"]})
