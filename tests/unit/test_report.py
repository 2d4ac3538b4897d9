"""The report: one file, no network, no script, nothing unescaped, SYNTHETIC wherever it must be."""

import base64
import io
import re
from email.message import Message
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

from medk2n.data.intensity import Scaling
from medk2n.geometry.grid import Grid
from medk2n.inference.progression import Progression, Stage
from medk2n.inference.synthesizer import Explanation, Step, Synthesis
from medk2n.io.volume import Volume
from medk2n.report import synthesis as page
from medk2n.report.comparison import Pair, save_comparison
from medk2n.report.figures import View, planes, strip_png
from medk2n.report.outputs import generated_by, scaling_facts, study_folder, write_synthesis
from medk2n.report.page import flat
from medk2n.report.places import StudyFolder
from medk2n.report.synthesis import MOST_BYTES, bars, render_report
from medk2n.report.words import quality_words

SHAPE = (12, 15, 9)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
HOSTILE = '<script>alert("1")</script>&\'.nii.gz'


def volume(name: str, seed: int = 0, affine: np.ndarray = AFFINE, shape: tuple = SHAPE, **provenance) -> Volume:
    array = np.random.default_rng(seed).uniform(100, 200, shape).astype(np.float32)
    array[:2] = array[-2:] = array[:, :2] = array[:, -2:] = array[:, :, 0] = array[:, :, -1] = 0
    return Volume(array, Grid(shape, affine), name, provenance)


def synthesis(targets=("t2f", "t1c"), shape: tuple = SHAPE, inputs=("t1n", "t2w")) -> Synthesis:
    steps = (Step("t2w", 0.7, 0.0, 1.0, 1.0), Step("t1n", 0.2, 0.4, 0.0, 0.0))
    stages = tuple(
        Stage(step.source, psnr, np.full((6, 5), 0.5)) for step, psnr in zip(steps, (24.0, 26.0), strict=True)
    )
    progression = Progression(stages, orders=2, order_deviation=0.0125)
    explanation = Explanation("t2w", steps, {"t1n": -0.5, "t2w": 2.0}, "shapley", 26.0, progression)
    return Synthesis(
        volumes={name: volume(name, shape=shape) for name in targets},
        inputs={name: volume(name, 1, shape=shape, path=f"/data/{HOSTILE}", sha256="ab" * 32) for name in inputs},
        deviations={name: volume(name, 2, shape=shape) for name in targets},
        explanations=dict.fromkeys(targets, explanation),
        scalings=dict.fromkeys(targets, Scaling(-10.0, 190.0)),
        reference=inputs[0],
        record={"model": "<b>model</b>", "model_sha256": "cd" * 32, "skull_stripped": True, "versions": {"torch": "2"}},
    )


@pytest.fixture(scope="module")
def report() -> str:
    return render_report(synthesis(), f"sub-{HOSTILE}")


def test_is_self_contained(report):
    assert not re.findall(r"https?://|//cdn|@import|<link|<script|<iframe|url\(", report)
    addresses = re.findall(r'(?:src|href)="([^"]{0,30})', report)
    assert len(addresses) == 2 + 2 + 2 * (2 + 2)  # inputs, outputs, each output with its error map and two stages
    assert all(address.startswith("data:image/png;base64,") for address in addresses)


def test_tells_how_each_image_came_about(report):
    text = " ".join(re.sub(r"<[^>]+>", " ", report).split())
    assert "t2w key frame predicted 24.0 dB weight 0.70" in text
    assert "+ t1n skipped predicted 26.0 dB (+2.0) weight 0.20, threshold 0.40 gate 0.00" in text
    assert "Adding the inputs in 2 forced orders changes this slice by 1.2 % of its range" in text


def test_hostile_names_are_escaped(report):
    assert "alert(" in report
    assert "<script" not in report
    assert "<b>model" not in report
    assert "&lt;script&gt;" in report


def test_says_synthetic_at_every_output_and_nowhere_else(report):
    figures = re.findall(r"<figure.*?</figure>", report, flags=re.DOTALL)
    acquired = [figure for figure in figures if "ACQUIRED" in figure]
    assert len(acquired) == 2
    assert not any("SYNTHETIC" in figure for figure in acquired)
    assert sum('class="synthetic"' in figure for figure in figures) == len(figures) - 2
    assert "not for diagnosis" in report


def test_synthetic_is_burnt_into_the_picture():
    def amber(address: str) -> int:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")).astype(int)
        return int(((image[..., 0] - image[..., 2]) > 100).sum())

    one = volume("t2f")
    view = View.around(one)
    assert amber(strip_png(one, view, (0, 200), synthetic=True)) > 50
    assert amber(strip_png(one, view, (0, 200), synthetic=False)) == 0


def test_stays_under_the_limit_however_noisy(monkeypatch):
    result = synthesis(targets=("t1c",), inputs=("t1n",))
    normal = len(render_report(result, "s"))
    assert normal < MOST_BYTES
    monkeypatch.setattr(page, "MOST_BYTES", normal // 2)
    assert len(render_report(result, "s")) <= normal // 2


def test_panels_are_radiological_whatever_the_storage_order():
    """A bright voxel on the patient's right, front and top (the last but one of each axis) shows left and up."""
    array = np.full(SHAPE, 50.0, np.float32)
    array[10, 13, 7] = 200
    view = View(np.array([10, 13, 7]), np.zeros(3, int), np.array(SHAPE))
    for flips in ((1, 1, 1), (-1, 1, 1), (-1, -1, -1)):
        stored = array[:: flips[0], :: flips[1], :: flips[2]]
        corner = np.array([0 if f == 1 else n - 1 for f, n in zip(flips, SHAPE, strict=True)])
        affine = AFFINE @ np.block([[np.diag(flips), corner[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
        cuts = planes(Volume(stored, Grid(SHAPE, affine), "t1n"), view)
        at = {plane: tuple(int(i) for i in np.argwhere(image == 200)[0]) for plane, (image, _) in cuts.items()}
        assert at == {"axial": (1, 1), "coronal": (1, 1), "sagittal": (1, 1)}
        assert [aspect for _, aspect in cuts.values()] == [1.0, 2.0, 2.0]


def test_bars_are_ordered_and_signed():
    rows = bars({"t1n": -0.5, "t2w": 2.0})
    assert [(row["source"], row["width"], row["helps"]) for row in rows] == [("t2w", 100, True), ("t1n", 25, False)]
    assert bars({"t1n": 0.0})[0]["width"] == 0


def test_flat_record():
    assert flat({"a": {"b_c": 1}, "d": 2}) == [("a b c", "1"), ("d", "2")]


@pytest.mark.parametrize(
    ("psnr", "word"),
    [(31, "close"), (29.96, "close"), (29.94, "fair"), (24.96, "fair"), (24.94, "coarse"), (19.96, "coarse"),
     (19.94, "poor"), (3, "poor"), (np.nan, "unknown")],
)  # fmt: skip
def test_quality_words(psnr, word):
    assert quality_words(psnr)[0] == word


def test_scaling_can_be_undone():
    facts = scaling_facts(synthesis(), "t2f")
    value = 90.0
    assert facts["undo"] == "scaled = (value + 10) / 200"
    assert float(Scaling(-10.0, 190.0).apply(np.array([value]))[0]) == pytest.approx((value + 10) / 200)
    assert facts["origin"] == "typical of the training subjects"


def test_every_planned_file_is_written_and_nothing_else(tmp_path):
    place = StudyFolder(tmp_path / "out", "s", tmp_path / "out")
    with study_folder(place, synthesis().volumes) as folder:
        files = write_synthesis(synthesis(), place, folder)
    assert {path.name for path in files} | {"dataset_description.json"} == {
        p.name for p in (tmp_path / "out").glob("[!.]*")
    }
    assert files[-1].name == "report.html"


@pytest.mark.parametrize(
    ("rows", "url"),
    [
        (["Documentation, https://d.org", "Source, https://a.org/b"], "https://a.org/b"),
        (["Homepage, https://h.org", "Repository, https://a.org/b"], "https://a.org/b"),
        (["Documentation, https://d.org"], None),
        ([], None),
        (None, None),
    ],
)
def test_where_the_code_is_is_told_if_the_package_says_it_and_never_guessed(monkeypatch, rows, url):
    named = Message()
    for row in rows or ():
        named["Project-URL"] = row

    def read(name: str) -> Message:
        if rows is None:
            raise metadata.PackageNotFoundError(name)
        return named

    monkeypatch.setattr(metadata, "metadata", read)
    assert generated_by().get("CodeURL") == url


def test_comparison_picture(tmp_path):
    pair = Pair(volume("t2f"), volume("t2f", 3), 24.3)
    focus = np.zeros(SHAPE, bool)
    focus[4:6, 4:6, 6] = True
    save_comparison(tmp_path / "a.png", [volume("t1n")], [pair], focus=focus)
    save_comparison(tmp_path / "b.png", [volume("t1n")], [pair])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
