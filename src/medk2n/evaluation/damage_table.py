"""What damage does, on paper: damage.csv to compute with, damage.md to read, damage.png to look at."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medk2n.evaluation.damage import ALL_KEPT, WHOLE, DamageRecord
from medk2n.evaluation.figure import COLOURS
from medk2n.evaluation.summary import bootstrap_interval
from medk2n.evaluation.table import interval_text, write_csv
from medk2n.metrics.psnr import COMPONENT as PSNR

REFERENCE = "unet"
_WORTH_DB = 0.1
"""What leaving the input out has to gain over keeping it before a share of that is told."""
_DPI = 110

Case = Mapping[str, DamageRecord]
"""Method -> what it made of one damaged case."""
Group = tuple[str, Callable[[DamageRecord], bool]]
"""Its label, and which cases belong to it."""


def write_damage(folder: Path, records: Sequence[DamageRecord], *, seed: int) -> str:
    """Write damage.csv, damage.md and damage.png; return the Markdown.

    Args:
        records: of one or more methods, in the order of the table; the first is compared with the others.
        seed: of the bootstrap.
    """
    write_csv(folder / "damage.csv", DamageRecord, records)
    text = damage_markdown(records, seed=seed)
    (folder / "damage.md").write_text(text, encoding="utf-8")
    damage_figure(records, folder / "damage.png")
    return text


def damage_markdown(records: Sequence[DamageRecord], *, seed: int) -> str:
    """A section a severity, by kind and by target, then the same cases whole."""
    methods = list(dict.fromkeys(r.method for r in records))
    cases, kinds = _cases(records), _kinds(records)
    counts = sorted({_count(r) for r in records})
    first = methods[0]
    lines = [
        "# One damaged input",
        "",
        "PSNR in dB inside the foreground, mean over subjects of each subject's mean over its cases, with the 95 %",
        "bootstrap interval over subjects. Left out: from the other inputs alone, as if the damaged one had been taken",
        f"away by hand. Recovered: of what {first} would gain by that over keeping all, how much it gets by itself",
        f"(told where that is {_WORTH_DB} dB or more). W in dB and how far it was let in: of the damaged input.",
    ]
    everything: Group = ("mean of kinds", lambda r: True)
    by_count = [(f"mean of kinds, K = {k}", lambda r, k=k: _count(r) == k) for k in counts]
    by_kind = [(kind, lambda r, kind=kind: r.kind == kind) for kind in kinds]
    by_target = [(t, lambda r, t=t: r.target == t) for t in dict.fromkeys(r.target for r in records)]
    for severity in sorted({r.severity for r in records if r.kind != WHOLE}):
        here = [case for case in cases if _any(case).kind != WHOLE and _any(case).severity == severity]
        lines += ["", f"## Severity {severity:g}", ""]
        lines += _table("damage", here, [*by_kind, *by_count, everything], methods, seed)
        lines += ["", *_table("target", here, [*by_target, everything], methods, seed)]
    whole = [case for case in cases if _any(case).kind == WHOLE]
    by_count = [(f"K = {k}", lambda r, k=k: _count(r) == k) for k in counts]
    lines += ["", "## The same cases, whole", ""]
    lines += _table("cases", whole, [*by_target, *by_count, ("all", lambda r: True)], methods, seed)
    return "\n".join(lines) + "\n"


def _table(what: str, cases: Sequence[Case], groups: Sequence[Group], methods: Sequence[str], seed: int) -> list[str]:
    """One line a group."""
    first = methods[0]
    kept, selects = first + ALL_KEPT, first + ALL_KEPT in methods
    header = [what, "n", *methods, f"{first}, left out"]
    header += [f"{first} - {method}" for method in methods[1:]]
    header += ["recovered", "W", "let in"] if selects else []
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for label, belongs in groups:
        chosen = [case for case in cases if belongs(_any(case))]
        if not chosen:
            continue
        table = _by_subject(chosen, lambda case: [*(case[m].psnr_db for m in methods), case[first].psnr_without_db])
        rng, means = np.random.default_rng(seed), table.mean(axis=0)
        words = [label, str(len(table)), *(f"{mean:.2f}" for mean in means)]
        for k in range(1, len(methods)):
            apart = table[:, 0] - table[:, k]
            words.append(interval_text(float(apart.mean()), *bootstrap_interval(apart, rng), PSNR))
        if selects:
            words += [_recovered(table[:, [0, methods.index(kept), -1]], rng), *_opinion(chosen, first)]
        lines.append("| " + " | ".join(words) + " |")
    return lines


def _recovered(table: np.ndarray, rng: np.random.Generator) -> str:
    """Of (subjects, [damaged, all kept, left out]) the share, in words."""

    def share(means: np.ndarray) -> np.ndarray:
        damaged, kept, left_out = means[..., 0], means[..., 1], means[..., 2]
        return 100 * (damaged - kept) / np.where(left_out > kept, left_out - kept, np.nan)

    means = table.mean(axis=0)
    if not means[2] - means[1] >= _WORTH_DB:
        return "n/a"
    low, high = bootstrap_interval(table, rng, share)
    return f"{share(means):.0f} %" + ("" if np.isnan(low) else f" [{low:.0f}, {high:.0f}]")


def _opinion(cases: Sequence[Case], method: str) -> list[str]:
    """Mean weight of a method, and how far it lets in."""
    weighed = [case[method] for case in cases if case[method].weight is not None]
    if not weighed:
        return ["n/a", "n/a"]
    weight, gate = (float(np.mean([getattr(r, name) for r in weighed])) for name in ("weight", "gate"))
    return [f"{weight:+.2f}", f"{gate:.0%}"]


def _by_subject(cases: Iterable[Case], numbers: Callable[[Case], list[float]]) -> np.ndarray:
    """(subjects, numbers): means over each subject's cases; those with an infinite value (an exact image) count not."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for case in cases:
        if np.isfinite(row := numbers(case)).all():
            found[_any(case).subject].append(row)
    return np.array([np.mean(rows, axis=0) for rows in found.values()])


def _cases(records: Iterable[DamageRecord]) -> list[Case]:
    """Records of all methods by what was asked."""
    found: dict[tuple, dict[str, DamageRecord]] = defaultdict(dict)
    for r in records:
        found[r.subject, r.inputs, r.damaged, r.target, r.kind, r.severity][r.method] = r
    return list(found.values())


def _any(case: Case) -> DamageRecord:
    return next(iter(case.values()))


def _count(record: DamageRecord) -> int:
    return 1 + record.inputs.count("+")


def _kinds(records: Iterable[DamageRecord]) -> list[str]:
    return list(dict.fromkeys(r.kind for r in records if r.kind != WHOLE))


def damage_figure(records: Sequence[DamageRecord], path: Path) -> None:
    """A column a kind: PSNR of all methods against severity, and below it the first method's weight and gate."""
    from matplotlib.figure import Figure

    methods, kinds = list(dict.fromkeys(r.method for r in records)), _kinds(records)
    cases = _cases(records)
    weighs = any(r.weight is not None for r in records)
    figure = Figure(figsize=(1.2 + 1.7 * max(2, len(kinds)), 5.6 if weighs else 3.4), layout="constrained")
    grid = figure.subplots(2 if weighs else 1, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in zip(grid.T, kinds, strict=True):
        axes = column[0]
        own = [case for case in cases if _any(case).kind in (kind, WHOLE)]
        severities = sorted({_any(case).severity for case in own})
        for method, colour in zip(methods, np.resize(COLOURS, len(methods)), strict=True):
            axes.plot(severities, [_mean_at(own, s, method, "psnr_db") for s in severities], "o-", ms=3, color=colour)
        left_out = np.mean([_mean_at(own, s, methods[0], "psnr_without_db") for s in severities])
        axes.axhline(left_out, color=COLOURS[0], linestyle=":", linewidth=1)
        axes.set_title(kind, fontsize=9)
        axes.grid(alpha=0.3)
        if weighs:
            column[1].plot(severities, [_mean_at(own, s, methods[0], "weight") for s in severities], "o-", ms=3)
            gates = [_mean_at(own, s, methods[0], "gate") for s in severities]
            column[1].plot(severities, gates, "s--", ms=3, color="0.4")
            column[1].axhline(0, color="0.7", linewidth=0.8)
            column[1].grid(alpha=0.3)
        column[-1].set_xlabel("severity", fontsize=8)
    grid[0, 0].set_ylabel("PSNR inside the foreground (dB)", fontsize=8)
    if weighs:
        grid[1, 0].set_ylabel(f"{methods[0]}: W in dB (line), let in (dashed)", fontsize=8)
    handles = [*grid[0, 0].get_lines()]
    labels = [*methods, f"{methods[0]}, the input left out"]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=8)
    figure.suptitle("One damaged input among the others", fontsize=10)
    figure.savefig(path, dpi=_DPI)


def _mean_at(cases: Sequence[Case], severity: float, method: str, field: str) -> float:
    """Mean of one field over subjects; NaN where a method does not have it."""
    here = [case for case in cases if _any(case).severity == severity and getattr(case[method], field) is not None]
    table = _by_subject(here, lambda case: [getattr(case[method], field)])
    return float(table.mean()) if len(table) else float("nan")
