"""The panel: the same images under every protocol, as they are and after the best gain and offset.

panel = Panel([resolve("evaluation/protocols", name) for name in ("foreground", "brasyn")])
evaluate(predictors, studies, modalities=("t1n", "t2w"), listener=panel)
panel.records
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medk2n.evaluation.protocols._protocol import Pair, Protocol

if TYPE_CHECKING:
    from medk2n.data.working import WorkingStudy
    from medk2n.evaluation.rows import Row
    from medk2n.inference._spec import Answer

PROTOCOLS = "evaluation/protocols"
"""The registry's folder."""


@dataclass(frozen=True, slots=True)
class PanelRecord:
    """One value of one protocol.

    Attributes:
        sources: the inputs as text, e.g. "t1n+t2w".
        affine_matched: whether the prediction was first given the gain and offset that fit the reference best.
        value: NaN where the protocol has none.
    """

    subject: str
    method: str
    sources: str
    target: str
    protocol: str
    region: str
    metric: str
    affine_matched: bool
    value: float


class Panel:
    """Collects what each protocol says of each image.

    Attributes:
        protocols: in the order of the table.
        records: so far.
    """

    def __init__(self, protocols: Sequence[Protocol]) -> None:
        self.protocols = tuple(protocols)
        self.records: list[PanelRecord] = []

    def measure(
        self,
        method: str,
        study: "WorkingStudy",
        row: "Row",
        predicted: "Mapping[str, Answer]",
        regions: Mapping[str, np.ndarray | None],
    ) -> None:
        """All protocols on one method's answers to one row."""
        for target, answer in predicted.items():
            raw = Pair(target, answer.image, study.images[target], study.scalings[target], regions)
            for pair, matched in ((raw, False), (affine_matched(raw), True)):
                for protocol in self.protocols:
                    for value in protocol.measure(pair):
                        place = (study.id, method, row.label, target, protocol.name)
                        self.records.append(PanelRecord(*place, value.region, value.metric, matched, value.value))


def affine_matched(pair: Pair) -> Pair:
    """The pair after the prediction's best gain and offset: least squares inside the foreground, one of each a volume.

    A scanner's grey scale is arbitrary and a model cannot know it: what this gains is style, what is left is structure.
    The result is clipped to [0, 1]; voxels outside the foreground stay as they are.
    """
    mask = pair.regions["foreground"]
    x, y = (image[mask].astype(np.float64) for image in pair.images)
    varies = x.size > 0 and np.ptp(x) > 0
    gain = float(np.mean((x - x.mean()) * (y - y.mean())) / x.var()) if varies else 0.0
    offset = float(y.mean() - gain * x.mean()) if x.size else 0.0
    matched = np.where(mask, np.clip(gain * pair.predicted + offset, 0, 1), pair.predicted).astype(np.float32)
    return Pair(pair.target, matched, pair.reference, pair.scaling, pair.regions)


@dataclass(frozen=True, slots=True)
class PanelCell:
    """Mean over subjects of one method under one protocol; `n` subjects have a value."""

    protocol: str
    region: str
    metric: str
    method: str
    affine_matched: bool
    n: int
    mean: float


def panel_cells(records: Iterable[PanelRecord]) -> list[PanelCell]:
    """Each image's value averaged over targets, then rows, then subjects, as in the tables; NaN is left out."""
    return [
        PanelCell(*place, len(by_subject), float(np.mean(list(by_subject.values()))))
        for place, by_subject in per_subject(records).items()
    ]


def per_subject(records: Iterable[PanelRecord]) -> dict[tuple[str, str, str, str, bool], dict[str, float]]:
    """(protocol, region, metric, method, matched) -> subject -> mean over rows of the mean over targets."""
    values: dict[tuple, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for r in records:
        if not np.isnan(r.value):
            values[r.protocol, r.region, r.metric, r.method, r.affine_matched][r.subject][r.sources].append(r.value)
    return {
        place: {subject: float(np.mean(list(_means(rows)))) for subject, rows in by_subject.items()}
        for place, by_subject in values.items()
    }


def _means(rows: Mapping[str, Sequence[float]]) -> Iterator[float]:
    yield from (float(np.mean(values)) for values in rows.values())
