"""A benchmark's values: collected beside an evaluation, then summed up as the lines of its tables.

    collector = Collector(methods[0], noise_free)
    records = evaluate(predictors, studies, modalities=benchmark.modalities, listener=collector)
    lines = table_lines(benchmark, collector.values(records), methods, seed=0)

Table 1 has a row for each set of inputs, averaged over what is asked for; table 2 one for each target, averaged over
the sets of inputs. Both say the same values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medk2n.evaluation.benchmarks._benchmark import Benchmark
from medk2n.evaluation.evaluate import METRICS, Record, measured
from medk2n.evaluation.figure import best_slice
from medk2n.evaluation.noise_ceiling import CEILING
from medk2n.evaluation.panel import affine_matched
from medk2n.evaluation.protocols._protocol import Pair
from medk2n.evaluation.rows import Row, rows
from medk2n.evaluation.summary import MEAN_ROW, Cell, Difference, Summary, summarise
from medk2n.inference._spec import Answer
from medk2n.registry import resolve

if TYPE_CHECKING:
    from medk2n.data.working import WorkingStudy

REGIONS = ("foreground", "brain", "lesion")
TABLE_METRICS = ("psnr", "ssim", "mae")
ALPHA = 0.05
"""Below it a corrected p-value is called significant."""
NoiseFree = Callable[["WorkingStudy"], Mapping[str, np.ndarray]]
Values = Mapping[bool, Sequence[Record]]
"""Whether after the best gain and offset -> every value."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One slice of one answer of the subject that is shown."""

    row: Row
    target: str
    method: str
    image: np.ndarray


@dataclass(frozen=True, slots=True)
class Shown:
    """The subject that is shown: its id, which of the scored slices, and that slice of each modality (h, w)."""

    subject: str
    slice: int
    images: Mapping[str, np.ndarray]


class Collector:
    """Hears every answer of an evaluation: measures it once more after gain and offset, and keeps a slice to show.

    Args:
        first: name of the method that answers first; what noise allows is measured with it, once a row.
        noise_free: a scored study -> its images without noise; none where they are not known.

    Attributes:
        shown, tiles: of the first subject; None and empty before it.
    """

    def __init__(self, first: str, noise_free: NoiseFree | None = None) -> None:
        self.shown: Shown | None = None
        self.tiles: list[Tile] = []
        self._first, self._noise_free = first, noise_free
        self._clean: tuple[str, Mapping[str, np.ndarray]] = ("", {})
        self._metrics = [resolve("metrics", name) for name in METRICS]
        self._ceiling: list[Record] = []
        self._matched: list[Record] = []

    def measure(
        self,
        method: str,
        study: "WorkingStudy",
        row: Row,
        predicted: Mapping[str, Answer],
        regions: Mapping[str, np.ndarray | None],
    ) -> None:
        """One method's answers to one row; see `evaluate`."""
        self._match(method, study, row, predicted, regions)
        self._show(method, study, row, predicted)
        if self._noise_free and method == self._first:
            clean = self._without_noise(study)
            best = {target: Answer(clean[target]) for target in row.targets}
            self._ceiling.extend(measured(CEILING, study, row, best, regions, self._metrics))
            self._match(CEILING, study, row, best, regions)

    def values(self, records: Sequence[Record]) -> Values:
        """What `evaluate` returned and what was collected, in the regions and metrics of the tables."""
        both = {False: [*records, *self._ceiling], True: self._matched}
        return {
            matched: [r for r in found if r.region in REGIONS and r.metric in TABLE_METRICS]
            for matched, found in both.items()
        }

    def _match(self, method: str, study: "WorkingStudy", row: Row, predicted: Mapping[str, Answer], regions) -> None:
        matched = {}
        for target, answer in predicted.items():
            pair = Pair(target, answer.image, study.images[target], study.scalings[target], regions)
            matched[target] = Answer(affine_matched(pair).predicted)
        self._matched.extend(measured(method, study, row, matched, regions, self._metrics))

    def _show(self, method: str, study: "WorkingStudy", row: Row, predicted: Mapping[str, Answer]) -> None:
        if self.shown is None:
            at = best_slice(study)
            self.shown = Shown(study.id, at, {name: image[at] for name, image in study.images.items()})
        if self.shown.subject == study.id:
            at = self.shown.slice
            self.tiles += [Tile(row, target, method, answer.image[at]) for target, answer in predicted.items()]

    def _without_noise(self, study: "WorkingStudy") -> Mapping[str, np.ndarray]:
        assert self._noise_free, "asked for where there is none"
        if self._clean[0] != study.id:
            self._clean = (study.id, self._noise_free(study))
        return self._clean[1]


@dataclass(frozen=True, slots=True)
class Line:
    """One method in one row of one table, and the first method beside it.

    Attributes:
        group: of subjects.
        affine_matched: after the best gain and offset a volume.
        row: sets of inputs ("t1n+t2w") or a target, or the mean of rows.
        n: subjects that have a value. `mean` and `sd` (between subjects) are over them.
        difference: the first method minus this one, mean over `pairs` subjects, with its 95 % bootstrap interval.
        p, p_holm: Wilcoxon's, before and after Holm's correction over the family: all rows (their mean too) and
            methods of one group, region and metric, raw or matched.
        effect: matched-pairs rank-biserial correlation of the difference.
    """

    group: str
    region: str
    metric: str
    affine_matched: bool
    row: str
    method: str
    n: int
    mean: float
    sd: float
    pairs: int = 0
    difference: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    p_holm: float = float("nan")
    effect: float = float("nan")

    @property
    def significant(self) -> bool:
        """Whether the first method differs from this one, after the correction."""
        return self.p_holm < ALPHA

    @property
    def lost(self) -> bool:
        """Whether the first method's mean is worse than this one's, by whatever little."""
        return bool(resolve("metrics", self.metric).badness(self.difference) > 0)


def table_lines(
    benchmark: Benchmark, values: Values, methods: Sequence[str], *, seed: int, by_target: bool = False
) -> list[Line]:
    """All lines of table 1, or `by_target` of table 2: group by group, region, metric, raw then matched, row, method.

    Args:
        methods: in the order of the table; the first is compared with each other but the noise ceiling.
        seed: of the bootstrap.
    """
    subjects = dict.fromkeys(r.subject for r in values[False])
    lines: list[Line] = []
    for group in benchmark.groups:
        members = set(group.among(subjects))
        for matched, records in values.items():
            own = [_turned(r) if by_target else r for r in records if r.subject in members]
            others = [method for method in methods[1:] if method != CEILING]
            summary = summarise(own, method=methods[0], references=others, rng=np.random.default_rng(seed))
            lines += _lines(group.label, summary, matched=matched)
    asked = benchmark.modalities
    order = asked if by_target else [row.label for row in rows(asked, asked)]
    return _sorted(lines, [group.label for group in benchmark.groups], [*order, MEAN_ROW], methods)


def _turned(record: Record) -> Record:
    """The target as the row: then a row's value is the mean over the sets of inputs."""
    return replace(record, sources=record.target, target=record.sources)


def _lines(group: str, summary: Summary, *, matched: bool) -> list[Line]:
    beside = {(d.region, d.metric, d.sources, d.reference): d for d in summary.differences}
    return [
        _line(group, cell, beside.get((cell.region, cell.metric, cell.sources, cell.method)), matched=matched)
        for cell in summary.cells
    ]


def _line(group: str, cell: Cell, beside: Difference | None, *, matched: bool) -> Line:
    place = (group, cell.region, cell.metric, matched, cell.sources, cell.method, cell.n, cell.mean, cell.sd)
    if beside is None:
        return Line(*place)
    d = beside
    return Line(*place, d.n, d.mean, d.low, d.high, d.p, d.p_holm, d.effect)


def _sorted(lines: Sequence[Line], groups: Sequence[str], order: Sequence[str], methods: Sequence[str]) -> list[Line]:
    return sorted(
        lines,
        key=lambda line: (
            groups.index(line.group),
            REGIONS.index(line.region),
            TABLE_METRICS.index(line.metric),
            line.affine_matched,
            order.index(line.row),
            methods.index(line.method),
        ),
    )


def best_of_row(lines: Sequence[Line], first: str) -> str | None:
    """The method of a row's best mean, if that is more than chance; else None. The noise ceiling is no method.

    Where the first method is best it must differ, after Holm, from the next best; where another is, from that one.
    """
    rule = resolve("metrics", lines[0].metric)
    best, *others = sorted((line for line in lines if line.method != CEILING), key=lambda line: rule.badness(line.mean))
    rival = best if best.method != first else next(iter(others), None)
    return best.method if rival and rival.significant else None
