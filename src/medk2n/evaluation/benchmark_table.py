"""A benchmark on paper: table1 and table2 as Markdown and LaTeX, and in a few sentences who is ahead where.

The CSV of a table is `write_csv(path, Line, lines)`; the values behind it are `write_values`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medk2n.evaluation.benchmark import ALPHA, REGIONS, TABLE_METRICS, Line, Values, best_of_row
from medk2n.evaluation.benchmarks._benchmark import Benchmark
from medk2n.evaluation.noise_ceiling import CEILING
from medk2n.evaluation.summary import FEWEST_FOR_A_TEST, MEAN_ROW
from medk2n.evaluation.table import interval_text, mean_text
from medk2n.io.atomic import write_text
from medk2n.io.shown import csv_text, in_markdown, one_line
from medk2n.metrics._metric import Metric
from medk2n.registry import resolve
from medk2n.vocabulary import MODALITIES, modality

FAMILY = "all rows, their mean, and all methods of one group, region and metric (raw or matched)"
_BOLD_RULE = (
    f"Bold: the best mean of a row, if p < {ALPHA} after Holm between it and {{first}}, or where {{first}} is best "
    "between it and the next best"
)
_VALUE_FIELDS = ("subject", "method", "sources", "target", "region", "affine_matched", *TABLE_METRICS)


def write_values(path: Path, values: Values) -> None:
    """Every image's metrics, one line an image and region, raw and after gain and offset; six digits."""
    lines: dict[tuple, dict[str, float]] = {}
    for matched, records in values.items():
        for r in records:
            place = (r.subject, r.method, r.sources, r.target, r.region, matched)
            lines.setdefault(place, {})[r.metric] = r.value
    rows = ([*place, *(float(f"{found[m]:.6g}") for m in TABLE_METRICS)] for place, found in lines.items())
    write_text(path, csv_text(_VALUE_FIELDS, rows))


def rows_of(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Row -> its lines, in order."""
    rows: dict[str, list[Line]] = {}
    for line in lines:
        rows.setdefault(line.row, []).append(line)
    return rows


def printed(
    lines: Sequence[Line], group: str, region: str = "foreground", metric: str = "psnr", *, matched: bool = False
) -> list[Line]:
    """The lines of one printed table; if nothing else is said of the one that counts."""
    wanted = (group, region, metric, matched)
    return [line for line in lines if (line.group, line.region, line.metric, line.affine_matched) == wanted]


def in_words(lines: Sequence[Line], first: str) -> Iterator[str]:
    """For each other method of one printed table: the mean difference, and every row in which the first is behind."""
    rule = resolve("metrics", lines[0].metric)
    for method in dict.fromkeys(line.method for line in lines if line.pairs):
        own = {line.row: line for line in lines if line.method == method}
        mean = own.pop(MEAN_ROW)
        lost = [line for line in own.values() if line.lost]
        known = [line for line in own.values() if line.significant]
        text = f"{first} - {method}, {rule.label}: {difference_text(mean, rule)} ({judged(mean)})."
        if not math.isnan(mean.p_holm):
            ahead, behind = sum(not line.lost for line in known), sum(line.lost for line in known)
            text += f" Ahead in {ahead} of {len(own)} rows by more than chance, behind in {behind}."
        if lost:
            rows = ", ".join(f"{line.row} {line.difference:+.{rule.decimals}f}" for line in lost)
            text += f" Behind by its mean in {len(lost)}: {rows}."
        yield text


def judged(line: Line) -> str:
    """What the test says of a difference, in words."""
    if math.isnan(line.p_holm):
        return f"n = {line.pairs}: no test with fewer than {FEWEST_FOR_A_TEST} subjects"
    if not line.significant:
        return f"n = {line.pairs}, not significant"
    return f"n = {line.pairs}, {'behind' if line.lost else 'ahead'}, significant"


def difference_text(line: Line, rule: Metric) -> str:
    """Mean [interval], corrected p and effect, as far as there are any."""
    if not line.pairs:
        return "n/a"
    text = interval_text(line.difference, line.low, line.high, rule)
    if not math.isnan(line.p_holm):
        text += f", p = {line.p_holm:.2g}, r = {line.effect:+.2f}"
    return text


def markdown(benchmark: Benchmark, lines: Sequence[Line], methods: Sequence[str], *, by_target: bool) -> str:
    """One section a group and region: a table of means and one of differences for each metric, raw and matched."""
    first = methods[0]
    rows = "targets, mean over the sets of inputs" if by_target else "sets of inputs, mean over what is missing"
    text = [
        f"# {benchmark.label}: Table {2 if by_target else 1}",
        "",
        f"Rows: {rows}. Images scaled to [0, 1], data range 1; mean ± standard deviation over n subjects.",
        f"{_BOLD_RULE.format(first=first)}.",
        f"Differences: {first} minus the other, paired by subject: mean [95 % bootstrap interval], p (Wilcoxon,",
        f"two-sided, Holm over {FAMILY}),",
        f"r (matched-pairs rank-biserial correlation). From {FEWEST_FOR_A_TEST} subjects on. **lost**: {first} is",
        "behind by more than chance; *behind*: by its mean alone. Matched: after the gain and offset that fit best.",
        "",
        *(f"- {note}" for note in benchmark.notes),
    ]
    for group in dict.fromkeys(line.group for line in lines):
        text += ["", f"## {group}", ""]
        text += [f"- {said}" for said in in_words(printed(lines, group), first)]
        for region in (r for r in REGIONS if any((line.group, line.region) == (group, r) for line in lines)):
            text += ["", f"### {group}: {region}"]
            for matched in (False, True):
                for metric in TABLE_METRICS:
                    text += _one_table(printed(lines, group, region, metric, matched=matched), methods)
    return "\n".join(text) + "\n"


def _one_table(lines: Sequence[Line], methods: Sequence[str]) -> list[str]:
    """Means, then differences."""
    first, rule = methods[0], resolve("metrics", lines[0].metric)
    shown = [method for method in methods if any(line.method == method for line in lines)]
    others = [method for method in shown[1:] if method != CEILING]
    which = ", matched" if lines[0].affine_matched else ""
    text = ["", f"**{rule.label}** ({rule.unit}, {rule.better} is better{which})", ""]
    text += [_joined("row", "n", *map(in_markdown, shown)), "|---" * (len(shown) + 2) + "|"]
    for row, own in rows_of(lines).items():
        best, by_method = best_of_row(own, first), {line.method: line for line in own}
        cells = [
            mean_text(line.mean, line.sd, rule, bold=line.method == best) if line else "n/a"
            for line in map(by_method.get, shown)
        ]
        text.append(_joined(row, str(max(line.n for line in own)), *cells))
    heads = [in_markdown(f"{first} - {method}") for method in others]
    text += ["", _joined("row", *heads), "|---" * (len(others) + 1) + "|"]
    for row, own in rows_of(lines).items():
        by_method = {line.method: line for line in own}
        text.append(_joined(row, *(_marked(by_method.get(method), rule) for method in others)))
    return text


def _joined(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _marked(line: Line | None, rule: Metric) -> str:
    if line is None:
        return "n/a"
    mark = "" if not line.lost else "**lost** " if line.significant else "*behind* "
    return mark + difference_text(line, rule)


def latex(benchmark: Benchmark, lines: Sequence[Line], methods: Sequence[str], *, by_target: bool) -> str:
    """PSNR and SSIM inside the foreground, one `table` a group; needs `booktabs`."""
    head = "% needs \\usepackage{booktabs}\n"
    groups = dict.fromkeys(line.group for line in lines)
    return head + "\n".join(_latex_group(benchmark, lines, methods, group, by_target=by_target) for group in groups)


def _latex_group(
    benchmark: Benchmark, lines: Sequence[Line], methods: Sequence[str], group: str, *, by_target: bool
) -> str:
    psnr, ssim = (rows_of(printed(lines, group, metric=metric)) for metric in ("psnr", "ssim"))
    shown = [m for m in methods if any(line.method == m for own in psnr.values() for line in own)]
    asked = ["target"] if by_target else [modality(name).label for name in benchmark.modalities]
    n = max(line.n for own in psnr.values() for line in own)
    caption = f"{benchmark.label}, {group} (n = {n}): PSNR (dB) / SSIM inside the foreground, "
    caption += "by target. " if by_target else "by inputs given, mean over what is missing. "
    caption += f"{_BOLD_RULE.format(first=methods[0])} (Wilcoxon; family: {FAMILY})."
    text = [
        "\\begin{table}",
        f"\\caption{{{_escaped(caption)}}}",
        f"\\begin{{tabular}}{{{('l' if by_target else 'c') * len(asked)}{'r' * len(shown)}}}",
        "\\toprule",
        " & ".join(_escaped(word) for word in [*asked, *shown]) + r" \\",
        "\\midrule",
    ]
    for row in psnr:
        if row == MEAN_ROW:
            text.append("\\midrule")
        cells = _latex_cells(psnr[row], ssim[row], shown)
        text.append(" & ".join([_latex_row(row, benchmark.modalities, by_target=by_target), *cells]) + r" \\")
    return "\n".join([*text, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def _latex_cells(psnr: Sequence[Line], ssim: Sequence[Line], shown: Sequence[str]) -> list[str]:
    return [" / ".join(_latex_value(own, method, shown[0]) for own in (psnr, ssim)) for method in shown]


def _latex_value(lines: Sequence[Line], method: str, first: str) -> str:
    line = next((line for line in lines if line.method == method), None)
    if line is None:
        return "--"
    value = f"{line.mean:.{resolve('metrics', line.metric).decimals}f}"
    return f"\\textbf{{{value}}}" if best_of_row(lines, first) == method else value


def _latex_row(row: str, modalities: Sequence[str], *, by_target: bool) -> str:
    """A dot for each input that is given; the label of a target."""
    if row == MEAN_ROW:
        return row if by_target else f"\\multicolumn{{{len(modalities)}}}{{l}}{{{row}}}"
    if by_target:
        return _escaped(MODALITIES[row].label)
    given = row.split("+")
    return " & ".join("$\\bullet$" if name in given else "" for name in modalities)


def _escaped(text: str) -> str:
    """What TeX prints as it stands: a folder's name is no command."""
    return "".join(_SPECIAL.get(letter, letter) for letter in one_line(text))


_SPECIAL: Mapping[str, str] = {c: f"\\{c}" for c in "_%&#${}"} | {
    "<": "$<$", ">": "$>$", "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\textasciitilde{}",
}  # fmt: skip
