"""The panel: which values it collects, how they are averaged, and what the page says."""

import math
from dataclasses import replace

import numpy as np
import pytest

from medk2n.data.intensity import Scaling
from medk2n.data.working import WorkingStudy
from medk2n.evaluation.evaluate import evaluate
from medk2n.evaluation.panel import PROTOCOLS, Panel, PanelRecord, panel_cells, per_subject
from medk2n.evaluation.panel_table import panel_figure, panel_markdown, write_panel
from medk2n.inference._spec import Answer
from medk2n.registry import names, resolve

SHAPE = (13, 30, 33)
MODALITIES = ("t1n", "t2w", "ct")


class Fading:
    """Answers with the one true target, fainter; knows it by its own copy."""

    name, modalities = "medk2n", MODALITIES

    def __init__(self, study, factor=0.9):
        self.study, self.factor = study, factor

    def predict(self, images, targets):
        return {target: Answer(self.factor * self.study.images[target]) for target in targets}


def make_study(seed=0):
    rng = np.random.default_rng(seed)
    foreground, lesion = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    foreground[1:-1, 3:26, 3:28] = True
    lesion[5:9, 8:14, 10:17] = True
    images = {m: np.where(foreground, rng.uniform(0.2, 0.9, SHAPE), 0).astype(np.float32) for m in MODALITIES}
    scalings = dict.fromkeys(MODALITIES, Scaling(50.0, 800.0)) | {"ct": Scaling(-1000.0, 2000.0, kind="fixed")}
    return WorkingStudy(f"sub-{seed}", images, foreground, scalings, lesion=lesion)


@pytest.fixture(scope="module")
def measured():
    study = make_study()
    panel = Panel([resolve(PROTOCOLS, name) for name in names(PROTOCOLS)])
    return panel, evaluate([Fading(study)], [study], modalities=MODALITIES, listener=panel)


def test_the_foreground_protocol_says_what_the_tables_say(measured):
    panel, records = measured
    ours = {
        (r.subject, r.method, r.sources, r.target, r.metric, r.region): r.value
        for r in panel.records
        if r.protocol == "foreground" and not r.affine_matched
    }
    assert len(records) == 6 * 9 + 3 * 9
    for r in records:
        assert ours[r.subject, r.method, r.sources, r.target, r.metric, r.region] == r.value


def test_every_image_is_measured_by_every_protocol_before_and_after_matching(measured):
    panel, _ = measured
    by_protocol = {name: [r for r in panel.records if r.protocol == name] for name in names(PROTOCOLS)}
    images = {(r.sources, r.target) for r in panel.records}
    assert len(images) == 9
    for name, found in by_protocol.items():
        seen = {(r.sources, r.target) for r in found}
        assert seen == ({image for image in images if image[1] == "ct"} if name == "synthrad" else images)
        assert sum(r.affine_matched for r in found) * 2 == len(found)


def test_matching_undoes_a_gain(measured):
    values = {
        (r.affine_matched, r.target): r.value
        for r in measured[0].records
        if (r.protocol, r.region, r.metric, r.sources) == ("foreground", "foreground", "psnr", "t1n")
    }
    for target in ("t2w", "ct"):
        assert values[False, target] < 26
        assert values[True, target] > 100


def test_without_a_panel_nothing_else_is_measured(measured):
    study = make_study()
    assert evaluate([Fading(study)], [study], modalities=MODALITIES) == measured[1]


def record(value, subject="a", sources="t1n", target="t2w", method="medk2n", matched=False, **more):
    place = {"protocol": "slices", "region": "whole", "metric": "psnr"} | more
    return PanelRecord(subject, method, sources, target, affine_matched=matched, value=value, **place)


def test_means_go_over_targets_then_rows_then_subjects():
    records = [
        record(20.0),
        record(30.0, target="t2f"),
        record(40.0, sources="t1c"),
        record(10.0, subject="b"),
        record(math.nan, subject="c"),
    ]
    assert per_subject(records) == {("slices", "whole", "psnr", "medk2n", False): {"a": 32.5, "b": 10.0}}
    (cell,) = panel_cells(records)
    assert (cell.n, cell.mean) == (2, 21.25)


def page(records, methods=("medk2n", "copy")):
    panel = Panel([resolve(PROTOCOLS, "slices"), resolve(PROTOCOLS, "foreground")])
    panel.records = records
    return panel_markdown(panel, methods)


def test_the_page_has_a_line_a_protocol_and_the_best_in_bold():
    text = page(
        [
            record(20.0),
            record(24.0, method="copy"),
            record(25.0, matched=True),
            record(24.5, method="copy", matched=True),
            record(0.5, metric="sharpness", protocol="foreground"),
            record(1.3, metric="sharpness", protocol="foreground", method="copy"),
            record(12.0, protocol="foreground", region="foreground"),
        ]
    )
    assert "| `slices` | whole | 1 | 20.00 | **24.00** | **25.00** | 24.50 |" in text
    assert "| `foreground` | whole | 1 | 0.500 | **1.300** | n/a | n/a |" in text
    assert "12.00 dB (`foreground`, foreground) to 20.00 dB (`slices`, whole), 8.0 dB apart" in text
    assert "icon-lab" not in text, "protocols that were not asked for are not described"
    assert "ycwu1997/CodeBrain" in text


def test_the_span_leaves_lesions_and_infinite_values_aside():
    lesion = record(5.0, protocol="foreground", region="lesion")
    assert "apart" not in page([record(20.0), lesion, record(math.inf, protocol="foreground")])


def test_the_panel_is_written_and_drawn(measured, tmp_path):
    panel, _ = measured
    text = write_panel(tmp_path, panel, methods=("medk2n", "unet"))
    assert (tmp_path / "protocols.md").read_text() == text
    assert (tmp_path / "protocols.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "protocols.csv").read_text().splitlines()
    assert lines[0] == "subject,method,sources,target,protocol,region,metric,affine_matched,value"
    assert len(lines) == 1 + len(panel.records)


def test_the_figure_stands_values_that_are_infinite_or_missing(tmp_path):
    panel = Panel([])
    panel.records = [record(math.inf), record(20.0, protocol="own_mean"), record(0.9, metric="ssim", method="copy")]
    panel_figure(panel, tmp_path / "figure.png", methods=("medk2n", "unet", "copy"))
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_a_study_without_a_lesion_has_no_lesion_value():
    study = replace(make_study(), lesion=None)
    panel = Panel([resolve(PROTOCOLS, name) for name in ("brasyn", "foreground")])
    evaluate([Fading(study)], [study], modalities=MODALITIES, listener=panel)
    assert {r.region for r in panel.records} == {"foreground", "whole"}
