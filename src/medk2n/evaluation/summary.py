"""From records to statements: means over subjects, and paired differences between methods."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medk2n.evaluation.evaluate import PREDICTED_PSNR, Record

MEAN_ROW = "mean of rows"
RESAMPLES = 2000
FEWEST_FOR_A_TEST = 6  # below, the smallest two-sided Wilcoxon p is above 0.05 whatever the data

Place = tuple[str, str, str]  # region, metric, sources (or MEAN_ROW)


@dataclass(frozen=True, slots=True)
class Cell:
    """One method in one row. `sd` is between subjects (NaN for one subject)."""

    region: str
    metric: str
    sources: str
    method: str
    n: int
    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class Difference:
    """`method` minus `reference`, paired by subject.

    `low` and `high` bound the mean's 95 % bootstrap interval (NaN for fewer than two subjects);
    `p` is Wilcoxon's, two-sided, as it stands, and `p_holm` the same corrected for all rows and references of its
    region and metric, which make one table (NaN for fewer than six). `effect` is the matched-pairs rank-biserial
    correlation, -1 to 1: the share of the rank sum in favour of `method` less the share against it (NaN for none).
    """

    region: str
    metric: str
    sources: str
    method: str
    reference: str
    n: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    effect: float


@dataclass(frozen=True, slots=True)
class Summary:
    """All cells and differences, in the order of the table."""

    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]


def summarise(
    records: Iterable[Record], *, method: str, references: Sequence[str], rng: np.random.Generator
) -> Summary:
    """Means and paired differences of every region, metric and row, and over all rows.

    A subject's value in a row is its mean over targets; in the last row, its mean over rows.
    Undefined values (NaN: an empty region) are left out and lower `n`.
    """
    values = per_subject(records)
    cells, differences = [], []
    for place, by_method in values.items():
        for name, by_subject in by_method.items():
            cells.append(_cell(place, name, list(by_subject.values())))
        for reference in references:
            if method in by_method and reference in by_method:
                differences.append(_difference(place, method, reference, by_method, rng))
    return Summary(tuple(cells), tuple(_corrected(differences)))


def per_subject(records: Iterable[Record]) -> dict[Place, dict[str, dict[str, float]]]:
    """Place -> method -> subject -> mean over targets (over rows in the last place of each metric); measured alone."""
    by_target = _lists()
    for record in records:
        if record.metric != PREDICTED_PSNR and not np.isnan(record.value):
            place = (record.region, record.metric, record.sources)
            by_target[place][record.method][record.subject].append(record.value)
    by_row = {place: _averaged(methods) for place, methods in by_target.items()}
    over_rows = _lists()
    for (region, metric, _), methods in by_row.items():
        for method, subjects in methods.items():
            for subject, value in subjects.items():
                over_rows[region, metric, MEAN_ROW][method][subject].append(value)
    return by_row | {place: _averaged(methods) for place, methods in over_rows.items()}


def _lists() -> dict[Place, dict[str, dict[str, list[float]]]]:
    return defaultdict(lambda: defaultdict(lambda: defaultdict(list)))


def _averaged(methods: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        method: {subject: float(np.mean(values)) for subject, values in subjects.items()}
        for method, subjects in methods.items()
    }


def _cell(place: Place, method: str, values: list[float]) -> Cell:
    spread = np.std(values, ddof=1) if len(values) > 1 and np.isfinite(values).all() else np.nan
    return Cell(*place, method, len(values), float(np.mean(values)), float(spread))


def _difference(
    place: Place, method: str, reference: str, values: Mapping[str, Mapping[str, float]], rng: np.random.Generator
) -> Difference:
    paired = [(values[method][s], values[reference][s]) for s in values[method] if s in values[reference]]
    # An exact prediction has infinite PSNR: no difference can be stated for that subject.
    deltas = np.array([ours - theirs for ours, theirs in paired if np.isfinite(ours) and np.isfinite(theirs)])
    mean = float(deltas.mean()) if deltas.size else np.nan
    low, high = bootstrap_interval(deltas, rng)
    p, effect = _wilcoxon_p(deltas), rank_biserial(deltas)
    return Difference(*place, method, reference, deltas.size, mean, low, high, p, np.nan, effect)


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Each with its `p_holm`; a region and a metric are a family, with all rows (their mean too) and references."""
    families: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, difference in enumerate(differences):
        families[difference.region, difference.metric].append(index)
    corrected = list(differences)
    for family in families.values():
        for index, p in zip(family, holm([differences[i].p for i in family]), strict=True):
            corrected[index] = replace(differences[index], p_holm=p)
    return corrected


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979, step-down: adjusted p-values in the order given; NaN is no test and stays NaN."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if not np.isnan(p))
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    for done, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - done) * p))
        adjusted[index] = largest
    return adjusted


def rank_biserial(deltas: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation (Kerby 2014): (W+ - W-) / (W+ + W-) of Wilcoxon's rank sums.

    Differences of 0 are left out, as in the test; 0 if all are, NaN without any.
    """
    if not deltas.size:
        return float("nan")
    from scipy.stats import rankdata

    different = deltas[deltas != 0]
    ranks = rankdata(np.abs(different))
    return float(np.sum(np.sign(different) * ranks) / ranks.sum()) if different.size else 0.0


def bootstrap_interval(
    values: np.ndarray,
    rng: np.random.Generator,
    statistic: Callable[[np.ndarray], np.ndarray] = lambda means: means,
) -> tuple[float, float]:
    """Bounds of the 95 % bootstrap interval over subjects; NaN for fewer than two.

    Args:
        values: (n,) or (n, k) of n subjects.
        statistic: of the means, (resamples,) or (resamples, k) -> (resamples,).
    """
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    means = values[rng.integers(n, size=(RESAMPLES, n))].mean(axis=1)
    low, high = np.quantile(statistic(means), (0.025, 0.975))
    return float(low), float(high)


def _wilcoxon_p(deltas: np.ndarray) -> float:
    if deltas.size < FEWEST_FOR_A_TEST:
        return np.nan
    if not deltas.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(deltas).pvalue)
