"""What the judge takes images for, in the tables of an evaluation and beside every synthetic image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medk2n.data.intensity import Scaling
from medk2n.data.working import WorkingStudy
from medk2n.evaluation.identity import SCAN, IdentityListener, Seen, confusion, identity_markdown
from medk2n.evaluation.rows import Row
from medk2n.identity.identity import Identity, untaught
from medk2n.identity.table import table_of
from medk2n.identity.texts import NOTHING
from medk2n.inference._spec import Answer
from medk2n.report.outputs import identity_facts

NAMES = ("t1n", "t2w")


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Identity:
    """Names an image by its mean, and fails where V is asked instead of the judge."""

    def logits(self: Identity, slices: np.ndarray, *, judge: bool = False) -> np.ndarray:
        assert judge, "tables ask the judge alone"
        bright = np.array([s[s > 0].mean() > 0.5 for s in slices])
        return 20.0 * np.stack([~bright, bright, np.zeros_like(bright)], axis=1)

    monkeypatch.setattr(Identity, "logits", logits)
    with torch.random.fork_rng():
        return untaught(table_of([*NAMES, NOTHING]))


def study() -> WorkingStudy:
    images = {"t1n": np.full((4, 8, 8), 0.2, np.float32), "t2w": np.full((4, 8, 8), 0.8, np.float32)}
    scalings = dict.fromkeys(NAMES, Scaling(0.0, 1.0))
    return WorkingStudy("s", images, np.ones((4, 8, 8), bool), scalings)


def test_scans_are_judged_once_and_every_answer_beside_them(identity: Identity) -> None:
    told = []
    then = SimpleNamespace(measure=lambda *x: told.append(x))
    heard, case = IdentityListener(identity, then), study()
    for method, level in (("ours", 0.9), ("theirs", 0.1)):
        answer = {"t2w": Answer(np.full((4, 8, 8), level, np.float32))}
        heard.measure(method, case, Row(("t1n",), ("t2w",)), answer, {})
    assert len(told) == 2, "who listened before still hears"
    assert [(r.method, r.sources, r.named, r.slices) for r in heard.seen] == [
        (SCAN, "", "t2w", 1.0), ("ours", "t1n", "t2w", 1.0), ("theirs", "t1n", "t1n", 0.0),
    ]  # fmt: skip
    assert heard.seen[1].probability > 0.6 > 0.3 > heard.seen[2].probability


def test_the_table_says_who_is_taken_for_what() -> None:
    rows = [Seen("a", "ours", "t2w", "t1n", "nothing", 0.9, 0.1, 0.5)]
    rows += [Seen("b", "ours", "t2w", "t1n", "t1c", 0.7, 0.3, 0.75), Seen("c", "ours", "t2w", "t1n", "t1n", 1, 1, 1.0)]
    rows += [Seen("c", "ours", "t2w", "t1c", "t1c", 0.8, 0.8, 1.0), Seen("c", SCAN, "", "t1n", "t1n", 0.9, 0.9, 1.0)]
    assert confusion(rows[:3], ["t1n"], ["t1n", "t1c"] + ["nothing"]).tolist() == [[1, 1, 1]]
    text = identity_markdown(rows, ["ours", "copy"])
    assert "| t1n | 100.0 (100.0), n 1 | 33.3 (75.0), n 3 |" in text
    assert "| all | 100.0 (100.0), n 1 | 50.0 (81.2), n 4 |" in text
    assert "| calibration error | 0.100 | 0.450 |" in text
    assert "| | t1n | t1c | nothing |\n|---|---|---|---|\n| t1n | 1 | 1 | 1 |\n| t1c | 0 | 1 | 0 |" in text
    assert identity_markdown([], ["ours"]) == ""


def test_a_sidecar_says_the_score_and_whose_it_is() -> None:
    record = {"identity": {"t2w": {"t1n": 0.7, "t2w": 0.3}}}
    facts = identity_facts(SimpleNamespace(record=record), "t2w")
    assert facts is not None
    assert (facts["score"], facts["recognised_as"]) == (0.3, "t1n")
    assert identity_facts(SimpleNamespace(record={}), "t2w") is None
