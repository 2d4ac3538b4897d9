"""What each part of a trained Med-K2N is worth: the same model asked the same cases, one part neutralised at a time.

Cases are those of `evaluation/damage.py`; clean is a case whole, damaged the mean over its kinds.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from medk2n.errors import UsageError
from medk2n.evaluation.damage import WHOLE, DamageRecord
from medk2n.evaluation.neutralise import PARTS, Part, seeing
from medk2n.evaluation.summary import bootstrap_interval
from medk2n.evaluation.table import interval_text, write_csv
from medk2n.inference._spec import Answer
from medk2n.inference.predictor import SlicePredictor
from medk2n.io.atomic import sha256_array
from medk2n.metrics.psnr import COMPONENT as PSNR
from medk2n.models.medk2n import MedK2N
from medk2n.models.medk2n_parts.progressive_fusion import Scene

FULL = "full model"


class Scenes:
    """The last scenes of a model: what its synthesizer proposes is asked for once, however often it is decided upon."""

    def __init__(self, model: MedK2N, kept: int = 8) -> None:
        self._make, self._kept = model.scene, kept
        self._scenes: dict[str, Scene] = {}

    def __call__(self, images: Tensor, needed: Tensor) -> Scene:
        """As `MedK2N.scene`."""
        key = "".join(sha256_array(x.cpu().numpy()) for x in (images, needed))
        scene = self._scenes.pop(key, None) or self._make(images, needed)
        self._scenes[key] = scene  # the one used last comes last
        if len(self._scenes) > self._kept:
            del self._scenes[next(iter(self._scenes))]
        return scene


class Neutralised:
    """A model without one of its parts."""

    def __init__(self, model: SlicePredictor, name: str, part: Part, scenes: Scenes) -> None:
        self._model, self._part, self._scenes = model, part, scenes
        self.name, self.modalities = name, model.modalities

    def predict(self, images: Mapping[str, np.ndarray], targets: Sequence[str]) -> dict[str, Answer]:
        """See `Predictor`."""
        module = self._model.module
        shared = nullcontext() if self._part.repaints else seeing(module, self._scenes)
        with shared, self._part.taken_from(module):
            return self._model.predict(images, targets)


@dataclass(frozen=True, slots=True)
class Worth:
    """One part; PSNR in dB inside the foreground, means over subjects, with 95 % bootstrap intervals over them.

    Attributes:
        subjects: that count; those with an infinite value do not.
        clean_change, damaged_change: against the full model; NaN for it. Bounds are NaN for one subject.
    """

    part: str
    says: str
    subjects: int
    clean_db: float
    clean_change: float
    clean_low: float
    clean_high: float
    damaged_db: float
    damaged_change: float
    damaged_low: float
    damaged_high: float


def compared(model: SlicePredictor, parts: Sequence[str]) -> list[Neutralised]:
    """The full model, then without each part.

    Raises:
        UsageError: a model that has no such parts.
    """
    if not isinstance(model.module, MedK2N):
        raise UsageError(f"the model is a {model.name}; its parts are not known: expected a medk2n")
    scenes, nothing = Scenes(model.module), Part("", lambda model: nullcontext())
    return [Neutralised(model, name, PARTS.get(name, nothing), scenes) for name in (FULL, *parts)]


def worth(records: Sequence[DamageRecord], *, seed: int) -> list[Worth]:
    """One line a part, the full model first."""
    values: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    for r in records:
        values[r.method, r.subject, r.kind == WHOLE].append(r.psnr_db)
    methods, subjects = (list(dict.fromkeys(key[k] for key in values)) for k in (0, 1))
    table = np.array(
        [[[np.mean(values[m, s, clean]) for clean in (True, False)] for s in subjects] for m in methods]
    )  # (method, subject, clean and damaged)
    table = table[:, np.isfinite(table).all(axis=(0, 2))]
    return [_line(method, own, own - table[0], seed) for method, own in zip(methods, table, strict=True)]


def _line(method: str, own: np.ndarray, change: np.ndarray, seed: int) -> Worth:
    """From a method's values and what they differ by, (subjects, [clean, damaged])."""
    rng, told = np.random.default_rng(seed), []
    for k in (0, 1):
        apart = change[:, k]
        differs = (float(apart.mean()), *bootstrap_interval(apart, rng)) if method != FULL else (math.nan,) * 3
        told += [float(own[:, k].mean()), *differs]
    return Worth(method, PARTS[method].says if method in PARTS else "", len(own), *told)


def write_ablation(folder: Path, records: Sequence[DamageRecord], *, seed: int) -> str:
    """Write ablation.csv, a line a part, records.csv, a line a case and part, and ablation.md; return the Markdown."""
    lines = worth(records, seed=seed)
    write_csv(folder / "records.csv", DamageRecord, records)
    write_csv(folder / "ablation.csv", Worth, lines)
    text = markdown(lines, [kind for kind in dict.fromkeys(r.kind for r in records) if kind != WHOLE])
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    return text


def markdown(lines: Sequence[Worth], kinds: Sequence[str]) -> str:
    """A table, a line a part."""
    head = [
        "# What each part is worth",
        "",
        "The trained model with one part neutralised at a time, nothing trained anew: every target from two and from",
        f"three inputs of {lines[0].subjects} subjects, clean and with one of them damaged ({', '.join(kinds)}).",
        "PSNR in dB inside the foreground; changes against the full model, 95 % bootstrap intervals over subjects.",
        "",
        "| part | neutralised | clean | change | damaged | change |",
        "|---" * 6 + "|",
    ]
    for w in lines:
        clean, damaged = (
            "" if math.isnan(change[0]) else interval_text(*change, PSNR)
            for change in (
                (w.clean_change, w.clean_low, w.clean_high),
                (w.damaged_change, w.damaged_low, w.damaged_high),
            )
        )
        head.append(f"| {w.part} | {w.says} | {w.clean_db:.2f} | {clean} | {w.damaged_db:.2f} | {damaged} |")
    return "\n".join(head) + "\n"
