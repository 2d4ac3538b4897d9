"""A trained model over the slices of one study, in scaled units.

Every decision of the fusion is taken once per study from evidence pooled over some of its
slices, then all slices follow that plan in chunks, so memory does not grow with the volume.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from medk2n.checkpoint import ModelConfig, load
from medk2n.data.stored import neighbours
from medk2n.data.working import every_nth
from medk2n.errors import CheckpointError, UsageError
from medk2n.inference._spec import Answer
from medk2n.inference.control import StudyControl
from medk2n.models._spec import Prediction, Query
from medk2n.models.medk2n import MedK2N, MedK2NPrediction
from medk2n.models.medk2n_parts.control import Control, Plan, PlannedStep
from medk2n.models.medk2n_parts.encoders.hiera import HieraEncoder
from medk2n.models.medk2n_parts.progressive_fusion import Guidance, Scene

_DECIDING_SLICES = 8
_CHUNK_PIXELS = 400_000  # of all frames and targets of a chunk: about half a gigabyte of activations
_MARGIN = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sight:
    """The slices on which a study is decided, and what the synthesizer proposed from sets of its frames there.

    Attributes:
        scene: the slices as samples.
        at: their indices in the study.
        box: in-plane, that they are cut to.
        control: what the user laid down, on these slices.
    """

    scene: Scene
    at: list[int]
    box: tuple[slice, slice]
    control: Control


@dataclass(frozen=True)
class Inference:
    """What a model says of a study, scaled; (s, h, w) each, 0 (and variance 0) outside the computed box.

    Attributes:
        means: target -> image in [0, 1].
        variances: target -> predicted squared error; empty if the model gives none.
        plan: target -> steps of the fusion, or None for models without one.
        effective: target -> source -> mean presence inside the study; empty without a plan.
        shares: target -> source -> (s, h, w), what a change of the source adds to the image: its slope in the base
            image, as far as the image follows that there. How detail finer than the working grid is carried over.
            Empty without a plan.
        sight: where the plan was made, or None.
    """

    means: dict[str, np.ndarray]
    variances: dict[str, np.ndarray]
    plan: Plan | None
    effective: dict[str, dict[str, float]]
    shares: dict[str, dict[str, np.ndarray]]
    sight: Sight | None = None


class SlicePredictor:
    """A checkpoint in evaluation mode; loads its weights once.

    Args:
        every: `predict` leaves all but every nth slice at 0 (a thinned evaluation); `infer` gives them all.
        precision: of the passes, fp32 or bf16; what is decided upon them is 32-bit.
    """

    def __init__(
        self, module: nn.Module, config: ModelConfig, device: str = "cpu", *, every: int = 1, precision: str = "fp32"
    ) -> None:
        self.module, self.config, self.device, self.every = module, config, device, every
        self.precision = precision
        self.name = config.model
        self.modalities = config.modalities

    def predict(
        self, images: Mapping[str, np.ndarray], targets: Sequence[str], *, plan: Plan | None = None
    ) -> dict[str, Answer]:
        """See `Predictor`; for the plan see `infer`."""
        depth = len(next(iter(images.values()), ()))
        found = self.infer(images, targets, only=every_nth(depth, self.every) if depth else None, plan=plan)
        return {
            target: Answer(image, found.variances.get(target), self._weighed(found.plan, target))
            for target, image in found.means.items()
        }

    def _weighed(self, plan: Plan | None, target: str) -> dict[str, tuple[float, float]]:
        steps = plan[self.modalities.index(target)] if plan else ()
        return {self.modalities[step.source]: (step.weight, step.gate) for step in steps}

    @torch.inference_mode()
    def infer(
        self,
        images: Mapping[str, np.ndarray],
        targets: Sequence[str],
        progress: Progress | None = None,
        *,
        only: Sequence[int] | None = None,
        control: StudyControl | None = None,
        plan: Plan | None = None,
    ) -> Inference:
        """All targets of one study in one call.

        Args:
            images: source -> (s, h, w) in [0, 1], all of one shape.
            targets: short names; one that is also an input is re-made.
            progress: called with (slices done, slices in all).
            only: slices to compute; all others stay 0. None is all. Decisions are taken from the whole study.
            control: what the user laid down about the fusion.
            plan: decided beforehand, for every target; None decides here.

        Raises:
            UsageError: a modality that the model does not know, or no input.
            CheckpointError: what the model makes is no number.
        """
        sources = self.indices(images)
        wanted = self.indices(targets)
        control = control or StudyControl()
        seen = {j: self.indices(control.sources(name, images)) for j, name in zip(wanted, targets, strict=True)}
        shape = next(iter(images.values())).shape
        box, depth_range = bounding_box(images)
        means = {name: np.zeros(shape, np.float32) for name in targets}
        variances: dict[str, np.ndarray] = {}
        effective = {j: np.zeros(len(self.modalities)) for j in wanted}
        mass = 0.0
        shares: dict[str, dict[str, np.ndarray]] = {name: {} for name in targets}
        sight = None
        if self.decides and plan is None:
            sight = self.sight(images, control)
            plan = self.module.decide(sight.scene, self.query(len(sight.at), seen), sight.control)
        size = (box[0].stop - box[0].start) * (box[1].stop - box[1].start)
        if only is not None:
            depth_range = sorted(set(depth_range) & set(only))
        chunk = max(1, _CHUNK_PIXELS // (size * (len(sources) + len(wanted))))
        for start in range(0, len(depth_range), chunk):
            at = depth_range[start : start + chunk]
            laid_down = control.for_slices(self.modalities, box, at, self.device)
            stack = self.stack(images, box, at)
            prediction = self.run(stack, self.query(len(at), seen), plan, laid_down)
            self._refuse_no_number(prediction)
            for t, name in enumerate(targets):
                # queries run over slices first, then targets
                rows, where = slice(t * len(at), (t + 1) * len(at)), (np.array(at)[:, None, None], *_open(box))
                means[name][where] = _numpy(prediction.mean[rows].clamp(0, 1))
                if prediction.log_variance is not None:
                    variances.setdefault(name, np.zeros(shape, np.float32))[where] = _numpy(
                        prediction.log_variance[rows].exp()
                    )
                for source, share in self._shares(prediction, stack, rows):
                    shares[name].setdefault(source, np.zeros(shape, np.float32))[where] = share
            patient = (stack[:, :, stack.shape[2] // 2] > 0).any(dim=1)
            self._count(prediction, effective, patient, wanted)
            mass += float(patient.sum())
            if progress:
                progress(min(start + chunk, len(depth_range)), len(depth_range))
        named = {
            self.modalities[j]: {self.modalities[i]: float(v / mass) for i, v in enumerate(values) if v or i in seen[j]}
            for j, values in effective.items()
        }
        return Inference(means, variances, plan, named if plan else {}, shares, sight)

    def indices(self, names: Mapping[str, object] | Sequence[str]) -> list[int]:
        """Indices in the checkpoint's list, in its order; for targets in the caller's order."""
        unknown = [name for name in names if name not in self.modalities]
        if unknown:
            raise UsageError(f"the model does not know {', '.join(unknown)}; it knows {', '.join(self.modalities)}")
        if not names:
            raise UsageError("no modality given; at least one input and one target are needed")
        found = [self.modalities.index(name) for name in names]
        return sorted(found) if isinstance(names, Mapping) else found

    def stack(self, images: Mapping[str, np.ndarray], box: tuple[slice, slice], at: Sequence[int]) -> torch.Tensor:
        """Slices with their neighbours, cut to the box: (len(at), m, s, h, w); absent channels hold NaN."""
        slices = self.config.params["slices"]
        depth = len(next(iter(images.values())))
        around = np.stack([neighbours(z, depth, slices) for z in at])
        h, w = box[0].stop - box[0].start, box[1].stop - box[1].start
        out = torch.full((len(at), len(self.modalities), slices, h, w), torch.nan)
        for name, array in images.items():
            out[:, self.modalities.index(name)] = torch.from_numpy(np.ascontiguousarray(array[around][..., *box]))
        return out.to(self.device)

    def query(self, slices: int, sources: Mapping[int, Sequence[int]]) -> Query:
        """Every target on every slice, each from its own sources: target -> sources. Slices run fastest."""
        mask = torch.zeros(len(sources), len(self.modalities), dtype=torch.bool)
        for row, given in enumerate(sources.values()):
            mask[row, list(given)] = True
        n = len(sources)
        return Query(
            torch.arange(slices).repeat(n).to(self.device),
            mask.repeat_interleave(slices, dim=0).to(self.device),
            torch.tensor(list(sources)).repeat_interleave(slices).to(self.device),
        )

    def everything(self, images: Mapping[str, object], targets: Sequence[str]) -> Plan:
        """The plan that lets every input in, whole: what the synthesizer of a model that decides makes by itself."""
        steps = tuple(PlannedStep(i, 0.0, 0.0, 1.0) for i in self.indices(images))
        return dict.fromkeys(self.indices(targets), steps)

    @property
    def decides(self) -> bool:
        """Whether the model decides what it lets in, and can explain it."""
        return isinstance(self.module, MedK2N)

    def sight(self, images: Mapping[str, np.ndarray], control: StudyControl) -> Sight:
        """Some spread slices of a study, that with most of the patient among them."""
        box, depth_range = bounding_box(images)
        area = np.any([array > 0 for array in images.values()], axis=0).sum(axis=(1, 2))
        at = deciding_slices(depth_range, most=_DECIDING_SLICES, shown=int(area.argmax()))
        given = torch.tensor([name in images for name in self.modalities], device=self.device)
        with self._passes():
            scene = self.module.scene(self.stack(images, box, at), given.expand(len(at), -1))
        return Sight(scene, at, box, control.for_slices(self.modalities, box, at, self.device))

    def run(self, images: torch.Tensor, query: Query, plan: Plan | None, control: Control) -> Prediction:
        """One pass through the network: images as of `stack`, query as of `query`; a plan where the model decides."""
        with self._passes():
            if plan is None:
                return self.module(images, query)
            h, w = images.shape[-2:]
            needed = query.sources.any(dim=0).expand(len(images), -1)
            made = self.module.decode(self.module.scene(images, needed), query, Guidance(plan, control))
            mean, log_variance = made.mean[:, :h, :w], made.log_variance[:, :h, :w]
            return MedK2NPrediction(mean, log_variance, made.fused, made.slope[..., :h, :w])

    def _passes(self) -> AbstractContextManager[object]:
        """The precision of the network's passes."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def _refuse_no_number(self, prediction: Prediction) -> None:
        """Clamped to its scale an infinite image would look like one."""
        for made in (prediction.mean, prediction.log_variance):
            if made is not None and not bool(made.isfinite().all()):
                raise CheckpointError(
                    f"{self.name}: what it makes of this study is not finite; its weights are broken: copy the model "
                    "folder again, or take another model"
                )

    def _shares(self, prediction: Prediction, stack: torch.Tensor, rows: slice) -> Iterator[tuple[str, np.ndarray]]:
        """What a change of each input adds to the image: its slope in the base image, as far as that is followed."""
        if not isinstance(prediction, MedK2NPrediction):
            return
        slope = prediction.slope[rows]
        centre = stack[:, :, stack.shape[2] // 2].nan_to_num()
        follows = local_slope(prediction.mean[rows], (slope * centre).sum(dim=1))
        for i in slope.abs().amax(dim=(0, 2, 3)).nonzero().squeeze(1).tolist():
            yield self.modalities[i], _numpy(follows * slope[:, i])

    def _count(
        self, prediction: Prediction, effective: dict[int, np.ndarray], patient: torch.Tensor, targets: Sequence[int]
    ) -> None:
        """Add up presence over the slices of a chunk, inside the patient (slices, h, w)."""
        if not isinstance(prediction, MedK2NPrediction):
            return
        h, w = patient.shape[-2:]
        for t, j in enumerate(targets):
            shown = prediction.fused.presence[t * len(patient) : (t + 1) * len(patient), :, :h, :w]
            effective[j] += torch.einsum("nmhw,nhw->m", shown, patient.to(shown.dtype)).double().cpu().numpy()


def local_slope(image: torch.Tensor, guide: torch.Tensor, radius: int = 2, floor: float = 1e-4) -> torch.Tensor:
    """Least-squares slope of an image on a guide, (n, h, w) each, around every voxel (He 2013, equations 5 and 8).

    As far as the guide explains the image there: the slope is multiplied by the squared correlation, so that noise
    beside an edge of the image's own carries nothing. `floor` (variance) makes both 0 where nothing varies.
    """

    def mean(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x[:, None], 2 * radius + 1, 1, radius, count_include_pad=False).squeeze(1)

    def covariance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return mean(x * y) - mean(x) * mean(y)

    both, of_guide, of_image = (covariance(x, y) for x, y in ((guide, image), (guide, guide), (image, image)))
    explained = both.square() / ((of_guide.clamp_min(0) + floor) * (of_image.clamp_min(0) + floor))
    return mean(explained.clamp_max(1) * both / (of_guide.clamp_min(0) + floor))


def load_predictor(folder: Path, device: str = "cpu", *, every: int = 1, precision: str = "fp32") -> SlicePredictor:
    """A checkpoint folder as a predictor."""
    return as_predictor(*load(folder, device=device), device, every=every, precision=precision)


def as_predictor(
    module: nn.Module, config: ModelConfig, device: str = "cpu", *, every: int = 1, precision: str = "fp32"
) -> SlicePredictor:
    """A module in evaluation mode as a predictor; adapters of its encoder are merged into what they adapt."""
    if isinstance(encoder := getattr(module, "encoder", None), HieraEncoder):
        encoder.merge()
    return SlicePredictor(module, config, device, every=every, precision=precision)


def bounding_box(images: Mapping[str, np.ndarray]) -> tuple[tuple[slice, slice], list[int]]:
    """In-plane box of everything that is not background, with a margin, and the slices that hold any."""
    some = np.zeros(next(iter(images.values())).shape, dtype=bool)
    for array in images.values():
        some |= array > 0
    if not some.any():
        return (slice(0, some.shape[1]), slice(0, some.shape[2])), list(range(some.shape[0]))
    box = []
    for axis in (1, 2):
        line = np.flatnonzero(some.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(0, line[0] - _MARGIN), min(some.shape[axis], line[-1] + 1 + _MARGIN)))
    return (box[0], box[1]), np.flatnonzero(some.any(axis=(1, 2))).tolist()


def deciding_slices(depth_range: Sequence[int], *, most: int = _DECIDING_SLICES, shown: int | None = None) -> list[int]:
    """Evenly spread slices on which a study's decisions are taken; the nearest of them gives way to `shown`."""
    picks = np.linspace(0, len(depth_range) - 1, min(most, len(depth_range)) + 2)[1:-1].round().astype(int)
    at = sorted({depth_range[k] for k in picks.tolist()})
    if shown is not None and shown not in at:
        at[int(np.abs(np.array(at) - shown).argmin())] = shown
    return sorted(at)


def _open(box: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.arange(box[0].start, box[0].stop), np.arange(box[1].start, box[1].stop)
    return rows[None, :, None], columns[None, None, :]


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
