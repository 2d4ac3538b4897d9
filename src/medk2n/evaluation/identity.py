"""What the judge V' takes images for: outputs of every method beside the real scans. Never V: losses have used that.

heard = IdentityListener(Identity.load(folder), then=panel)
evaluate(predictors, studies, modalities=..., listener=heard)
heard.seen, identity_markdown(heard.seen, methods)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medk2n.evaluation.evaluate import Listener
from medk2n.evaluation.rows import Row
from medk2n.identity.identity import Identity, calibration_gap, spread
from medk2n.inference._spec import Answer
from medk2n.io.shown import in_markdown
from medk2n.vocabulary import MODALITIES

if TYPE_CHECKING:
    from medk2n.data.working import WorkingStudy

SCAN = "scan"


@dataclass(frozen=True, slots=True)
class Seen:
    """One volume as the judge sees it.

    Attributes:
        method: "scan" for what was acquired; its `sources` are empty.
        target: what it claims to be.
        named: what it is most likely, of all that the judge knows.
        certainty: calibrated probability of that.
        probability: calibrated, that it is what it claims to be.
        slices: share of its slices that are each by itself recognised as what they claim.
    """

    subject: str
    method: str
    sources: str
    target: str
    named: str
    certainty: float
    probability: float
    slices: float


class IdentityListener:
    """Asks the judge about every answer of an evaluation, and once a subject about its scans."""

    def __init__(self, identity: Identity, then: Listener | None = None) -> None:
        self.seen: list[Seen] = []
        self._identity, self._then = identity, then
        self._scans: set[tuple[str, str]] = set()

    def measure(
        self,
        method: str,
        study: "WorkingStudy",
        row: Row,
        predicted: Mapping[str, Answer],
        regions: Mapping[str, np.ndarray | None],
    ) -> None:
        """See `Listener`."""
        if self._then:
            self._then.measure(method, study, row, predicted, regions)
        for target, answer in predicted.items():
            if target in self._identity.described.modalities:
                if (study.id, target) not in self._scans:
                    self._scans.add((study.id, target))
                    self.seen.append(seen(self._identity, study.images[target], study.id, SCAN, "", target))
                self.seen.append(seen(self._identity, answer.image, study.id, method, row.label, target))


def seen(identity: Identity, slices: np.ndarray, subject: str, method: str, sources: str, target: str) -> Seen:
    """What the judge says of a volume (s, h, w) that claims to be `target`."""
    logits = identity.logits(slices[spread(slices)], judge=True)
    pooled = identity.of_study(logits, judge=True)
    right = float((logits.argmax(axis=1) == identity.names.index(target)).mean())
    named = max(pooled, key=pooled.__getitem__)
    return Seen(subject, method, sources, target, named, pooled[named], pooled[target], right)


def confusion(rows: Iterable[Seen], targets: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """(targets, names) how many volumes that claim to be the one are recognised as the other."""
    table = np.zeros((len(targets), len(names)), int)
    for row in rows:
        table[targets.index(row.target), names.index(row.named)] += 1
    return table


def identity_markdown(rows: Sequence[Seen], methods: Sequence[str]) -> str:
    """Of each method, and of the scans: the share that is recognised as what it claims; then what it is taken for."""
    if not rows:
        return ""
    targets = _in_order({row.target for row in rows})
    shown = [SCAN, *(m for m in methods if any(row.method == m for row in rows))]
    lines = [
        "## What the images are recognised as",
        "",
        "By the judge V', which no loss of the model has used: volumes named as what they claim to be, in brackets",
        "their slices each by itself, %, and of how many volumes: a scan counts once, an image once for each set of",
        "inputs. `scan`: what was acquired. Calibration error: how far, on average, the certainty of a name and the",
        "share of right names are apart.",
        "",
        "| target | " + " | ".join(map(in_markdown, shown)) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for target in [*targets, None]:
        cells = [_share([r for r in rows if r.method == m and target in (None, r.target)]) for m in shown]
        lines.append(f"| {target or 'all'} | " + " | ".join(cells) + " |")
    errors = [_calibration([r for r in rows if r.method == m]) for m in shown]
    lines.append("| calibration error | " + " | ".join(errors) + " |")
    for method in shown:
        own = [row for row in rows if row.method == method]
        names = [*targets, *_in_order({r.named for r in own} - {*targets})]
        lines += ["", f"{in_markdown(method)}: claimed (rows), recognised as (columns)", ""]
        lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for target, counts in zip(targets, confusion(own, targets, names), strict=True):
            lines.append(f"| {target} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


def _in_order(names: Iterable[str]) -> list[str]:
    """As the vocabulary has them; what is no modality last."""
    order = list(MODALITIES)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _share(rows: Sequence[Seen]) -> str:
    if not rows:
        return "n/a"
    named = np.mean([row.named == row.target for row in rows])
    return f"{100 * named:.1f} ({100 * np.mean([row.slices for row in rows]):.1f}), n {len(rows)}"


def _calibration(rows: Sequence[Seen]) -> str:
    if not rows:
        return "n/a"
    sure, right = np.array([(row.certainty, row.named == row.target) for row in rows]).T
    return f"{calibration_gap(sure, right > 0):.3f}"
